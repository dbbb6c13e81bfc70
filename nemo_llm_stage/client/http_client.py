"""
The fast client: the OpenAI protocol on connections of its own, for any server that speaks it.

One attempt is: choose an endpoint, encode, send, decode. Limit and retries are the base class's, the protocol is
`wire`'s, connections are `http1`'s. Knows nothing of rows, files or Ray.
"""

from __future__ import annotations

import asyncio
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from nemo_llm_stage.client.attempt import attempt
from nemo_llm_stage.client.credentials import Credentials, Sent, secrets_of_request
from nemo_llm_stage.client.endpoint_status import EndpointStatus, merge_endpoints
from nemo_llm_stage.client.endpoints.member import Lease
from nemo_llm_stage.client.endpoints.overdue import Overdue, overdue_in
from nemo_llm_stage.client.endpoints.servers import Servers, pools_of
from nemo_llm_stage.client.endpoints.share import ALONE, WorkerPlace
from nemo_llm_stage.client.endpoints.source import BaseURL
from nemo_llm_stage.client.endpoints.state import EndpointPolicy
from nemo_llm_stage.client.governor.governor import START_LIMIT
from nemo_llm_stage.client.governor.timeouts import USUAL_S
from nemo_llm_stage.client.http.http1 import HTTP1Transport
from nemo_llm_stage.client.http.transport import HTTPResponse, Transport, TransportConfig, TransportStatistics
from nemo_llm_stage.client.http_session import HTTPSession
from nemo_llm_stage.client.limit import HELD, Limit, Permit
from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig
from nemo_llm_stage.client.open_files import raise_open_file_limit
from nemo_llm_stage.client.retry import ask_for_another_send
from nemo_llm_stage.client.secret import KeySource, Value
from nemo_llm_stage.client.server_check import check_all
from nemo_llm_stage.client.wire import encode_request
from nemo_llm_stage.core import Completion, Message
from nemo_llm_stage.errors import ConfigError, RequestError, RequestTimeoutError


class AsyncHTTPClient(AsyncLLMClient):
    """
    A client for any OpenAI-compatible server: vLLM, SGLang, NIM, llama.cpp, a provider.

    A chat goes to ``/chat/completions``; with a ``conversation_formatter`` its text goes to ``/completions``.

    Args:
        base_url: The server's address, with or without ``/v1``, or several; a request goes to the least loaded server
            that is well. Also: a file of addresses (``file:/path``, ``….txt``), one a line, or a function that returns
            some, both read again and again; ``dns+http://name:port/v1``, every address of a name; ``node-local`` or
            ``http://{node_ip}:port/v1``, the server on the worker's own node.
        max_concurrent_requests: Most requests in flight at each server, all workers together. "auto" begins with 64 and
            follows the server's ``/metrics``, else the work per second, and its refusals; `endpoint_statuses` says why.
        max_retries: Retries for transient failures.
        base_delay: Seconds; see `AsyncLLMClient`.
        timeout: Seconds from sending to the whole answer; waiting in the server's queue counts. With "auto" the default
            grows where answers take a minute and more; another number stays.
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

    endpoint_policy = EndpointPolicy()
    """When a server of several is left alone."""

    _session: HTTPSession | None = None
    """Opened by `setup`; None before, and in a copy that has been pickled."""

    def __init__(
        self,
        base_url: BaseURL,
        *,
        max_concurrent_requests: int | Literal["auto"] = "auto",
        max_retries: int = 3,
        base_delay: float = 1.0,
        timeout: float = USUAL_S,
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
        planned = START_LIMIT if max_concurrent_requests == "auto" else max_concurrent_requests
        super().__init__(planned, max_retries, base_delay)
        for name, value in (("timeout", timeout), ("connect_timeout", connect_timeout), ("read_timeout", read_timeout)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}; it must be seconds above 0.")
        self._servers = Servers(base_url, max_concurrent_requests)
        self.timeout, self.connect_timeout, self.read_timeout = timeout, connect_timeout, read_timeout
        self.max_response_bytes, self.check_server = max_response_bytes, check_server
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
        raise_open_file_limit()
        self._session = HTTPSession(self._credentials, self._make_transport, self.timeout == USUAL_S)
        exposed = [e.base_url for e in self._servers.at_start() if not e.is_tls and not e.is_private]
        if self._session.sent.key is not None and exposed:
            warnings.warn(f"The API key is sent unencrypted to {exposed[0]}; use https://.", stacklevel=2)

    def _make_limit(self) -> Limit:
        return self._servers.make_pool(self.clock, self.endpoint_policy, self._get)

    async def _get(self, url: str, timeout_s: float) -> HTTPResponse:
        session = self._opened()
        return await session.transport.send(session.sent.add_query(url), None, timeout_s=timeout_s)

    async def _complete_impl(
        self,
        *,
        messages: Iterable[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        generation_config: GenerationConfig,
    ) -> Completion:
        """Make one attempt under the permit that the caller holds, or under one of its own."""
        permit, turns = HELD.get(), list(messages)
        if isinstance(permit, Lease) and permit.pool.source is self._servers.source:
            return await self._complete_under(permit, turns, model, conversation_formatter, generation_config)
        async with (permit := self.limit.permit()):
            return await self._complete_under(permit, turns, model, conversation_formatter, generation_config)

    async def _complete_under(
        self,
        permit: Permit,
        messages: list[Message],
        model: str,
        conversation_formatter: ConversationFormatter | None,
        generation_config: GenerationConfig,
    ) -> Completion:
        """Make one attempt; ask for another with another name for ``max_tokens``, or a new key, where that may help."""
        assert isinstance(permit, Lease)
        pool, member, session = permit.pool, permit.member, self._opened()
        sent = session.sent
        config = session.token_limit.put_into(generation_config, model)
        secrets = secrets_of_request(sent.secrets, config.extra_kwargs) if config.extra_kwargs else sent.secrets
        request = encode_request(messages, model, config, conversation_formatter)
        if pool.can_recall:
            permit.task = asyncio.current_task()
        try:
            completion = await attempt(session, member, request, model=model, secrets=secrets, config=generation_config)
        except RequestError as error:
            secrets.clean(error)
            pool.note_failure(permit, error)
            if session.token_limit.learn(error, config, model) or session.renew(error, sent):
                ask_for_another_send(error)
            raise
        except asyncio.CancelledError:
            if not permit.was_recalled():
                raise
            silent = RequestTimeoutError(f"{member.endpoint.base_url} {permit.why}.")
            pool.note_failure(permit, silent)
            raise silent from None
        finally:
            permit.task = None
        pool.note_answer(permit, completion.latency_s or 0.0)
        return secrets.cleaned(completion)

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

    async def check(self, model: str) -> None:
        """
        Find out, before anything is paid for, whether every server is there, takes the key and has `model`.

        Costs one request for the list of models, and one token where the list does not have it.

        Raises:
            ConnectionFailedError: No server can be reached; some being down is only logged.
            AuthenticationError: A server does not take the key.
            NotFoundError: A server does not have the model; names those that it has.
        """
        if not self.check_server or self._servers.source.is_own:  # a node without workers need not have a server
            return
        session, endpoints = self._opened(), await asyncio.to_thread(self._servers.at_start)
        await check_all([session.check_of(endpoint, model) for endpoint in set(endpoints)])

    def statistics(self) -> TransportStatistics:
        """Return how the connections stand, those of all event loops together. Can be called from any thread."""
        return TransportStatistics() if self._session is None else self._session.statistics()

    def endpoint_statuses(self) -> tuple[EndpointStatus, ...]:
        """Return how each server stands, also those that have left. Can be called from any thread."""
        statuses = merge_endpoints(status for pool in pools_of(self._limits) for status in pool.statuses())
        return statuses if self._session is None else self._session.with_unasked(statuses)

    def server_urls(self, place: WorkerPlace = ALONE) -> tuple[str, ...]:
        """See `AsyncLLMClient.server_urls`; nothing where each worker asks its own node's."""
        return () if self._servers.source.is_own else self._servers.urls_of(place)

    def overdue(self, after_s: Mapping[str, float]) -> list[Overdue]:
        """See `AsyncLLMClient.overdue`."""
        return overdue_in(pools_of(self._limits), after_s, self.clock.monotonic())

    def tell_servers(self, urls: Sequence[str]) -> None:
        """See `AsyncLLMClient.tell_servers`; matters where `base_url` is ``servers``."""
        self._servers.source.tell(urls)

    def take_place(self, place: WorkerPlace) -> None:
        """Ask only the servers that are this worker's, or have its share of their limits."""
        if place != self._servers.place:
            self._servers.place, self._limits = place, None

    def total_limit(self, place: WorkerPlace = ALONE) -> int:
        """Return the most requests in flight of the worker in this place, at the servers that there are now."""
        return self._servers.total_limit(place)

    async def aclose(self) -> None:
        """Close the running loop's connections. Safe to call twice; the client can be used again after."""
        for pool in pools_of(self._limits):
            pool.close()
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
                headers=sent.all_headers,
                timeout_s=self.timeout,
                connect_timeout_s=self.connect_timeout,
                read_timeout_s=self.read_timeout,
                max_response_bytes=self.max_response_bytes,
                proxy=sent.proxy,
                **self._files,
            )
        )

    def __repr__(self) -> str:
        limit = "auto" if self._servers.is_auto else self.max_concurrent_requests
        numbers = f"max_concurrent_requests={limit}, max_retries={self.max_retries}, timeout={self.timeout}"
        return f"{type(self).__name__}({self._servers.source.describe()}, {numbers}, {self._credentials!r})"
