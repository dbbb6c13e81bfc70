"""
What both clients on the openai SDK have in common: their settings, and a request as the SDK's arguments.

Knows the SDK's parameter names; imports nothing of it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from nemo_llm_stage.client.credentials import AUTHORIZATION, Credentials
from nemo_llm_stage.client.hiding import NO_SECRETS, HidingFilter, Secrets
from nemo_llm_stage.client.http.tls import tls_context
from nemo_llm_stage.client.llm_client import ConversationFormatter, GenerationConfig
from nemo_llm_stage.client.secret import HIDDEN, KeySource
from nemo_llm_stage.client.token_limit import NEW_NAME
from nemo_llm_stage.core import Message
from nemo_llm_stage.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DEFAULT_TIMEOUT_S = 120.0
_SDK_KEY_ENV = "OPENAI_API_KEY"
_log_filter = HidingFilter()


class SDKSettings:
    """
    A base of both clients: what they take beside the SDK's own arguments.

    ``api_key_env``, ``api_key_file``, ``api_key_header``, ``ca_file``, ``cert_file``, ``key_file``, ``proxy``,
    ``connect_timeout`` and ``check_server`` mean what they mean to `AsyncHTTPClient`. So do the values of
    ``default_headers`` and ``default_query``, which may be named. What is named is read where requests are sent from,
    and what is pickled holds the names.

    Attributes:
        timeout: Seconds, for each request.
        connect_timeout: Seconds to connect; None for `timeout`.
        check_server: Whether `check` asks the server anything.
        openai_kwargs: For the SDK's client; without keys, headers and query parameters.
    """

    timeout: float
    connect_timeout: float | None
    check_server: bool
    openai_kwargs: dict[str, Any]

    def keep(self, kwargs: dict[str, Any]) -> None:
        """
        Take the client's keyword arguments; what may be a secret is wrapped so that it does not show.

        Raises:
            ConfigError: A setting cannot work.
        """
        self.timeout = kwargs.pop("timeout", DEFAULT_TIMEOUT_S)
        self.connect_timeout = kwargs.pop("connect_timeout", None)
        self.check_server = kwargs.pop("check_server", True)
        api_key = kwargs.get("api_key")
        literal = kwargs.pop("api_key") if isinstance(api_key, str) and api_key else None
        named = kwargs.pop("api_key_env", None), kwargs.pop("api_key_file", None)
        if any(named) and api_key is not None:
            raise ConfigError("Give one of api_key, api_key_env and api_key_file, not several.")
        self._credentials = Credentials(
            KeySource(literal, *named),
            api_key_header=kwargs.pop("api_key_header", "Authorization"),
            headers=_texts_in(kwargs, "default_headers"),
            query=_texts_in(kwargs, "default_query"),
            proxy=kwargs.pop("proxy", None),
        )
        self._has_key = literal is not None or any(named)
        self._files = {name: kwargs.pop(name, None) for name in ("ca_file", "cert_file", "key_file")}
        self.openai_kwargs = kwargs
        self._secrets: Secrets | None = None
        self._warned: set[str] = set()

    @property
    def secrets(self) -> Secrets:
        """What must not show in an answer or an error; none where something of it cannot be read."""
        if self._secrets is None:
            try:
                secrets = self._credentials.read().secrets
            except ConfigError:
                return NO_SECRETS
            key = None if self._has_key else os.environ.get(_SDK_KEY_ENV)
            self._secrets = secrets.plus([key]) if key else secrets
        return self._secrets

    def sdk_kwargs(self, *, is_async: bool) -> dict[str, Any]:
        """
        Return what the SDK's client is made with.

        Raises:
            ConfigError: A variable or file is missing, or cannot be used.
        """
        sent = self._credentials.read()
        _log_filter.add(sent.secrets)
        for name in ("httpx", "httpx2"):  # they log each URL with its query, and the server's words beside the status
            logging.getLogger(name).addFilter(_log_filter)
        kwargs = dict(self.openai_kwargs)
        if sent.key is not None:
            kwargs["api_key"] = sent.key
        headers: dict[str, Any] = {**sent.headers, **kwargs.get("default_headers", {})}
        if AUTHORIZATION not in sent.auth:
            headers = {**sent.auth, **headers}
        if headers:
            kwargs["default_headers"] = headers
        if sent.query:
            kwargs["default_query"] = {**sent.query, **kwargs.get("default_query", {})}
        if sent.proxy is not None or any(self._files.values()):
            kwargs["http_client"] = self._http_client(sent.proxy, is_async=is_async)
        return kwargs

    def renew_key(self, client: AsyncOpenAI, used: str, error: RequestError) -> bool:
        """
        Read the key again if the server does not accept it: its file may hold a new one.

        Args:
            client: Gets the new key.
            used: The key that the failed request was sent with.
            error: Of the failed request.

        Returns:
            Whether there is a new key, so that the request should be sent again.
        """
        if error.status != HTTPStatus.UNAUTHORIZED or not self._has_key:
            return False
        if client.api_key == used:
            sent = self._credentials.read_again(used)
            if sent is None or sent.key is None or AUTHORIZATION not in sent.auth:
                return False
            client.api_key = sent.key
            self._secrets = self.secrets.plus(sent.secrets)
            _log_filter.add(sent.secrets)
        return client.api_key != used

    def _http_client(self, proxy: str | None, *, is_async: bool) -> Any:
        """The SDK's own connections, with certificates and a proxy of the user's."""
        import openai

        options: dict[str, Any] = {} if proxy is None else {"proxy": proxy}
        if any(self._files.values()):
            options["verify"] = tls_context(**self._files)
        return openai.DefaultAsyncHttpxClient(**options) if is_async else openai.DefaultHttpxClient(**options)

    def sdk_timeout(self, timeout: Any) -> Any:
        """Return a request's timeout with the seconds to connect, as the SDK takes it."""
        if self.connect_timeout is None or not isinstance(timeout, int | float):
            return timeout
        import openai

        return openai.Timeout(timeout, connect=min(self.connect_timeout, timeout))

    def create_kwargs(
        self,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        config: GenerationConfig,
    ) -> dict[str, Any]:
        """Return the arguments of ``chat.completions.create``; None is sent as null: the server's default."""
        if conversation_formatter is not None:
            self._warn_once(f"conversation_formatter is not used in an {type(self).__name__}: the server formats chats")
        if config.top_k is not None:
            self._warn_once(f"top_k is not used in an {type(self).__name__}; put it into extra_kwargs' extra_body")
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
        extra = dict(config.extra_kwargs or {})
        if not extra.get("stream_options", True):  # false or null leaves them out
            del extra["stream_options"]
            kwargs.pop("stream_options", None)
        overlap = sorted(kwargs.keys() & extra.keys())
        if overlap:
            self._warn_once(f"extra_kwargs overrides {', '.join(overlap)}")
        if NEW_NAME in extra and kwargs["max_tokens"] is None:
            del kwargs["max_tokens"]  # a server of the new name refuses the old one even as null
        if self._has_key and self._credentials.api_key_header != AUTHORIZATION:
            from openai import Omit  # the SDK takes it from a request only, not from its client

            extra["extra_headers"] = {"Authorization": Omit(), **extra.get("extra_headers", {})}
        return {**kwargs, **extra}

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=2)

    def __repr__(self) -> str:
        shown = {
            name: value if name in {"base_url", "organization", "project", "max_retries"} else HIDDEN
            for name, value in self.openai_kwargs.items()
        }
        settings = "".join(f", {name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}(timeout={self.timeout}{settings}, {self._credentials!r})"


def _texts_in(kwargs: dict[str, Any], name: str) -> dict[str, Any]:
    """Take the texts and named values out of a mapping; the SDK has values of its own kinds, which stay there."""
    values = dict(kwargs.pop(name, None) or {})
    texts = {key: value for key, value in values.items() if isinstance(value, str | Mapping)}
    if rest := {key: value for key, value in values.items() if key not in texts}:
        kwargs[name] = rest
    return texts
