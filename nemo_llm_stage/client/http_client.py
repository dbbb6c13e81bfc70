"""
The fast client: the OpenAI protocol on connections of its own, for any server that speaks it.

One attempt is: choose an endpoint, encode, send, decode. Limit and retries are the base class's, the protocol is
`wire`'s, connections are `http1`'s. Knows nothing of rows, files or Ray.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from nemo_llm_stage.client.credentials import Credentials, Sent, secrets_of_request
from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.client.endpoints import Endpoint, Endpoints
from nemo_llm_stage.client.errors.response import error_of_response
from nemo_llm_stage.client.hiding import Secrets
from nemo_llm_stage.client.http.http1 import HTTP1Transport
from nemo_llm_stage.client.http.transport import Transport, TransportConfig, TransportStatistics
from nemo_llm_stage.client.http_session import HTTPSession, endpoint_statuses
from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig
from nemo_llm_stage.client.secret import KeySource, Value
from nemo_llm_stage.client.server_check import ServerCheck
from nemo_llm_stage.client.wire import StreamedAnswer, WireRequest, completion_of_answer, decode_answer, encode_request
from nemo_llm_stage.core import Completion, Message
from nemo_llm_stage.errors import ConfigError, ConnectionFailedError, RequestError, TransientError

logger = logging.getLogger(__name__)

_OK = HTTPStatus.OK.value
_FAILED_AT: ContextVar[Endpoint | None] = ContextVar("_FAILED_AT", default=None)
"""Where the running task's last attempt failed, so that its next one goes elsewhere."""


class AsyncHTTPClient(AsyncLLMClient):
    """
    A client for any OpenAI-compatible server: vLLM, SGLang, NIM, llama.cpp, a provider.

    A chat goes to ``/chat/completions``; with a ``conversation_formatter`` its text goes to ``/completions``.

    Args:
        base_url: The server's address, with or without ``/v1``; several are asked in turn, a retry goes to the next.
        max_concurrent_requests: Most attempts in flight at once, over all servers.
        max_retries: Sends after the first one, for failures that may pass.
        base_delay: Seconds; see `AsyncLLMClient`.
        timeout: Seconds from sending to the whole answer; waiting in the server's queue counts.
        connect_timeout: Seconds to connect, TLS included.
        read_timeout: Longest silence of the server in seconds, before its first byte too; None for none. Useful with
            ``stream=True``, where the first byte comes early.
        api_key: The key itself. It travels with the client when that is pickled, and shows nowhere.
        api_key_env: Name of the environment variable that holds the key on the worker.
        api_key_file: Path of the file that holds the key on the worker.
        api_key_header: The header for the key. ``Authorization`` holds ``Bearer KEY``; any other, e.g. ``api-key`` of
            Azure, holds the key alone.
        headers: Sent with every request. A value is a text, or ``{"env": NAME}`` or ``{"file": PATH}``, which are read
            on the worker. Values show nowhere, except those of a few headers that hold no secret (``User-Agent`` …).
        query: Parameters for the query of every URL, likewise, e.g. ``{"api-version": "2024-10-21"}``.
        ca_file: PEM file of certificates to trust beside the usual ones; read on the worker.
        cert_file: PEM file of a certificate that the client shows to the server; read on the worker.
        key_file: PEM file of the private key to it; None where `cert_file` holds it too.
        proxy: URL of a proxy for every host but this machine, or where it lies, as for `headers`; None for what
            HTTP_PROXY, HTTPS_PROXY and NO_PROXY say.
        max_response_bytes: An answer longer than this is given up.
        check_server: Whether `check` asks the servers anything.

    Raises:
        ConfigError: A setting that cannot work.
    """

    _runtime_attributes = AsyncLLMClient._runtime_attributes | {"_session"}  # noqa: SLF001

    _session: HTTPSession | None = None
    """Opened by `setup`; None before, and in a copy that has been pickled."""

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        max_concurrent_requests: int = 64,
        max_retries: int = 3,
        base_delay: float = 1.0,
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
        read_timeout: float | None = None,
        api_key: str | None = None,
        api_key_env: str | None = None,
        api_key_file: str | os.PathLike[str] | None = None,
        api_key_header: str = "Authorization",
        headers: Mapping[str, Value] | None = None,
        query: Mapping[str, Value] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        cert_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        proxy: Value | None = None,
        max_response_bytes: int = 64 * 1024 * 1024,
        check_server: bool = True,
    ) -> None:
        super().__init__(max_concurrent_requests, max_retries, base_delay)
        for name, value in (("timeout", timeout), ("connect_timeout", connect_timeout), ("read_timeout", read_timeout)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}; it must be seconds above 0.")
        self.endpoints = Endpoints([base_url] if isinstance(base_url, str) else list(base_url))
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.read_timeout = read_timeout
        self.max_response_bytes = max_response_bytes
        self.check_server = check_server
        self._credentials = Credentials(
            KeySource(api_key, api_key_env, api_key_file),
            api_key_header=api_key_header,
            headers=headers,
            query=query,
            proxy=proxy,
        )
        if key_file is not None and cert_file is None:
            raise ConfigError("key_file is the private key to cert_file, which is missing.")
        files = {"ca_file": ca_file, "cert_file": cert_file, "key_file": key_file}
        self._files = {name: None if path is None else os.fspath(path) for name, path in files.items()}

    def setup(self) -> None:
        """
        Read the key and the other named values. Safe to call twice; the first request calls it where nobody has.

        Raises:
            ConfigError: A variable or file is missing; named in the message.
        """
        self._session = HTTPSession(self._credentials.read, self._make_transport)
        exposed = [e.base_url for e in self.endpoints.all if not e.is_tls and not e.is_private]
        if self._session.sent.key is not None and exposed:
            warnings.warn(f"The API key is sent unencrypted to {exposed[0]}; use https://.", stacklevel=2)

    async def _complete_impl(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        generation_config: GenerationConfig,
    ) -> Completion:
        """Make one attempt; once more with another name for ``max_tokens``, or with a new key, where that may help."""
        sent = (session := self._opened()).sent
        turns = messages if isinstance(messages, list) else list(messages)
        config = session.token_limit.put_into(generation_config, model)
        secrets = secrets_of_request(sent.secrets, config.extra_kwargs)
        try:
            completion = await self._ask(encode_request(turns, model, config, conversation_formatter), model, secrets)
        except RequestError as error:
            secrets.clean(error)
            if not (session.token_limit.learn(error, config, model) or session.renew(error, sent)):
                raise
        else:
            return secrets.cleaned(completion)
        return await self._complete_impl(
            messages=turns,
            model=model,
            conversation_formatter=conversation_formatter,
            generation_config=generation_config,
        )

    async def _ask(self, request: WireRequest, model: str, secrets: Secrets) -> Completion:
        """Send `request` to the endpoint whose turn it is."""
        failed_at = _FAILED_AT.get()
        endpoint = self.endpoints.choose(avoid=failed_at)
        try:
            attempt = self._attempt(endpoint, request, model, secrets)
            completion = await self._opened().meter_of(endpoint.base_url).observe(attempt)
        except TransientError:
            _FAILED_AT.set(endpoint)
            raise
        if failed_at is not None:
            _FAILED_AT.set(None)
        return completion

    async def _query_model_impl(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> list[str]:
        """Make one attempt and return its texts."""
        completion = await self._complete_impl(
            messages=messages,
            model=model,
            conversation_formatter=conversation_formatter,
            generation_config=GenerationConfig.of(generation_config),
        )
        return list(completion.texts)

    async def _attempt(self, endpoint: Endpoint, request: WireRequest, model: str, secrets: Secrets) -> Completion:
        session = self._opened()
        url = session.sent.add_query(endpoint.url(request.path))
        stream = StreamedAnswer()  # used if the server answers with a stream, asked for or not
        started_monotonic_s = time.monotonic()
        response = await session.transport.send(
            url, request.body, headers=request.headers, timeout_s=request.timeout_s, on_event_bytes=stream.feed
        )
        if response.status != _OK:
            raise error_of_response(response, endpoint.url(request.path), model, secrets)
        answer = stream.whole() if response.was_streamed else decode_answer(response.body)
        latency_s = time.monotonic() - started_monotonic_s
        return completion_of_answer(answer, endpoint=endpoint.base_url, latency_s=latency_s)

    async def check(self, model: str) -> None:
        """
        Find out, before anything is paid for, whether every server is there, takes the key and has `model`.

        Costs one request for the list of models, and one token where the list does not have it: some servers answer to
        names they do not list. Does nothing where `check_server` is False.

        Raises:
            ConnectionFailedError: No server can be reached; some being down is only logged.
            AuthenticationError: A server does not take the key.
            NotFoundError: A server does not have the model; names those that it has.
        """
        if not self.check_server:
            return
        session, endpoints = self._opened(), list(dict.fromkeys(self.endpoints.all))
        checks = (ServerCheck(session.transport, endpoint, model, session.sent).run() for endpoint in endpoints)
        outcomes = await asyncio.gather(*checks, return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        unreachable = [error for error in errors if isinstance(error, ConnectionFailedError)]
        for error in errors:
            session.sent.secrets.clean(error)
            if error not in unreachable or len(unreachable) == len(endpoints):
                raise error
        for error in unreachable:
            logger.warning("%s The other servers are asked.", error)

    def statistics(self) -> TransportStatistics:
        """Return how the connections stand, those of all event loops together. Can be called from any thread."""
        return TransportStatistics() if self._session is None else self._session.statistics()

    def endpoint_statuses(self) -> tuple[EndpointStatus, ...]:
        """Return how each server stands. Can be called from any thread."""
        return endpoint_statuses(self.endpoints.all, self._session, self.max_concurrent_requests)

    @property
    def num_servers(self) -> int:
        """Addresses that requests go to in turn."""
        return len(set(self.endpoints.all))

    async def aclose(self) -> None:
        """Close the running loop's connections. Safe to call twice; the client can be used again after."""
        if self._session is not None:
            await self._session.aclose()

    def _opened(self) -> HTTPSession:
        if self._session is None:
            self.setup()
        assert self._session is not None
        return self._session

    def _make_transport(self, sent: Sent) -> Transport:
        return HTTP1Transport(
            TransportConfig(
                headers={
                    "user-agent": "nemo-llm-stage",
                    "accept": "application/json, text/event-stream",
                    "content-type": "application/json",
                    **sent.auth,
                    **sent.headers,
                },
                timeout_s=self.timeout,
                connect_timeout_s=self.connect_timeout,
                read_timeout_s=self.read_timeout,
                max_response_bytes=self.max_response_bytes,
                proxy=sent.proxy,
                **self._files,
            )
        )

    def __repr__(self) -> str:
        urls = [endpoint.base_url for endpoint in self.endpoints.all]
        shown = {
            "max_concurrent_requests": self.max_concurrent_requests,
            "max_retries": self.max_retries,
            "timeout": self.timeout,
        }
        settings = ", ".join(f"{name}={value}" for name, value in shown.items())
        return f"{type(self).__name__}({urls[0] if len(urls) == 1 else urls!r}, {settings}, {self._credentials!r})"
