"""
The job file: one schema for YAML, the command line and Python.

Knows the settings' names and what they build; a message to the user names the key and the nearest known one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import AsyncLLMClient, GenerationConfig
from nemo_llm_stage.client.openai_client import AsyncOpenAIClient
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.stage.stage import LLMStage
from nemo_llm_stage.suggest import did_you_mean

LOCAL_MAX_CONCURRENT_REQUESTS = 4
LOCAL_TIMEOUT_S = 600.0


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClientConfig(_Settings):
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


class JobConfig(_Settings):
    """
    A whole job. The keys of a job file, and of the command line with dashes.

    Attributes:
        input: Files, globs or folders of Parquet or JSONL.
        output: Folder.
        client: A `ClientConfig`; the word ``local`` stands for ``{type: local}``.
        model: Name on the server; not needed for ``local``.
        prompt: Jinja2 template over the columns.
        prompt_file: Path of a file with the template, in place of `prompt`.
        system_prompt: Jinja2 template.
        output_column: The column to add.
        generation_config: Parameters of `GenerationConfig`.
        on_null: What becomes of a row whose prompt would print a null: ``skip``, ``error`` or ``empty``.
        give_up_after: Seconds that a row is asked again after failures that may pass; 0 fails it at once.
        engine: ``ray`` or ``local``.
        actors: Ray actors, each with a client and a limit of its own.
        num_cpus_per_actor: Reserved in Ray.
        address: Ray cluster; None takes ``RAY_ADDRESS`` or starts Ray here.
        output_format: ``parquet`` or ``jsonl``.
        rows_per_partition: Rows of one output file; None takes about 64 files of 128 to 10,000 rows.
        scan_input: How much of a JSONL input is read for its types beforehand.
        max_failed_rows: Stops the run at so many failed rows (an int), or at this fraction (0.05, from 200 rows on).
        keep_raw: Keep the raw answers beside the output, so that a changed parser needs no request.
    """

    input: str | tuple[str, ...]
    output: str
    client: ClientConfig
    model: str | None = None
    prompt: str | None = None
    prompt_file: str | None = None
    system_prompt: str | None = None
    output_column: str
    generation_config: dict[str, Any] = Field(default_factory=dict)
    on_null: Literal["skip", "error", "empty"] = "skip"
    give_up_after: float = Field(default=6 * 3600.0, ge=0)
    engine: Literal["ray", "local"] = "ray"
    actors: int = Field(default=1, ge=1)
    num_cpus_per_actor: float = Field(default=0.5, gt=0)
    address: str | None = None
    output_format: Literal["parquet", "jsonl"] = "parquet"
    rows_per_partition: int | None = Field(default=None, ge=1)
    scan_input: Literal["auto", "full", "sample"] = "auto"
    max_failed_rows: int | float | None = 0.05
    keep_raw: bool = False

    @field_validator("client", mode="before")
    @classmethod
    def _by_word(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_whole(self) -> JobConfig:
        if (self.prompt is None) == (self.prompt_file is None):
            raise ValueError("give one of prompt and prompt_file")
        if self.model is None and self.client.type != "local":
            raise ValueError("model is missing: the model's name on the server (see its /v1/models)")
        return self

    @contextmanager
    def open_stage(self) -> Iterator[LLMStage]:
        """
        Build the stage; for ``local``, with the embedded model running until the block ends.

        Raises:
            ConfigError: A setting cannot work.
        """
        if self.client.type != "local":
            yield self._stage(self._client(), self.model or "")
            return
        from nemo_llm_stage.local.server import LocalServer

        with LocalServer(Path(self.client.gguf) if self.client.gguf else None) as server:
            client = AsyncHTTPClient(
                server.base_url,
                max_concurrent_requests=self.client.max_concurrent_requests or LOCAL_MAX_CONCURRENT_REQUESTS,
                max_retries=self.client.max_retries,
                base_delay=self.client.base_delay,
                timeout=max(self.client.timeout, LOCAL_TIMEOUT_S),
            )
            yield self._stage(client, self.model or server.model)

    def _client(self) -> AsyncLLMClient:
        settings = self.client
        common: dict[str, Any] = {
            "max_concurrent_requests": settings.max_concurrent_requests or 64,
            "max_retries": settings.max_retries,
            "base_delay": settings.base_delay,
            "timeout": settings.timeout,
        }
        if settings.type == "openai":
            if not isinstance(settings.base_url, str):
                raise ConfigError("the openai client takes one base_url; use `type: http` for several.")
            return AsyncOpenAIClient(
                base_url=settings.base_url,
                api_key_env=settings.api_key_env,
                api_key_file=settings.api_key_file,
                default_headers=settings.headers or None,
                **common,
            )
        return AsyncHTTPClient(
            settings.base_url or "",
            api_key_env=settings.api_key_env,
            api_key_file=settings.api_key_file,
            headers=settings.headers,
            connect_timeout=settings.connect_timeout,
            ca_file=settings.ca_file,
            proxy=settings.proxy,
            **common,
        )

    def _stage(self, client: AsyncLLMClient, model: str) -> LLMStage:
        options: dict[str, Any] = {"system_prompt": self.system_prompt, "on_null": self.on_null}
        prompt = (
            Prompt.from_file(self.prompt_file, **options) if self.prompt_file else Prompt(self.prompt or "", **options)
        )
        return LLMStage(
            client=client,
            model=model,
            prompt=prompt,
            output_column=self.output_column,
            generation_config=GenerationConfig.of(self.generation_config),
            give_up_after_s=self.give_up_after,
        )


def read_job_file(path: str | Path) -> dict[str, Any]:
    """
    Return the mapping that a YAML job file holds.

    Raises:
        ConfigError: It cannot be read, or is not a YAML mapping; names the line.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the job file {str(path)!r}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the job file {str(path)!r} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"the job file {str(path)!r} is not a mapping of settings.")
    return settings


def make_config(settings: Mapping[str, Any], source: str = "the job") -> JobConfig:
    """
    Return the checked configuration.

    Args:
        settings: As a job file has them.
        source: What to call them in a message.

    Raises:
        ConfigError: One line for each thing that is wrong: the key, what is wrong with it, and the nearest known key.
    """
    _refuse_secrets(settings)
    try:
        return JobConfig.model_validate(settings)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors(include_url=False)]
        raise ConfigError(f"{source} cannot run:\n  " + "\n  ".join(lines)) from error


def _refuse_secrets(settings: Mapping[str, Any]) -> None:
    client = settings.get("client")
    for place in (settings, client if isinstance(client, Mapping) else {}):
        if "api_key" in place:
            raise ConfigError(
                "a key does not belong into a job file or onto a command line: name the environment variable that "
                "holds it with api_key_env, or a file with api_key_file."
            )


def _explain(detail: Any) -> str:
    path = [str(part) for part in detail["loc"] if part not in {"str", "tuple[str, ...]"}]
    name = ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = (ClientConfig if path[0] == "client" and len(path) > 1 else JobConfig).model_fields
        hint = did_you_mean(path[-1], known) or f"known are {', '.join(known)}"
        return f"unknown key {name!r}; {hint}"
    if detail["type"] == "missing":
        return f"{name} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message
