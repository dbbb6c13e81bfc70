"""
What both clients on the openai SDK have in common: their settings, and a request as the SDK's arguments.

Knows the SDK's parameter names; imports nothing of it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from nemo_llm_stage.client.llm_client import ConversationFormatter, GenerationConfig
from nemo_llm_stage.client.secret import HIDDEN, KeySource, Secret
from nemo_llm_stage.core import Message
from nemo_llm_stage.errors import ConfigError

DEFAULT_TIMEOUT_S = 120.0
_SDK_KEY_ENV = "OPENAI_API_KEY"


class SDKSettings:
    """
    A base of both clients: what they take beside the SDK's own arguments.

    ``api_key_env`` and ``api_key_file`` name where the key is, as `AsyncHTTPClient`'s do; it is read where requests are
    sent from, and what is pickled holds the name.

    Attributes:
        timeout: Seconds, for each request.
        openai_kwargs: For the SDK's client; without the key.
    """

    timeout: float
    openai_kwargs: dict[str, Any]

    def keep(self, kwargs: dict[str, Any]) -> None:
        """Take the client's keyword arguments; the key is wrapped so that it does not show."""
        self.timeout = kwargs.pop("timeout", DEFAULT_TIMEOUT_S)
        api_key = kwargs.pop("api_key", None)
        self._api_key = Secret(api_key) if isinstance(api_key, str) else api_key
        named = kwargs.pop("api_key_env", None), kwargs.pop("api_key_file", None)
        self._named_key = KeySource(api_key, *named) if any(named) else None
        self.openai_kwargs = kwargs
        self._warned: set[str] = set()

    @property
    def secrets(self) -> list[str]:
        """Texts that must not show in an error."""
        if isinstance(self._api_key, Secret):
            return [self._api_key.reveal()]
        key: str | None = os.environ.get(_SDK_KEY_ENV) if self._api_key is None else None
        if self._named_key is not None:
            with suppress(ConfigError):
                key = self._named_key.read()
        return [key] if key else []

    def sdk_kwargs(self) -> dict[str, Any]:
        """
        Return what the SDK's client is made with.

        Raises:
            ConfigError: The key's variable or file is missing.
        """
        api_key = self._api_key.reveal() if isinstance(self._api_key, Secret) else self._api_key
        if self._named_key is not None:
            api_key = self._named_key.read()
        return self.openai_kwargs if api_key is None else {"api_key": api_key, **self.openai_kwargs}

    def create_kwargs(
        self,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        config: GenerationConfig,
    ) -> dict[str, Any]:
        """Return the arguments of ``chat.completions.create``; None is sent as null: the server's default."""
        if conversation_formatter is not None:
            self._warn_once(f"conversation_formatter is not used in {type(self).__name__}: the server formats chats")
        if config.top_k is not None:
            self._warn_once(f"top_k is not used in {type(self).__name__}; put it into extra_kwargs' extra_body")
        kwargs: dict[str, Any] = {
            "messages": messages if isinstance(messages, list) else list(messages),
            "model": model,
            "max_tokens": config.max_tokens,
            "n": config.n,
            "seed": config.seed,
            "stop": config.stop,
            "stream": config.stream,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "timeout": self.timeout,
        }
        if config.stream:
            kwargs["stream_options"] = {"include_usage": True}
        overlap = sorted(kwargs.keys() & (config.extra_kwargs or {}).keys())
        if overlap:
            self._warn_once(f"extra_kwargs overrides {', '.join(overlap)}")
        return {**kwargs, **(config.extra_kwargs or {})}

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=2)

    def __repr__(self) -> str:
        shown = {
            name: value if name in {"base_url", "organization", "project", "max_retries"} else HIDDEN
            for name, value in self.openai_kwargs.items()
        }
        if self._api_key is not None:
            shown["api_key"] = HIDDEN
        settings = "".join(f", {name}={value!r}" for name, value in shown.items())
        if self._named_key is not None:
            settings += f", {self._named_key!r}"
        return f"{type(self).__name__}(timeout={self.timeout}{settings})"
