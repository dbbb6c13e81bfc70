"""
The settings of one generated column: the prompt, how the model generates, and what the answer must be.

Knows the settings' names, types and defaults; the stage is the stage room's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from nemo_llm_stage.client.formatters import HFChatTemplateFormatter, PlainFormatter
from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig
from nemo_llm_stage.config.answers import AnswerConfig, Section, Settings, TextAnswer, defaults_of, with_type
from nemo_llm_stage.config.clients import ClientConfig
from nemo_llm_stage.config.named_values import refuse_secrets
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.rows.policy import OnOverflow, OnTruncated
from nemo_llm_stage.stage.llm_stage import LLMStage


def _expression_or_none(kind: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if isinstance(value, str) and "{{" not in value:
            raise ValueError(f'Input should be a valid {kind}, or an expression, e.g. "{{{{ column }}}}"')
        return value

    return AfterValidator(check)


_Integer = Annotated[int | str | None, _expression_or_none("integer")]
_Number = Annotated[float | str | None, _expression_or_none("number")]


_GENERATION = GenerationConfig()
_PROMPT = defaults_of(Prompt)
_STAGE = defaults_of(LLMStage)


class GenerationSettings(Settings):
    """How the model generates; a number may be an expression over the row's columns, e.g. ``"{{ temperature }}"``."""

    section: ClassVar[str] = "Generation"

    max_tokens: _Integer = _GENERATION.max_tokens
    n: int | None = _GENERATION.n
    seed: _Integer = _GENERATION.seed
    stop: str | list[str] | None = _GENERATION.stop
    stream: bool = _GENERATION.stream
    temperature: _Number = _GENERATION.temperature
    top_k: _Integer = _GENERATION.top_k
    top_p: _Number = _GENERATION.top_p
    extra_kwargs: dict[str, Any] | None = _GENERATION.extra_kwargs

    @field_validator("extra_kwargs")
    @classmethod
    def _holds_no_secret(cls, extra_kwargs: Any, info: ValidationInfo) -> Any:
        refuse_secrets(extra_kwargs or {}, info)
        return extra_kwargs


class PromptSettings(Settings):
    """
    What the model is given.

    Attributes:
        model: The model's name on the server; ``local`` needs none.
        prompt: The user's turn: a Jinja2 template over the columns, e.g. ``Summarize: {{ text }}``.
        prompt_file: File that holds the template, instead of `prompt`.
        system_prompt: The system turn; also a template.
        system_prompt_file: File that holds the system turn's template.
        messages: Turns before the user's turn, e.g. examples: a list of ``{role: …, content: template}``.
        messages_column: Column that holds chat turns; they come before the prompt, or replace it.
        images: Columns of images: bytes, paths or URLs.
        images_root: Folder that image files may be read from; relative paths start there. Without it no file is read.
        allow_remote_urls: Whether to pass image URLs on, for the server to fetch.
        max_image_bytes: Largest image to send, in bytes.
        on_null: What to do with a row whose prompt uses a null: ``skip`` it, fail it (``error``), or use an ``empty``
            text.
        skip_when: Expression over the columns, e.g. ``lang != 'en'``. Rows for which it is true are skipped: no
            request is sent.
        conversation_formatter: For base models behind ``/v1/completions``: ``plain``, or the path of a Hugging Face
            tokenizer_config.json, of its folder, or of a .jinja chat template.
        deduplicate: Whether to send identical requests once and share the answer; by default if a request can have
            only one answer.
    """

    section: ClassVar[str] = "Input and prompt"

    model: str | None = None
    prompt: str | None = None
    prompt_file: str | None = None
    system_prompt: str | None = None
    system_prompt_file: str | None = None
    messages: tuple[dict[str, str], ...] = ()
    messages_column: str | None = None
    images: str | tuple[str, ...] = ()
    images_root: str | None = None
    allow_remote_urls: bool = _PROMPT["allow_remote_urls"]
    max_image_bytes: int = Field(default=_PROMPT["max_image_bytes"], ge=1)
    on_null: Literal["skip", "error", "empty"] = _PROMPT["on_null"]
    skip_when: str | None = None
    conversation_formatter: str | None = None
    deduplicate: bool | None = _STAGE["deduplicate"]


class AnswerSettings(Settings):
    """
    What is made of the answer.

    Attributes:
        output_column: Name of the column to add.
        answer: What an answer must be, e.g. one of some labels; text by default.
        field_columns: Whether the fields of a struct become columns of their own, ``X_field``, instead of ``X``.
        reasoning_column: Whether to add the model's thinking as a column, ``X_reasoning``.
        explode: Whether each of several answers (`n`) becomes a row of its own, with its number in ``X_choice``.
        has_meta: Whether to add the column ``X_meta`` with tokens, latency and the like.
        max_reasks: Most further requests for a row whose answer cannot be parsed; each says what is wrong with it.
        on_truncated: What to do with an answer cut off at `max_tokens`: ``accept`` it, fail the row (``error``), ask
            again with twice the tokens (``retry_longer``), or have the model ``continue`` it.
        max_tokens_cap: Most output tokens for ``retry_longer`` and ``continue``; by default 4 times `max_tokens`.
        on_overflow: What to do with a prompt that is too long for the model: fail the row (``error``), leave fewer
            tokens for the answer (``shrink_output``), or cut the longest text at its start, end or middle.
    """

    section: ClassVar[str] = "Answer"

    output_column: str | None = None
    answer: Annotated[AnswerConfig, BeforeValidator(with_type)] = TextAnswer()
    field_columns: bool = _STAGE["field_columns"]
    reasoning_column: bool = _STAGE["reasoning_column"]
    explode: bool = _STAGE["explode"]
    has_meta: bool = _STAGE["has_meta"]
    max_reasks: int = Field(default=_STAGE["max_reasks"], ge=0)
    on_truncated: OnTruncated = _STAGE["on_truncated"]
    max_tokens_cap: int | None = Field(default=_STAGE["max_tokens_cap"], ge=1)
    on_overflow: OnOverflow = _STAGE["on_overflow"]


class ColumnSettings(AnswerSettings, PromptSettings):
    """
    The settings that `ColumnConfig` and a job of one column share.

    Attributes:
        client: How requests are sent: ``http`` is the fast client, ``openai`` uses the openai SDK, ``local`` runs the
            embedded model on this machine.
        generation_config: How the model generates; numbers may be expressions, e.g. ``temperature: "{{ t }}"``.
    """

    client: Annotated[ClientConfig, Section("Server")]
    generation_config: Annotated[GenerationSettings, Section("Generation")] = Field(default_factory=GenerationSettings)

    @field_validator("generation_config", mode="before")
    @classmethod
    def _is_known(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            GenerationConfig.of(value)  # tells where an unknown parameter belongs
        return {} if value is None else value

    @model_validator(mode="after")
    def _has_one_source(self) -> ColumnSettings:
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("give one of prompt and prompt_file")
        if self.system_prompt is not None and self.system_prompt_file is not None:
            raise ValueError("give one of system_prompt and system_prompt_file")
        return self

    def check_whole(self) -> None:
        """
        Check that nothing is missing that every column needs.

        Raises:
            ValueError: Something is missing.
        """
        if self.output_column is None:
            raise ValueError("output_column is missing: the name of the column to add")
        if self.prompt is None and self.prompt_file is None and not self.messages and self.messages_column is None:
            raise ValueError("there is nothing to ask: give prompt, prompt_file, messages or messages_column")
        if not self.model and self.client.type != "local":
            raise ValueError("model is missing: the model's name on the server (see its /v1/models)")

    def make_column(
        self, client: AsyncLLMClient, model: str, *, give_up_after_s: float, keep_if: str | None = None
    ) -> LLMStage:
        """
        Return the stage that adds this column.

        Args:
            client: Sends the requests.
            model: The model's name on the client's server.
            give_up_after_s: See `LLMStage`.
            keep_if: See `LLMStage`.

        Raises:
            ConfigError: A setting cannot work.
        """
        return LLMStage(
            client=client,
            model=model,
            prompt=self._prompt(),
            output_column=self.output_column or "",
            generation_config=self.generation_config.model_dump(),
            parser=self.answer.make(),
            conversation_formatter=self._formatter(),
            give_up_after_s=give_up_after_s,
            deduplicate=self.deduplicate,
            has_meta=self.has_meta,
            field_columns=self.field_columns,
            reasoning_column=self.reasoning_column,
            explode=self.explode,
            keep_if=keep_if,
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
            images_root=self.images_root,
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


class ColumnConfig(ColumnSettings):
    """
    One of several columns of a job; the job's own settings are its defaults.

    A prompt that uses another column, e.g. ``{{ summary }}``, waits for its answer. Keys are those of a job file.
    """

    @model_validator(mode="after")
    def _is_whole(self) -> ColumnConfig:
        self.check_whole()
        return self


_OWN = frozenset(
    {"prompt", "prompt_file", "messages", "messages_column", "images", "output_column", "answer"}
    | {"field_columns", "reasoning_column", "explode"}
)
"""Settings that belong to one column; a job of several columns cannot have them beside `columns`."""


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """
    Return a job's settings with the job's own settings as defaults of each column.

    ``generation_config`` is merged parameter by parameter. A column's ``client`` is never merged, so that no key is
    sent to another server.

    Raises:
        ValueError: Something that belongs to one column stands beside them.
    """
    unset: tuple[Any, ...] = (None, False, (), [], TextAnswer().model_dump())
    beside = sorted(name for name in _OWN & settings.keys() if settings[name] not in unset)
    if beside:
        raise ValueError(f"{beside[0]} cannot be used with `columns`: put it into one of them")
    shared = {name: value for name, value in settings.items() if name in ColumnSettings.model_fields.keys() - _OWN}
    return settings | {"columns": [_filled_up(column, shared) for column in settings["columns"]]}


def _filled_up(column: Any, shared: dict[str, Any]) -> Any:
    if not isinstance(column, dict):
        return column
    shared = dict(shared)
    if {"system_prompt", "system_prompt_file"} & column.keys():
        shared = {name: value for name, value in shared.items() if not name.startswith("system_prompt")}
    own, common = column.get("generation_config"), shared.get("generation_config")
    if isinstance(own, dict) and isinstance(common, dict):
        column = {**column, "generation_config": {**common, **own}}
    return {**shared, **column}
