"""
The `client` section of a job file: which server is asked, and how hard.

Knows the settings' names and defaults; asking is the client room's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import AsyncLLMClient
from nemo_llm_stage.config.answers import Settings
from nemo_llm_stage.errors import ConfigError

LOCAL_MAX_CONCURRENT_REQUESTS = 4
LOCAL_TIMEOUT_S = 600.0

_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"})


class ClientConfig(Settings):
    """
    Which server is asked, and how hard.

    Attributes:
        type: ``http`` is the fast client; ``openai`` goes through the openai SDK; ``local`` starts the embedded model
            for the job and stops it after.
        base_url: One URL, or several that are asked in turn.
        api_key_env: Name of the environment variable that holds the key, read where the requests are sent from.
        api_key_file: Path of a file that holds the key, likewise.
        headers: Sent with each request; not for keys.
        max_concurrent_requests: In flight at once, for each actor.
        max_retries: Sends after the first, for failures that may pass.
        base_delay: Seconds; see `AsyncLLMClient`.
        timeout: Seconds for one attempt, from sending to the whole answer.
        connect_timeout: Seconds to connect.
        ca_file: PEM file of a certificate authority to trust beside the system's.
        proxy: URL of a proxy.
        gguf: Model file for ``local``; None takes the embedded SmolLM2-135M-Instruct.
    """

    type: Literal["http", "openai", "local"] = "http"
    base_url: str | tuple[str, ...] | None = None
    api_key_env: str | None = None
    api_key_file: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    max_concurrent_requests: int | None = Field(default=None, ge=1)
    max_retries: int = Field(default=3, ge=0)
    base_delay: float = Field(default=1.0, ge=0)
    timeout: float = Field(default=600.0, gt=0)
    connect_timeout: float = Field(default=10.0, gt=0)
    ca_file: str | None = None
    proxy: str | None = None
    gguf: str | None = None

    @model_validator(mode="after")
    def _has_server(self) -> ClientConfig:
        if self.type != "local" and not self.base_url:
            raise ValueError("base_url is missing: the server's address, e.g. http://localhost:8000/v1")
        return self

    @field_validator("headers")
    @classmethod
    def _has_no_key(cls, headers: dict[str, str]) -> dict[str, str]:
        for name in headers:
            if name.lower() in _SECRET_HEADERS:
                raise ValueError(f"{name} holds a key; name where it is with api_key_env or api_key_file")
        return headers

    @property
    def limit(self) -> int:
        """Requests in flight at once, for each actor."""
        return self.max_concurrent_requests or (LOCAL_MAX_CONCURRENT_REQUESTS if self.type == "local" else 64)

    def make(self) -> AsyncLLMClient:
        """
        Return the client; not for ``local``, whose address is known only while it runs.

        Raises:
            ConfigError: A setting cannot work.
        """
        common: dict[str, Any] = {
            "max_concurrent_requests": self.limit,
            "max_retries": self.max_retries,
            "base_delay": self.base_delay,
            "timeout": self.timeout,
        }
        if self.type == "openai":
            from nemo_llm_stage.client.openai_client import AsyncOpenAIClient

            if not isinstance(self.base_url, str):
                raise ConfigError("the openai client takes one base_url; use `type: http` for several.")
            return AsyncOpenAIClient(
                base_url=self.base_url,
                api_key_env=self.api_key_env,
                api_key_file=self.api_key_file,
                default_headers=self.headers or None,
                **common,
            )
        return AsyncHTTPClient(
            self.base_url or "",
            api_key_env=self.api_key_env,
            api_key_file=self.api_key_file,
            headers=self.headers,
            connect_timeout=self.connect_timeout,
            ca_file=self.ca_file,
            proxy=self.proxy,
            **common,
        )

    @contextmanager
    def open(self) -> Iterator[tuple[AsyncLLMClient, str | None]]:
        """
        Yield the client, and for ``local``, with the embedded model running until the block ends, the model's name.

        Raises:
            ConfigError: A setting cannot work.
        """
        if self.type != "local":
            yield self.make(), None
            return
        from nemo_llm_stage.embedded.local_server import LocalServer

        with LocalServer(Path(self.gguf) if self.gguf else None) as server:
            client = AsyncHTTPClient(
                server.base_url,
                max_concurrent_requests=self.limit,
                max_retries=self.max_retries,
                base_delay=self.base_delay,
                timeout=max(self.timeout, LOCAL_TIMEOUT_S),
            )
            yield client, server.model
