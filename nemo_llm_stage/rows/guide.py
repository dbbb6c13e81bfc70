"""
The request parameters that make a server write only the wanted form, and how to do without them.

Servers differ in what they accept; an answer is checked either way. Knows parameters and errors; sends nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nemo_llm_stage.client.llm_client import GenerationConfig
from nemo_llm_stage.errors import BadRequestError

logger = logging.getLogger(__name__)

_NO_GUIDES = frozenset({"logprobs", "top_logprobs"})
"""Parameters for something other than the answer's form."""


class Guide:
    """
    The parameters that guide the server, until it refuses one of them.

    Args:
        kwargs: The output's request parameters.
        own: The user's parameters, which win and are never removed.
    """

    def __init__(self, kwargs: Mapping[str, Any], own: Mapping[str, Any] | None) -> None:
        own = own or {}
        body, own_body = kwargs.get("extra_body") or {}, own.get("extra_body") or {}
        names = {*kwargs, *body} - {"extra_body"} - _NO_GUIDES
        self._names = frozenset(name for name in names if name not in own and name not in own_body)
        self.is_refused = False

    def is_refused_by(self, error: BadRequestError) -> bool:
        """Whether `error` names one of the parameters, so that a request without them may succeed."""
        text = str(error)
        refused = [name for name in sorted(self._names) if name in text]
        if refused and not self.is_refused:
            self.is_refused = True
            logger.warning(
                "the server does not accept %s; requests go out without it, and answers are checked all the same: %s",
                refused[0],
                text,
            )
        return bool(refused)

    def without(self, config: GenerationConfig) -> GenerationConfig:
        """Return `config` without the parameters."""
        extra = {name: value for name, value in (config.extra_kwargs or {}).items() if name not in self._names}
        if body := extra.pop("extra_body", None):
            kept = {name: value for name, value in body.items() if name not in self._names}
            extra |= {"extra_body": kept} if kept else {}
        return replace(config, extra_kwargs=extra or None)
