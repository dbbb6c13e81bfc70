"""
How an answer is generated: the sampling parameters, and the text that a chat becomes for a base model.

Names and defaults are those of NeMo Curator's `nemo_curator.models.client.llm_client`. Knows nothing of clients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nemo_llm_stage.errors import ConfigError


class ConversationFormatter(ABC):
    """Renders chat turns to the one text that a base model continues, for ``/v1/completions``."""

    @abstractmethod
    def format_conversation(self, conv: list[dict[str, Any]]) -> str:
        """
        Return the prompt text for `conv`.

        Args:
            conv: Chat turns, oldest first, each with ``role`` and ``content``.
        """


@dataclass
class GenerationConfig:
    """
    How the model generates. None leaves a parameter out of the request.

    Attributes:
        max_tokens: Most output tokens of each answer.
        n: Answers per request; several make the column a list.
        seed: Seed for sampling, the same for every row; null sends none.
        stop: Texts that end the answer.
        stream: Whether to receive the answer in pieces; the result is the same whole text.
        temperature: Sampling temperature; 0 always takes the likeliest token.
        top_k: Number of likeliest tokens to sample from. vLLM, SGLang and llama.cpp take it; the openai client warns
            and leaves it out.
        top_p: Probability mass of the likeliest tokens to sample from.
        extra_kwargs: Further request parameters; they override the ones above.
    """

    max_tokens: int | None = 2048
    n: int | None = 1
    seed: int | None = 0
    stop: str | list[str] | None = None
    stream: bool = False
    temperature: float | None = 0.0
    top_k: int | None = None
    top_p: float | None = 0.95
    extra_kwargs: dict[str, Any] | None = None

    @classmethod
    def of(cls, config: GenerationConfig | Mapping[str, Any] | None) -> GenerationConfig:
        """
        Return `config` as a GenerationConfig; None gives the defaults.

        Raises:
            ConfigError: A key that no parameter has; the message names the nearest one.
        """
        if config is None:
            return cls()
        if isinstance(config, GenerationConfig):
            return config
        known = [field.name for field in fields(cls)]
        unknown = [key for key in config if key not in known]
        if unknown:
            from nemo_llm_stage.suggest import did_you_mean

            hint = did_you_mean(unknown[0], known) or f"known are {', '.join(known)}; others go into extra_kwargs"
            raise ConfigError(f"generation_config has no parameter {unknown[0]!r}; {hint}.")
        return cls(**config)
