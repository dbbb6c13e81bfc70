"""
A generated column's definition: what is sent to which client, and what becomes of the answer.

Settings only. Knows nothing of event loops, tables or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from nemo_llm_stage.client.credentials import without_request_secrets
from nemo_llm_stage.client.llm_client import ConversationFormatter, GenerationConfig
from nemo_llm_stage.core import RowResult
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.output import Output, split_reasoning
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.rows.adjust import with_request_kwargs
from nemo_llm_stage.rows.parameters import Parameters
from nemo_llm_stage.rows.policy import RecoveryPolicy
from nemo_llm_stage.rows.query import describe_formatter
from nemo_llm_stage.text import encodable

Row = Mapping[str, Any]
"""Column name → value. Reading a value that has no Python form may raise `PromptError`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """
    The definition of one generated column. Immutable, can be pickled; equal only to itself.

    Attributes:
        name: The output column.
        client: What the user gave; columns with the same object share its limit.
        model: The model's name on the server.
        prompt: Makes the messages from a row.
        output: Makes a value from each answer.
        parameters: The generation parameters, some of which may come from the row.
        deduplicate: Whether identical requests are sent once and share the answer.
        conversation_formatter: Renders messages for a base model; None for a chat model.
        policy: What is done about unusable answers and overlong prompts.
        give_up_after_s: Seconds for which transient failures are retried; None: 6 hours in a job, 0 elsewhere.
        has_meta: Whether there is a column ``X_meta``.
        field_columns: Whether the fields of a structured answer become columns ``X_field`` in place of X.
        reasoning_column: Whether there is a column ``X_reasoning``.
        explode: Whether each of several answers becomes a row.

    Raises:
        ConfigError: Settings that cannot go together.
    """

    name: str
    client: Any = field(repr=False)
    model: str
    prompt: Prompt
    output: Output
    parameters: Parameters
    deduplicate: bool
    conversation_formatter: ConversationFormatter | None = None
    policy: RecoveryPolicy = field(default_factory=RecoveryPolicy)
    give_up_after_s: float | None = None
    has_meta: bool = True
    field_columns: bool = False
    reasoning_column: bool = False
    explode: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("output_column is empty; name the column to add.")
        if not self.model:
            raise ConfigError("model is empty; give the model's name on the server (see its /v1/models).")
        if self.policy.on_truncated == "continue" and self.is_list:
            raise ConfigError("on_truncated: continue is for one answer a row; n is above 1.")
        if self.explode and not self.is_list:
            raise ConfigError("explode is for several answers a row; set n in generation_config above 1.")
        if self.field_columns and not pa.types.is_struct(self.output.arrow_type):
            raise ConfigError(f"field_columns needs an answer with fields; {self.name} is {self.output.arrow_type}.")

    @property
    def generation_config(self) -> GenerationConfig:
        """The parameters of a row's first request, with those that ask the server for the output's form."""
        return with_request_kwargs(self.parameters.config, self.output.request_kwargs())

    @property
    def is_list(self) -> bool:
        """Whether a row has several answers: n is above 1."""
        return (self.parameters.config.n or 1) > 1

    @property
    def required_columns(self) -> frozenset[str]:
        """The columns that the prompt and the parameters mention, generated ones included."""
        return self.prompt.required_columns | self.parameters.required_columns

    @property
    def parts(self) -> dict[str, str]:
        """Written column → field of the answer, where fields are columns of their own; else empty."""
        return {f"{self.name}_{part.name}": part.name for part in self.output.arrow_type} if self.field_columns else {}

    @property
    def answers(self) -> tuple[str, ...]:
        """The written columns that later prompts and `keep_if` may use."""
        reasoning = (f"{self.name}_reasoning",) if self.reasoning_column else ()
        return (*(self.parts or (self.name,)), *reasoning)

    def values(self, result: RowResult) -> dict[str, Any]:
        """Return what later prompts and `keep_if` see of a result: name → value, for each of `answers`."""
        if not self.field_columns:
            values = {self.name: result.value}
        elif self.is_list:
            items = [item or {} for item in result.value or ()]
            values = {name: [item.get(part) for item in items] for name, part in self.parts.items()}
        else:
            values = {name: (result.value or {}).get(part) for name, part in self.parts.items()}
        if self.reasoning_column:
            values[f"{self.name}_reasoning"] = self.reasoning_of(result)
        return values

    def reasoning_of(self, result: RowResult) -> Any:
        """Return the thinking before the answer, a list of them where `is_list`; None where there was no answer."""
        completion = result.completion
        if completion is None:
            return None
        told = (*completion.reasoning, *[None] * len(completion.texts))
        pairs = zip(told, completion.texts, strict=False)
        thoughts = [encodable(thinking or split_reasoning(text)[0]) for thinking, text in pairs]
        return thoughts if self.is_list else thoughts[0]

    def describe(self, keep_if: str | None = None) -> dict[str, Any]:
        """
        Return everything that decides what the answers are, as JSON-able values, without secrets.

        Args:
            keep_if: The expression of a stage that has this column alone.
        """
        return {
            "model": self.model,
            "prompt": self.prompt.describe(),
            "output": self.output.describe(),
            "output_column": self.name,
            "generation_config": without_request_secrets(asdict(self.generation_config) | self.parameters.expressions),
            "conversation_formatter": describe_formatter(self.conversation_formatter),
            "has_meta": self.has_meta,
            "field_columns": self.field_columns,
            "reasoning_column": self.reasoning_column,
            "explode": self.explode,
            "keep_if": keep_if,
            "recovery": asdict(self.policy),
        }
