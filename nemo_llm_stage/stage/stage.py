"""
LLMStage: a table in, the same rows and new columns out.

Holds one client, one limit and one event loop for its life, shared by all calls and threads. No files, no Ray.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, overload

import orjson
import pyarrow as pa

from nemo_llm_stage.client.adapt import as_async_client
from nemo_llm_stage.client.llm_client import ConversationFormatter, GenerationConfig
from nemo_llm_stage.core import RowResult
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.output import Output, output_of
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.stage.adjust import with_request_kwargs
from nemo_llm_stage.stage.ask import Asker, Row
from nemo_llm_stage.stage.columns import OutputColumns
from nemo_llm_stage.stage.health import Health
from nemo_llm_stage.stage.memo import Memo
from nemo_llm_stage.stage.policy import OnOverflow, OnTruncated, RecoveryPolicy
from nemo_llm_stage.stage.query import CompletionStore, Querier, describe_formatter, terms_of
from nemo_llm_stage.stage.runtime import OnDone, Runtime
from nemo_llm_stage.stage.table import column_names, rows_of, with_columns

if TYPE_CHECKING:
    import pandas as pd
    import ray.data


class LLMStage:
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
        generation_config: A `GenerationConfig`, a dict of its parameters, or None for the defaults.
        parser: Makes a value from each text: a list of labels, a JSON Schema, a pydantic model, a compiled pattern, a
            function ``str -> value``, an `Output`, or None for the text itself.
        output_type: Arrow type of what a function or a pattern gives; string if not given.
        conversation_formatter: Renders messages for a base model behind ``/v1/completions``.
        give_up_after_s: Seconds that a row is asked again, beyond the client's own retries, after failures that may
            pass; 0 fails it at once.
        deduplicate: Whether identical requests are sent once and share the answer; None does so where a request has
            one answer: at temperature 0 or with a seed.
        has_meta: Whether to add ``X_meta``.
        field_columns: Whether the fields of an answer in JSON, or of named groups, become columns of their own,
            ``X_field``, in place of the struct ``X``.
        reasoning_column: Whether to add ``X_reasoning``, the thinking that came before the answer: what the server
            tells apart, or what stands between ``<think>`` and ``</think>``, which `parser` then does not see.
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
        give_up_after_s: float = 0.0,
        deduplicate: bool | None = None,
        has_meta: bool = True,
        field_columns: bool = False,
        reasoning_column: bool = False,
        max_reasks: int = 2,
        on_truncated: OnTruncated = "accept",
        max_tokens_cap: int | None = None,
        on_overflow: OnOverflow = "error",
    ) -> None:
        if not output_column:
            raise ConfigError("output_column is empty; name the column to add.")
        if not model:
            raise ConfigError("model is empty; give the model's name on the server (see its /v1/models).")
        if isinstance(prompt, Prompt) and system_prompt is not None:
            raise ConfigError("give system_prompt to the Prompt, not beside it.")
        self.client = client
        self.model = model
        self.prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt, system_prompt=system_prompt)
        self.output_column = output_column
        self.output: Output = output_of(parser, output_type)
        self._own_config = GenerationConfig.of(generation_config)
        self.generation_config = with_request_kwargs(self._own_config, self.output.request_kwargs())
        self.conversation_formatter = conversation_formatter
        self.give_up_after_s = give_up_after_s
        if deduplicate is None:
            deduplicate = self.generation_config.temperature == 0 or self.generation_config.seed is not None
        self.deduplicate = deduplicate
        self.has_meta = has_meta
        self.field_columns = field_columns
        self.reasoning_column = reasoning_column
        self.policy = RecoveryPolicy(
            max_reasks=max_reasks,
            on_truncated=on_truncated,
            max_tokens_cap=max_tokens_cap,
            on_overflow=on_overflow,
        )
        is_list = (self.generation_config.n or 1) > 1
        if on_truncated == "continue" and is_list:
            raise ConfigError("on_truncated: continue is for one answer a row; n is above 1.")
        self._columns = OutputColumns(
            output_column,
            self.output.arrow_type,
            is_list=is_list,
            by_field=field_columns,
            has_reasoning=reasoning_column,
            has_meta=has_meta,
        )
        self._client = as_async_client(client)
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None

    @property
    def fields(self) -> list[pa.Field]:
        """The fields this stage adds, in order."""
        return self._columns.fields

    def check_columns(self, available: Sequence[str]) -> None:
        """
        Refuse, before anything is asked, an input that the prompt or the output columns do not fit.

        Raises:
            InputError: The prompt needs a column that is not there; the message names the nearest one.
            ConfigError: A column to be added is there already.
        """
        self.prompt.check_columns(available)
        for field in self.fields:
            if field.name in available:
                raise ConfigError(
                    f"the input already has a column {field.name!r}; choose another output_column, or drop it first."
                )

    @overload
    def process(self, table: pd.DataFrame) -> pd.DataFrame: ...

    @overload
    def process(self, table: pa.Table) -> pa.Table: ...

    def process(self, table: Any) -> Any:
        """
        Return `table` with this stage's columns added. Does not change `table`.

        May be called from a plain program, a notebook with a running loop, a Ray worker, and from several threads at
        once: all calls share one limit, and the rows of one fill the gaps of the other.

        Args:
            table: pandas DataFrame or Arrow table with the columns that the prompt uses.

        Raises:
            InputError: A column is missing.
            FatalError: The server refuses every request: wrong key, no such model.
            RunError: The first rows were all refused. Nothing is raised for single rows.
        """
        self.check_columns(column_names(table))
        results = self.submit(self.rows_of(table)).result()
        return self.add_columns(table, results)

    def map(self, dataset: ray.data.Dataset, **options: Any) -> ray.data.Dataset:
        """Return a Ray Data Dataset with this stage's columns; `options` are those of `cluster.dataset.map_dataset`."""
        from nemo_llm_stage.cluster.dataset import map_dataset

        return map_dataset(self, dataset, **options)

    def rows_of(self, table: Any) -> list[dict[str, Any]]:
        """Return the table's rows, with the columns that the prompt needs."""
        return rows_of(table, None if self.prompt.needs_all_columns else sorted(self.prompt.required_columns))

    def submit(
        self, rows: Sequence[Row], *, store: CompletionStore | None = None, on_done: OnDone | None = None
    ) -> concurrent.futures.Future[list[RowResult]]:
        """
        Start asking `rows` and return at once; the future gives their results in order.

        Args:
            rows: Column name → value.
            store: Answers already paid for; looked up and told, on the event loop.
            on_done: Called on the event loop with each result as it comes.
        """
        runtime = self._start()
        return runtime.loop.submit(runtime.ask_all(rows, store, on_done))

    def add_columns(self, table: Any, results: Sequence[RowResult]) -> Any:
        """Return `table` with the columns that `results` make. A value that does not fit the type fails its row."""
        return with_columns(table, self.fields, self._columns.arrays(results))

    def check_server(self) -> None:
        """
        Find out, before anything is paid for, whether the server can be asked.

        Raises:
            FatalError: The key or the model is wrong.
            TransientError: The server cannot be reached.
        """
        runtime = self._start()
        runtime.loop.run(self._client.check(self.model))

    @property
    def num_in_flight(self) -> int:
        """Requests in flight now."""
        return 0 if self._runtime is None else self._runtime.num_in_flight

    @property
    def num_started(self) -> int:
        """Rows started since the stage was opened."""
        return 0 if self._runtime is None else self._runtime.num_started

    @property
    def trouble(self) -> str | None:
        """The error for which a row was put off in the last seconds, as ``kind: message``; None where all is well."""
        return None if self._runtime is None else self._runtime.trouble

    def describe(self) -> dict[str, Any]:
        """Return everything that decides what the answers are, as JSON-able values, without secrets."""
        return {
            "model": self.model,
            "prompt": self.prompt.describe(),
            "output": self.output.describe(),
            "output_column": self.output_column,
            "generation_config": asdict(self.generation_config),
            "conversation_formatter": describe_formatter(self.conversation_formatter),
            "has_meta": self.has_meta,
            "field_columns": self.field_columns,
            "reasoning_column": self.reasoning_column,
            "recovery": asdict(self.policy),
        }

    @property
    def fingerprint(self) -> str:
        """Hash of `describe`: two stages with the same one write the same columns."""
        text = orjson.dumps(self.describe(), option=orjson.OPT_SORT_KEYS, default=repr)
        return hashlib.blake2b(text, digest_size=16).hexdigest()

    def close(self) -> None:
        """Close connections and stop the event loop. The stage can be used again after. Safe to call twice."""
        with self._lock:
            runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.close()

    def _start(self) -> Runtime:
        with self._lock:
            if self._runtime is None:
                self._runtime = Runtime(self._client, self._make_asker)
            return self._runtime

    def _make_asker(self, health: Health) -> Asker:
        memo = Memo() if self.deduplicate else None
        return Asker(
            Querier(self._client, give_up_after_s=self.give_up_after_s, health=health, memo=memo),
            terms_of(self.model, self.generation_config, self.conversation_formatter),
            prompt=self.prompt,
            output=self.output,
            unguided=self._own_config,
            policy=self.policy,
            hides_reasoning=self.reasoning_column,
            health=health,
        )

    def __repr__(self) -> str:
        """Without the client: it may hold a key."""
        return f"LLMStage(output_column={self.output_column!r}, model={self.model!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is open in this process."""
        return {name: value for name, value in self.__dict__.items() if name not in {"_lock", "_runtime", "_client"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start closed; everything opens at first use."""
        self.__dict__.update(state)
        self._client = as_async_client(self.client)
        self._lock = threading.Lock()
        self._runtime = None
