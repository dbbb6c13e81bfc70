"""
The `client` section of a job file: the server, and how many requests it gets.

Each type of client has settings of its own and refuses those of the others by name. Knows the settings' names and
defaults; requests are the client room's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from nemo_llm_stage.client.credentials import has_password
from nemo_llm_stage.client.governor.governor import START_LIMIT
from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import AsyncLLMClient
from nemo_llm_stage.client.secret import HARMLESS_HEADERS, HARMLESS_QUERY
from nemo_llm_stage.config.answers import Settings, defaults_of
from nemo_llm_stage.config.named_values import NAME_IT, NamedValue, is_record, named_value, named_values

_DEFAULTS = defaults_of(AsyncHTTPClient)

LOCAL_MAX_CONCURRENT_REQUESTS = 4
"""More requests than this only wait in front of a CPU."""


class ClientSettings(Settings):
    """
    The settings of every type of client.

    Attributes:
        max_concurrent_requests: Most requests in flight at each server, from all actors together. With `type: openai`,
            in each actor. With `type: http`, ``auto`` begins with 64 and follows what the server can take; a number
            stays.
        max_retries: Most retries of a request after transient failures, before the row itself is put off and retried.
        base_delay: Seconds. A retry waits a random time up to this, twice as long before each further retry.
        timeout: Seconds for one attempt, from sending to the whole answer. The default grows where the server's answers
            take a minute and more; another number stays.
    """

    section: ClassVar[str] = "Server"
    adapts: ClassVar[bool] = False

    type: str
    max_concurrent_requests: int | Literal["auto"] = START_LIMIT
    max_retries: int = Field(default=_DEFAULTS["max_retries"], ge=0)
    base_delay: float = Field(default=_DEFAULTS["base_delay"], ge=0)
    timeout: float = Field(default=_DEFAULTS["timeout"], gt=0)

    @field_validator("max_concurrent_requests", mode="before")
    @classmethod
    def _is_a_limit(cls, value: Any) -> Any:
        if value is None:
            return cls.model_fields["max_concurrent_requests"].default
        if value == "auto" and not cls.adapts:
            raise ValueError("auto is for `type: http`; write a number")
        is_number = (isinstance(value, int) and not isinstance(value, bool)) or str(value).isdecimal()
        if value != "auto" and (not is_number or int(value) < 1):
            raise ValueError("must be a whole number from 1 on" + (", or auto" if cls.adapts else ""))
        return value if value == "auto" else int(value)

    @abstractmethod
    def open(self) -> AbstractContextManager[tuple[AsyncLLMClient, str | None]]:
        """
        Yield the client until the block ends, and the model's name where only the client knows it.

        Raises:
            ConfigError: A setting cannot work.
        """

    def total_limit(self, num_actors: int) -> int:
        """Return the most requests in flight over all actors, as far as the settings alone tell."""
        return self.planned_limit

    @property
    def planned_limit(self) -> int:
        """`max_concurrent_requests`; of one that adapts, a guess."""
        limit = self.max_concurrent_requests
        return START_LIMIT if limit == "auto" else limit

    def _common(self) -> dict[str, Any]:
        return {
            "max_concurrent_requests": self.max_concurrent_requests,
            "max_retries": self.max_retries,
            "base_delay": self.base_delay,
            "timeout": self.timeout,
        }


class ServerSettings(ClientSettings):
    """
    The settings of the clients that reach a server over the network.

    Attributes:
        base_url: The server's address, e.g. ``http://localhost:8000/v1``, or several: a list, a file that may change
            (``file:/path/endpoints.txt``, one address a line), ``dns+http://name:port/v1`` for all addresses of a name,
            ``node-local`` or ``http://{node_ip}:port/v1`` for the server on the actor's own node.
        api_key_env: Name of the environment variable that holds the key; read where the requests are sent from.
        api_key_file: Path of a file that holds the key; read where the requests are sent from.
        api_key_header: Header for the key. ``Authorization`` holds ``Bearer KEY``; any other header, e.g. ``api-key``
            for Azure, holds the key alone.
        headers: Headers of each request. Name a value that may be a secret: ``{env: NAME}`` or ``{file: PATH}``.
        query: Parameters of each URL, e.g. ``api-version``. Name a value that may be a secret, as in `headers`.
        connect_timeout: Seconds to connect.
        ca_file: PEM file of a certificate authority to trust beside the system's.
        cert_file: PEM file of the certificate that the client shows to the server.
        key_file: PEM file of the certificate's private key, if `cert_file` does not hold it.
        proxy: URL of a proxy. Name a URL with a password: ``{env: NAME}`` or ``{file: PATH}``.
        check_server: Whether to check before the job that the server runs, accepts the key and has the model.
    """

    base_url: str | tuple[str, ...] | None = None
    api_key_env: str | None = None
    api_key_file: str | None = None
    api_key_header: str = _DEFAULTS["api_key_header"]
    headers: dict[str, NamedValue] = Field(default_factory=dict)
    query: dict[str, NamedValue] = Field(default_factory=dict)
    connect_timeout: float = Field(default=_DEFAULTS["connect_timeout"], gt=0)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    proxy: NamedValue | None = None
    check_server: bool = _DEFAULTS["check_server"]

    @field_validator("headers", mode="before")
    @classmethod
    def _hold_no_secret(cls, headers: Any, info: ValidationInfo) -> Any:
        return named_values(headers, HARMLESS_HEADERS, info)

    @field_validator("query", mode="before")
    @classmethod
    def _holds_no_secret(cls, query: Any, info: ValidationInfo) -> Any:
        return named_values(query, HARMLESS_QUERY, info)

    @field_validator("proxy", mode="before")
    @classmethod
    def _has_no_password(cls, proxy: Any, info: ValidationInfo) -> Any:
        if isinstance(proxy, str) and has_password(proxy) and not is_record(info):
            raise ValueError(f"a password does not belong in a job file; {NAME_IT}")
        return None if proxy is None else named_value(proxy)

    @model_validator(mode="after")
    def _has_server(self) -> ServerSettings:
        if not self.base_url:
            raise ValueError("base_url is missing: the server's address, e.g. http://localhost:8000/v1")
        return self

    @contextmanager
    def open(self) -> Iterator[tuple[AsyncLLMClient, str | None]]:
        """Yield the client."""
        yield self.make(), None

    @abstractmethod
    def make(self) -> AsyncLLMClient:
        """
        Return the client.

        Raises:
            ConfigError: A setting cannot work.
        """

    def _shared(self) -> dict[str, Any]:
        names = ("api_key_env", "api_key_file", "api_key_header", "connect_timeout", "ca_file", "cert_file", "key_file")
        own = {"proxy": self.proxy, "check_server": self.check_server}
        return {name: getattr(self, name) for name in names} | own | self._common()


class HTTPClientConfig(ServerSettings):
    """
    The fast client, for any server that speaks the OpenAI protocol.

    Attributes:
        type: ``http``.
    """

    adapts: ClassVar[bool] = True

    type: Literal["http"] = "http"
    max_concurrent_requests: int | Literal["auto"] = _DEFAULTS["max_concurrent_requests"]

    def total_limit(self, num_actors: int) -> int:
        """Return the sum over the servers that are named."""
        num_servers = len(self.base_url) if isinstance(self.base_url, tuple) else 1
        return self.planned_limit * num_servers

    def make(self) -> AsyncLLMClient:
        """Return the client."""
        return AsyncHTTPClient(
            self.base_url or "",
            headers=self.headers,
            query=self.query,
            **self._shared(),
        )


class OpenAIClientConfig(ServerSettings):
    """
    The client on the openai SDK. It takes one `base_url`; without a key the SDK reads ``OPENAI_API_KEY``.

    Attributes:
        type: ``openai``.
    """

    type: Literal["openai"]

    @field_validator("base_url")
    @classmethod
    def _is_one(cls, base_url: Any) -> Any:
        if isinstance(base_url, tuple):
            raise ValueError("the openai client takes one base_url; use `type: http` for several")  # noqa: TRY004 - pydantic's
        return base_url

    def total_limit(self, num_actors: int) -> int:
        """Return the sum over the actors: each has a limit of its own."""
        return self.planned_limit * num_actors

    def make(self) -> AsyncLLMClient:
        """Return the client."""
        from nemo_llm_stage.client.openai_client import AsyncOpenAIClient

        return AsyncOpenAIClient(
            base_url=self.base_url,
            default_headers=self.headers or None,
            default_query=self.query or None,
            **self._shared(),
        )


class LocalClientConfig(ClientSettings):
    """
    The embedded model: started for the job on this machine's CPU, and stopped after it.

    Attributes:
        type: ``local``.
        gguf: Model file; by default the embedded SmolLM2-135M-Instruct.
    """

    type: Literal["local"]
    gguf: str | None = None
    max_concurrent_requests: int | Literal["auto"] = LOCAL_MAX_CONCURRENT_REQUESTS

    @contextmanager
    def open(self) -> Iterator[tuple[AsyncLLMClient, str | None]]:
        """Start the model; yield a client for it and its name."""
        from nemo_llm_stage.embedded.local_server import LocalServer

        with LocalServer(Path(self.gguf) if self.gguf else None) as server:
            yield AsyncHTTPClient(server.base_url, **self._common()), server.model


CLIENT_TYPES: dict[str, type[ClientSettings]] = {
    "http": HTTPClientConfig,
    "openai": OpenAIClientConfig,
    "local": LocalClientConfig,
}


def settings_of_type(settings: Mapping[str, Any], client_type: str) -> dict[str, Any]:
    """Return those of `settings` that a client of this type has, with its type: for a job that changes the type."""
    known = CLIENT_TYPES[client_type].model_fields if client_type in CLIENT_TYPES else settings
    return {name: value for name, value in settings.items() if name in known} | {"type": client_type}


def _of_one_type(value: Any) -> Any:
    """Give a client its type, and refuse the settings of the other types."""
    if isinstance(value, str):
        value = {"type": value}
    kind = value.get("type", "http") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in CLIENT_TYPES:
        return dict(value) if isinstance(value, Mapping) else value
    foreign = {name: _types_with(name) for name in value if name not in CLIENT_TYPES[kind].model_fields}
    given = [name for name, types in foreign.items() if types and not _is_unset(value[name], name, types)]
    if given:
        types = " or ".join(f"`type: {other}`" for other in foreign[given[0]])
        names = " and ".join(given)
        raise ValueError(f"{names} {'are' if len(given) > 1 else 'is'} for {types}, not for `type: {kind}`")
    return {name: item for name, item in value.items() if not foreign.get(name)} | {"type": kind}


def _types_with(name: str) -> list[str]:
    return [kind for kind, settings in CLIENT_TYPES.items() if name in settings.model_fields]


def _is_unset(value: Any, name: str, types: list[str]) -> bool:
    """Whether a setting says nothing: the records of older versions hold those of all types."""
    fields = [CLIENT_TYPES[kind].model_fields[name] for kind in types]
    return value in (None, {}, [], ()) or any(value == field.default for field in fields)


ClientConfig: TypeAlias = Annotated[
    Annotated[HTTPClientConfig | OpenAIClientConfig | LocalClientConfig, Field(discriminator="type")],
    BeforeValidator(_of_one_type),
]
"""The settings of one client; ``type: http`` where none is given, and a word alone is a type."""
