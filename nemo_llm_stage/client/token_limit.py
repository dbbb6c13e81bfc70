"""
The name of the token limit: ``max_tokens``, or ``max_completion_tokens`` where a server refuses the former.

OpenAI's reasoning models, and gateways to them, answer ``max_tokens`` with a 400 that names the other word. Knows
parameters and errors; asks nobody.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from nemo_llm_stage.client.generation import GenerationConfig
from nemo_llm_stage.errors import RequestError

logger = logging.getLogger(__name__)

NEW_NAME = "max_completion_tokens"
"""Source: OpenAI, API reference, "Create chat completion": `max_tokens` is deprecated in favour of it."""

_BAD_REQUEST_STATUSES = {400, 422}


class TokenLimitNames:
    """Which models of a client's servers are to be sent ``max_completion_tokens``; learned from their refusals."""

    def __init__(self) -> None:
        self._models: set[str] = set()

    def put_into(self, config: GenerationConfig, model: str) -> GenerationConfig:
        """Return `config` with the limit under the name that `model`'s server takes."""
        if model not in self._models or not _has_old_name(config):
            return config
        return replace(
            config, max_tokens=None, extra_kwargs={NEW_NAME: config.max_tokens, **(config.extra_kwargs or {})}
        )

    def learn(self, error: RequestError, config: GenerationConfig, model: str) -> bool:
        """Whether `error` asks for the other name, so that the request is worth sending again under it."""
        if error.status not in _BAD_REQUEST_STATUSES or NEW_NAME not in str(error) or not _has_old_name(config):
            return False
        if model not in self._models:
            self._models.add(model)
            logger.info("the server of %s does not take max_tokens; %s is sent instead", model, NEW_NAME)
        return True


def _has_old_name(config: GenerationConfig) -> bool:
    extra = config.extra_kwargs or {}
    return config.max_tokens is not None and "max_tokens" not in extra and NEW_NAME not in extra
