"""
The settings of a job: one schema for a job file, the command line and Python, and what the settings build.

Knows the settings' names, types and defaults; reading them is `config`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from nemo_llm_stage.client.formatters import HFChatTemplateFormatter, PlainFormatter
from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig
from nemo_llm_stage.dataset.journal import FLUSH_INTERVAL_S
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.job.answer import AnswerConfig, Settings, TextAnswer, with_type
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.prompt.images import MAX_IMAGE_BYTES
from nemo_llm_stage.stage.policy import OnOverflow, OnTruncated
from nemo_llm_stage.stage.stage import LLMStage

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
    def num_at_once(self) -> int:
        """Requests in flight at once, for each actor."""
        return self.max_concurrent_requests or (LOCAL_MAX_CONCURRENT_REQUESTS if self.type == "local" else 64)

    def make(self) -> AsyncLLMClient:
        """
        Return the client; not for ``local``, whose address is known only while it runs.

        Raises:
            ConfigError: A setting cannot work.
        """
        common: dict[str, Any] = {
            "max_concurrent_requests": self.num_at_once,
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


class JobConfig(Settings):
    """
    A whole job. The keys of a job file, and of the command line with dashes.

    Attributes:
        input: Files, globs or folders of Parquet or JSONL.
        output: Folder.
        client: A `ClientConfig`; the word ``local`` stands for ``{type: local}``.
        model: Name on the server; not needed for ``local``.
        prompt: The user's turn: a Jinja2 template over the columns.
        prompt_file: Path of a file with the template, in place of `prompt`.
        system_prompt: The system turn, likewise a template.
        system_prompt_file: Path of a file with it.
        messages: Turns before the user's, e.g. examples: a list of ``{role: …, content: template}``.
        messages_column: A column that holds chat turns.
        images: Columns of images: bytes, paths or URLs.
        allow_remote_urls: Whether image URLs are passed on for the server to fetch.
        max_image_bytes: The largest image sent.
        on_null: What becomes of a row whose prompt uses a null: ``skip``, ``error`` or ``empty``.
        skip_when: Expression over the columns; rows for which it is true are left unasked.
        conversation_formatter: For base models behind ``/v1/completions``: ``plain``, or the path of a Hugging Face
            tokenizer_config.json, of its folder, or of a .jinja chat template.
        output_column: The column to add.
        answer: What an answer must be; see there. Text, if not given.
        field_columns: Whether the fields of a struct become columns of their own, ``X_field``, in place of ``X``.
        reasoning_column: Whether to add the model's thinking as a column of its own.
        has_meta: Whether to add the column with tokens, latency and the like.
        max_reasks: Times that a row is asked again with what is wrong with its answer.
        on_truncated: An answer cut off at ``max_tokens``: ``accept``, ``error``, ``retry_longer`` or ``continue``.
        max_tokens_cap: Most output tokens that the last two go up to; None for 4 times ``max_tokens``.
        on_overflow: A prompt that does not fit: ``error``, ``shrink_output`` or ``truncate_input_head``, ``_tail`` …
        generation_config: How the model generates.
        deduplicate: Whether identical requests are sent once; None where a request has one answer.
        give_up_after: Seconds that a row is asked again after failures that may pass; 0 fails it at once.
        engine: ``ray`` or ``local``.
        actors: Workers, in actors of Ray, each with a client and a limit of its own.
        num_cpus_per_actor: Reserved in Ray.
        address: Ray cluster; None takes ``RAY_ADDRESS`` or starts Ray here.
        output_format: ``parquet`` or ``jsonl``.
        rows_per_partition: Rows of one output file; None takes about 64 files of 128 to 10,000 rows.
        scan_input: How much of a JSONL input is read for its types beforehand.
        on_bad_input: A damaged file or a broken line: ``stop``, or ``skip`` leaves it out and writes it down.
        max_failed_rows: Stops the run at so many failed rows (an int), or at this fraction (0.05, from 200 rows on).
        keep_raw: Keep the raw answers beside the output, so that a changed parser needs no request.
        flush_interval: Seconds between the journal's objects on an object store: younger answers die with a worker.
    """

    input: str | tuple[str, ...]
    output: str
    client: ClientConfig
    model: str | None = None
    prompt: str | None = None
    prompt_file: str | None = None
    system_prompt: str | None = None
    system_prompt_file: str | None = None
    messages: tuple[dict[str, str], ...] = ()
    messages_column: str | None = None
    images: str | tuple[str, ...] = ()
    allow_remote_urls: bool = False
    max_image_bytes: int = Field(default=MAX_IMAGE_BYTES, ge=1)
    on_null: Literal["skip", "error", "empty"] = "skip"
    skip_when: str | None = None
    conversation_formatter: str | None = None
    output_column: str
    answer: Annotated[AnswerConfig, BeforeValidator(with_type)] = TextAnswer()
    field_columns: bool = False
    reasoning_column: bool = False
    has_meta: bool = True
    max_reasks: int = Field(default=2, ge=0)
    on_truncated: OnTruncated = "accept"
    max_tokens_cap: int | None = Field(default=None, ge=1)
    on_overflow: OnOverflow = "error"
    generation_config: GenerationConfig = Field(default_factory=GenerationConfig)
    deduplicate: bool | None = None
    give_up_after: float = Field(default=6 * 3600.0, ge=0)
    engine: Literal["ray", "local"] = "ray"
    actors: int = Field(default=1, ge=1)
    num_cpus_per_actor: float = Field(default=0.5, gt=0)
    address: str | None = None
    output_format: Literal["parquet", "jsonl"] = "parquet"
    rows_per_partition: int | None = Field(default=None, ge=1)
    scan_input: Literal["auto", "full", "sample"] = "auto"
    on_bad_input: Literal["stop", "skip"] = "stop"
    max_failed_rows: int | float | None = 0.05
    keep_raw: bool = False
    flush_interval: float = Field(default=FLUSH_INTERVAL_S, gt=0)

    @field_validator("client", mode="before")
    @classmethod
    def _by_word(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @field_validator("generation_config", mode="before")
    @classmethod
    def _is_known(cls, value: Any) -> Any:
        GenerationConfig.of(value)  # pydantic takes unknown keys of a dataclass, and knows no nearest one
        return {} if value is None else value

    @model_validator(mode="after")
    def _is_whole(self) -> JobConfig:
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("give one of prompt and prompt_file")
        if self.system_prompt is not None and self.system_prompt_file is not None:
            raise ValueError("give one of system_prompt and system_prompt_file")
        if self.prompt is None and self.prompt_file is None and not self.messages and self.messages_column is None:
            raise ValueError("there is nothing to ask: give prompt, prompt_file, messages or messages_column")
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
            yield self.make_stage(self.client.make())
            return
        self.make_stage()  # refuses wrong settings before a model is started for them
        from nemo_llm_stage.local.server import LocalServer

        with LocalServer(Path(self.client.gguf) if self.client.gguf else None) as server:
            client = AsyncHTTPClient(
                server.base_url,
                max_concurrent_requests=self.client.num_at_once,
                max_retries=self.client.max_retries,
                base_delay=self.client.base_delay,
                timeout=max(self.client.timeout, LOCAL_TIMEOUT_S),
            )
            yield self.make_stage(client, self.model or server.model)

    def make_stage(self, client: AsyncLLMClient | None = None, model: str | None = None) -> LLMStage:
        """
        Return the stage.

        Args:
            client: What it asks; None makes one that renders prompts but has nobody to ask.
            model: None takes the setting.

        Raises:
            ConfigError: A setting cannot work.
        """
        return LLMStage(
            client=client or AsyncHTTPClient("http://nobody.invalid/v1"),
            model=model or self.model or "local",
            prompt=self._prompt(),
            output_column=self.output_column,
            generation_config=self.generation_config,
            parser=self.answer.make(),
            conversation_formatter=self._formatter(),
            give_up_after_s=self.give_up_after,
            deduplicate=self.deduplicate,
            has_meta=self.has_meta,
            field_columns=self.field_columns,
            reasoning_column=self.reasoning_column,
            max_reasks=self.max_reasks,
            on_truncated=self.on_truncated,
            max_tokens_cap=self.max_tokens_cap,
            on_overflow=self.on_overflow,
        )

    def _prompt(self) -> Prompt:
        return Prompt(
            Path(self.prompt_file) if self.prompt_file else self.prompt,
            system_prompt=Path(self.system_prompt_file) if self.system_prompt_file else self.system_prompt,
            messages=self.messages,
            messages_column=self.messages_column,
            images=self.images,
            allow_remote_urls=self.allow_remote_urls,
            max_image_bytes=self.max_image_bytes,
            on_null=self.on_null,
            skip_when=self.skip_when,
        )

    def _formatter(self) -> ConversationFormatter | None:
        if self.conversation_formatter is None:
            return None
        is_plain = self.conversation_formatter == "plain"
        return PlainFormatter() if is_plain else HFChatTemplateFormatter(self.conversation_formatter)
