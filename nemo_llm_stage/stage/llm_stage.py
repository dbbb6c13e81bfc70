"""
LLMStage: the user's door to a stage of one column.

Knows the settings' names and defaults; what they mean is `Column`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from nemo_llm_stage.client.llm_client import ConversationFormatter, GenerationConfig
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.output import output_of
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.rows.column import Column
from nemo_llm_stage.rows.parameters import Parameters
from nemo_llm_stage.rows.policy import OnOverflow, OnTruncated, RecoveryPolicy
from nemo_llm_stage.stage.stage import Stage


class LLMStage(Stage):
    """
    Adds the columns ``X``, ``X_error``, ``X_skipped`` and ``X_meta`` to a table, X being `output_column`.

    The same rows come out in the same order. A row that fails is a value: its ``X`` is null and its ``X_error`` says
    ``kind: message``. If it was skipped, ``X_skipped`` says why. Only a run that cannot succeed raises. Can be pickled
    at any time; what it holds open stays here.

    With n above 1, ``X`` is a list of n answers. Answers that the server leaves out are fetched one by one; surplus
    ones are dropped. An answer that was filtered or cannot be parsed is null in the list, and ``X_error`` names it as
    ``kind: choice i: message``; the others are kept. So ``X_error`` is set exactly where ``X`` or one of its items is
    null. The list itself is null if no answer is left.

    Args:
        client: An `AsyncLLMClient` (the fast one is `AsyncHTTPClient`), an `LLMClient`, or any object with `setup` and
            `query_model`.
        model: The model's name on the server.
        prompt: A Jinja2 template over the row's columns, a function from a row to text or messages, or a `Prompt`.
        output_column: Name of the new column.
        system_prompt: A template too; None for no system message.
        generation_config: A `GenerationConfig`, a dict of its parameters, or None for the defaults. In a dict a
            parameter that is a number may be an expression over the row's columns, e.g. ``"{{ temperature }}"``.
        parser: Makes a value from each text: a list of labels, a JSON Schema, a pydantic model, a compiled pattern, a
            function ``str -> value``, an `Output`, or None for the text itself.
        output_type: Arrow type of the values of a function or a pattern; string if not given.
        conversation_formatter: Renders messages for a base model behind ``/v1/completions``.
        give_up_after_s: Seconds for which a row's transient failures are retried, beyond the client's own retries; 0
            fails the row at once. None is 6 hours in a job, which keeps its answers, and 0 elsewhere.
        deduplicate: Whether identical requests are sent once and share the answer; None does so where a request has
            one answer: at temperature 0 or with a seed.
        has_meta: Whether to add ``X_meta``.
        field_columns: Whether the fields of an answer in JSON, or of named groups, become columns of their own,
            ``X_field``, in place of the struct ``X``.
        reasoning_column: Whether to add ``X_reasoning``, the thinking before the answer: the server's separate
            reasoning, or the text between ``<think>`` and ``</think>``, which `parser` then does not see.
        explode: Whether each of several answers (n above 1) becomes a row of its own: X holds one answer, and
            ``X_choice`` its number from 0. An answer that is null has no row; if all are, one row has
            the error.
        keep_if: An expression over columns and the answer; rows for which it is false are dropped and counted. A row
            without an answer is kept.
        max_reasks, on_truncated, max_tokens_cap, on_overflow: See `RecoveryPolicy`.

    Raises:
        ConfigError: A setting that cannot work, e.g. a template with a syntax error.
    """

    def __init__(
        self,
        *,
        client: Any,
        model: str,
        prompt: str | Callable[[Mapping[str, Any]], Any] | Prompt,
        output_column: str,
        system_prompt: str | None = None,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
        parser: Any = None,
        output_type: pa.DataType | None = None,
        conversation_formatter: ConversationFormatter | None = None,
        give_up_after_s: float | None = None,
        deduplicate: bool | None = None,
        has_meta: bool = True,
        field_columns: bool = False,
        reasoning_column: bool = False,
        explode: bool = False,
        keep_if: str | None = None,
        max_reasks: int = 2,
        on_truncated: OnTruncated = "accept",
        max_tokens_cap: int | None = None,
        on_overflow: OnOverflow = "error",
    ) -> None:
        if isinstance(prompt, Prompt) and system_prompt is not None:
            raise ConfigError("give system_prompt to the Prompt, not beside it.")
        parameters = Parameters(generation_config)
        self.column = Column(
            name=output_column,
            client=client,
            model=model,
            prompt=prompt if isinstance(prompt, Prompt) else Prompt(prompt, system_prompt=system_prompt),
            output=output_of(parser, output_type),
            parameters=parameters,
            deduplicate=parameters.is_repeatable if deduplicate is None else deduplicate,
            conversation_formatter=conversation_formatter,
            policy=RecoveryPolicy(
                max_reasks=max_reasks,
                on_truncated=on_truncated,
                max_tokens_cap=max_tokens_cap,
                on_overflow=on_overflow,
            ),
            give_up_after_s=give_up_after_s,
            has_meta=has_meta,
            field_columns=field_columns,
            reasoning_column=reasoning_column,
            explode=explode,
        )
        super().__init__([self.column], keep_if)

    @property
    def output_column(self) -> str:
        """Name of the new column."""
        return self.column.name

    @property
    def client(self) -> Any:
        """The client as it was given."""
        return self.column.client

    def describe(self) -> dict[str, Any]:
        """Return everything that decides what the answers are, as JSON-able values, without secrets."""
        return self.column.describe(None if self.keep_if is None else self.keep_if.source)

    def __repr__(self) -> str:
        """Without the client: it may hold a key."""
        return f"LLMStage(output_column={self.column.name!r}, model={self.column.model!r})"
