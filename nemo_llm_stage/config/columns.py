"""
The settings of one generated column: what is asked, how, and what the answer must be.

Knows the settings' names, types and defaults; the stage is the stage room's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from nemo_llm_stage.client.formatters import HFChatTemplateFormatter, PlainFormatter
from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig
from nemo_llm_stage.config.answers import AnswerConfig, Settings, TextAnswer, with_type
from nemo_llm_stage.config.clients import ClientConfig, refuse_secrets
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.prompt.images import MAX_IMAGE_BYTES
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


class GenerationSettings(Settings):
    """How the model generates; a number may be an expression over the row's columns, e.g. ``"{{ temperature }}"``."""

    max_tokens: _Integer = 2048
    n: int | None = 1
    seed: _Integer = 0
    stop: str | list[str] | None = None
    stream: bool = False
    temperature: _Number = 0.0
    top_k: _Integer = None
    top_p: _Number = 0.95
    extra_kwargs: dict[str, Any] | None = None

    @field_validator("extra_kwargs")
    @classmethod
    def _holds_no_secret(cls, extra_kwargs: Any, info: ValidationInfo) -> Any:
        refuse_secrets(extra_kwargs or {}, info)
        return extra_kwargs


class ColumnSettings(Settings):
    """
    What `ColumnConfig` and a job of one column have in common.

    Attributes:
        client: Which server is asked, and how; the word ``local`` stands for ``{type: local}``.
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
        explode: Whether each of n answers becomes a row of its own, with its number in ``X_choice``.
        has_meta: Whether to add the column with tokens, latency and the like.
        max_reasks: Times that a row is asked again with what is wrong with its answer.
        on_truncated: An answer cut off at ``max_tokens``: ``accept``, ``error``, ``retry_longer`` or ``continue``.
        max_tokens_cap: Most output tokens that the last two go up to; None for 4 times ``max_tokens``.
        on_overflow: A prompt that does not fit: ``error``, ``shrink_output`` or ``truncate_input_head``, ``_tail`` …
        generation_config: How the model generates; numbers may be expressions, e.g. ``temperature: "{{ t }}"``.
        deduplicate: Whether identical requests are sent once; None where a request has one answer.
    """

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
    output_column: str | None = None
    answer: Annotated[AnswerConfig, BeforeValidator(with_type)] = TextAnswer()
    field_columns: bool = False
    reasoning_column: bool = False
    explode: bool = False
    has_meta: bool = True
    max_reasks: int = Field(default=2, ge=0)
    on_truncated: OnTruncated = "accept"
    max_tokens_cap: int | None = Field(default=None, ge=1)
    on_overflow: OnOverflow = "error"
    generation_config: GenerationSettings = Field(default_factory=GenerationSettings)
    deduplicate: bool | None = None

    @field_validator("generation_config", mode="before")
    @classmethod
    def _is_known(cls, value: Any) -> Any:
        if not isinstance(value, GenerationSettings):
            GenerationConfig.of(value)  # tells where an unknown parameter belongs
        return {} if value is None else value

    @model_validator(mode="after")
    def _asks_once(self) -> ColumnSettings:
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("give one of prompt and prompt_file")
        if self.system_prompt is not None and self.system_prompt_file is not None:
            raise ValueError("give one of system_prompt and system_prompt_file")
        return self

    def check_whole(self) -> None:
        """
        Check that this is a whole column.

        Raises:
            ValueError: Something that every column has is missing.
        """
        if self.output_column is None:
            raise ValueError("output_column is missing: the name of the column to add")
        if self.prompt is None and self.prompt_file is None and not self.messages and self.messages_column is None:
            raise ValueError("there is nothing to ask: give prompt, prompt_file, messages or messages_column")
        if self.model is None and self.client.type != "local":
            raise ValueError("model is missing: the model's name on the server (see its /v1/models)")

    def make_column(
        self, client: AsyncLLMClient, model: str, *, give_up_after_s: float, keep_if: str | None = None
    ) -> LLMStage:
        """
        Return the stage that adds this column.

        Args:
            client: Asked.
            model: Its name there.
            give_up_after_s: See `LLMStage`.
            keep_if: Likewise.

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
    One of the columns of a job that has several; what is not given here is as the job has it.

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
"""What each column has for itself; a job of several columns cannot have it beside them."""


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """
    Return a job's settings with each of its columns filled up from the job's own.

    ``generation_config`` is filled up parameter by parameter; a column's ``client`` stands for itself, so that no key
    is ever sent to another server.

    Raises:
        ValueError: Something that belongs to one column stands beside them.
    """
    unset: tuple[Any, ...] = (None, False, (), [], TextAnswer().model_dump())
    beside = sorted(name for name in _OWN & settings.keys() if settings[name] not in unset)
    if beside:
        raise ValueError(f"{beside[0]} stands beside columns: put it into one of them")
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
