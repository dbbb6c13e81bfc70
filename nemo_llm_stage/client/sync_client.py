"""
The interface of a synchronous client, as NeMo Curator has it.

Knows nothing of threads: whoever calls it brings them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from nemo_llm_stage.client.generation import ConversationFormatter, GenerationConfig
from nemo_llm_stage.core import Message


class LLMClient(ABC):
    """A synchronous client. The stage calls its `query_model` from a pool of threads."""

    @abstractmethod
    def setup(self) -> None:
        """Make the client ready: read keys, open what must be open. Called in the process that will use it."""

    @abstractmethod
    def query_model(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> list[str]:
        """
        Return one text per choice, in the server's order.

        Args:
            messages: Chat turns, oldest first.
            model: The model's name on the server.
            conversation_formatter: Renders the turns for a base model.
            generation_config: None means the defaults.
        """
