"""
LLMStage: one prompt, one generated column.

Knows settings; asking is `ask`'s, running is `base`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from nemo_llm_stage.client.adapt import as_async_client
from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.output import Output, output_of
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.rows.adjust import with_request_kwargs
from nemo_llm_stage.rows.ask import Asker
from nemo_llm_stage.rows.health import Health
from nemo_llm_stage.rows.memo import Memo
from nemo_llm_stage.rows.parameters import Parameters
from nemo_llm_stage.rows.policy import OnOverflow, OnTruncated, RecoveryPolicy
from nemo_llm_stage.rows.query import Querier, describe_formatter
from nemo_llm_stage.stage.base import Stage
from nemo_llm_stage.stage.output_columns import OutputColumns


class LLMStage(Stage):
    """
    Adds the columns ``X``, ``X_error`` and ``X_meta`` to a table, X being `output_column`.

    The same rows come out in the same order. A row that fails is a value: its ``X`` is null and its ``X_error`` says
    ``kind: message``; only a run that cannot succeed raises. Can be pickled at any time; what it holds open stays here.

    Args:
        client: An `AsyncLLMClient` (the fast one is `AsyncHTTPClient`), an `LLMClient`, or any object with `setup` and
            `query_model`.
        model: The model's name on the server.
        prompt: A Jinja2 template over the row's columns, a function from a row to text or messages, or a `Prompt`.
        output_column: Name of the new column.
        system_prompt: Likewise a template; None for no system message.
        generation_config: A `GenerationConfig`, a dict of its parameters, or None for the defaults. In a dict a
            parameter that is a number may be an expression over the row's columns, e.g. ``"{{ temperature }}"``.
        parser: Makes a value from each text: a list of labels, a JSON Schema, a pydantic model, a compiled pattern, a
            function ``str -> value``, an `Output`, or None for the text itself.
        output_type: Arrow type of what a function or a pattern gives; string if not given.
        conversation_formatter: Renders messages for a base model behind ``/v1/completions``.
        give_up_after_s: Seconds that a row is asked again, beyond the client's own retries, after failures that may
            pass; 0 fails it at once. None is 6 hours in a job, which keeps its answers, and 0 elsewhere.
        deduplicate: Whether identical requests are sent once and share the answer; None does so where a request has
            one answer: at temperature 0 or with a seed.
        has_meta: Whether to add ``X_meta``.
        field_columns: Whether the fields of an answer in JSON, or of named groups, become columns of their own,
            ``X_field``, in place of the struct ``X``.
        reasoning_column: Whether to add ``X_reasoning``, the thinking that came before the answer: what the server
            tells apart, or what stands between ``<think>`` and ``</think>``, which `parser` then does not see.
        explode: Whether each of several answers (n above 1) becomes a row of its own: X holds one answer, and
            ``X_choice`` its number from 0.
        keep_if: An expression over columns and the answer; rows for which it is false are dropped and counted. A row
            without an answer stays.
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
        super().__init__(keep_if)
        if not output_column:
            raise ConfigError("output_column is empty; name the column to add.")
        if not model:
            raise ConfigError("model is empty; give the model's name on the server (see its /v1/models).")
        if isinstance(prompt, Prompt) and system_prompt is not None:
            raise ConfigError("give system_prompt to the Prompt, not beside it.")
        self.client = client
        self.async_client: AsyncLLMClient = as_async_client(client)
        self.model = model
        self.prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt, system_prompt=system_prompt)
        self.output_column = output_column
        self.output: Output = output_of(parser, output_type)
        self.parameters = Parameters(generation_config)
        self.generation_config = with_request_kwargs(self.parameters.config, self.output.request_kwargs())
        self.conversation_formatter = conversation_formatter
        self.give_up_after_s = give_up_after_s
        self.deduplicate = self.parameters.is_repeatable if deduplicate is None else deduplicate
        self.has_meta = has_meta
        self.field_columns = field_columns
        self.reasoning_column = reasoning_column
        self.explode = explode
        self.policy = RecoveryPolicy(
            max_reasks=max_reasks,
            on_truncated=on_truncated,
            max_tokens_cap=max_tokens_cap,
            on_overflow=on_overflow,
        )
        is_list = (self.generation_config.n or 1) > 1
        if on_truncated == "continue" and is_list:
            raise ConfigError("on_truncated: continue is for one answer a row; n is above 1.")
        self.columns = OutputColumns(
            output_column,
            self.output.arrow_type,
            is_list=is_list,
            is_exploded=explode,
            by_field=field_columns,
            has_reasoning=reasoning_column,
            has_meta=has_meta,
        )
        if self.keep_if is not None:
            self.keep_if.check_types(self.fields)

    @property
    def members(self) -> Sequence[LLMStage]:
        """This one."""
        return (self,)

    def uses(self, member: LLMStage) -> tuple[str, ...]:
        """Return nothing: there is no other column."""
        return ()

    @property
    def own_columns(self) -> frozenset[str]:
        """The columns that the prompt and the parameters mention, generated ones included."""
        return self.prompt.required_columns | self.parameters.required_columns

    def describe(self) -> dict[str, Any]:
        """Return everything that decides what the answers are, as JSON-able values, without secrets."""
        return {
            "model": self.model,
            "prompt": self.prompt.describe(),
            "output": self.output.describe(),
            "output_column": self.output_column,
            "generation_config": asdict(self.generation_config) | self.parameters.expressions,
            "conversation_formatter": describe_formatter(self.conversation_formatter),
            "has_meta": self.has_meta,
            "field_columns": self.field_columns,
            "reasoning_column": self.reasoning_column,
            "explode": self.explode,
            "keep_if": None if self.keep_if is None else self.keep_if.source,
            "recovery": asdict(self.policy),
        }

    def make_asker(self, client: AsyncLLMClient, health: Health, memo: Memo, *, scope: int) -> Asker:
        """
        Return what asks rows for this column.

        Args:
            client: Asked; ready to be used.
            health: Of the server, as this column sees it.
            memo: Where identical requests meet, if this stage wants them to.
            scope: Tells servers apart that go by the same model name.
        """
        memo_used = memo if self.deduplicate else None
        return Asker(
            Querier(client, give_up_after_s=self.give_up_after_s, health=health, memo=memo_used),
            self.model,
            self.generation_config,
            self.conversation_formatter,
            prompt=self.prompt,
            parameters=self.parameters,
            output=self.output,
            policy=self.policy,
            hides_reasoning=self.reasoning_column,
            health=health,
            scope=scope,
        )

    def __repr__(self) -> str:
        """Without the client: it may hold a key."""
        return f"LLMStage(output_column={self.output_column!r}, model={self.model!r})"
