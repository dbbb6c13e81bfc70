"""
What every stage is: a table in, its rows and new columns out, whatever the number of columns.

Holds its clients, their limits and one event loop for its life, shared by all calls and threads. No files, no Ray.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import orjson
import pyarrow as pa

from nemo_llm_stage.client.llm_client import AsyncLLMClient
from nemo_llm_stage.core import Outcome
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.prompt.template import check_columns
from nemo_llm_stage.rows.ask import Row
from nemo_llm_stage.rows.health import Health
from nemo_llm_stage.rows.memo import Memo
from nemo_llm_stage.rows.query import CompletionStore
from nemo_llm_stage.rows.row import AskedColumn, Known, RowAsker
from nemo_llm_stage.stage.extend import Extended, drop, extend
from nemo_llm_stage.stage.interchange import from_any
from nemo_llm_stage.stage.keep import KeepIf
from nemo_llm_stage.stage.runtime import OnDone, Runtime
from nemo_llm_stage.stage.table import column_names, rows_of

if TYPE_CHECKING:
    import ray.data

    from nemo_llm_stage.stage.stage import LLMStage

T = TypeVar("T")


class _Needs(NamedTuple):
    """What a prompt or an expression mentions, and which of it are answers of this stage."""

    user: str
    columns: frozenset[str]
    generated: frozenset[str]


class Stage(ABC):
    """
    Adds generated columns to tables. Can be pickled at any time; what it holds open stays here.

    Args:
        keep_if: An expression over columns and answers; rows for which it is false are dropped. See `KeepIf`.

    Raises:
        ConfigError: It is no expression.
    """

    def __init__(self, keep_if: str | None) -> None:
        self.keep_if = None if keep_if is None else KeepIf(keep_if)
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None

    @property
    @abstractmethod
    def members(self) -> Sequence[LLMStage]:
        """The stages of single columns that this one is made of, in the order of the columns."""

    @abstractmethod
    def uses(self, member: LLMStage) -> tuple[str, ...]:
        """Return the output columns that a member's prompt uses."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return everything that decides what the answers are, as JSON-able values, without secrets."""

    @property
    def output_columns(self) -> tuple[str, ...]:
        """The name of each generated column, without the ones beside it (``_error``, ``_meta`` …)."""
        return tuple(member.output_column for member in self.members)

    @property
    def fields(self) -> list[pa.Field]:
        """The fields this stage adds, in order."""
        return [field for member in self.members for field in member.columns.fields]

    @property
    def changes_num_rows(self) -> bool:
        """Whether the rows that come out may be more or fewer than those that went in."""
        return self.keep_if is not None or any(member.explode for member in self.members)

    @property
    def required_columns(self) -> frozenset[str]:
        """The columns of the input that prompts, parameters and `keep_if` mention."""
        return frozenset[str]().union(*(needs.columns - needs.generated for needs in self._needs()))

    @property
    def needs_all_columns(self) -> bool:
        """Whether a prompt may look at any column."""
        return any(member.prompt.needs_all_columns for member in self.members)

    @property
    def max_concurrent_requests(self) -> int:
        """Requests in flight at once, over all clients."""
        return sum(client.max_concurrent_requests for client in self._clients().values())

    def check_columns(self, available: Sequence[str]) -> None:
        """
        Refuse, before anything is asked, an input that the prompts or the output columns do not fit.

        Raises:
            InputError: A prompt needs a column that is not there; the message names the nearest one.
            ConfigError: A column to be added is there already.
        """
        for needs in self._needs():
            check_columns(needs.columns, [*available, *sorted(needs.generated)], user=needs.user)
        for field in self.fields:
            if field.name in available:
                raise ConfigError(
                    f"the input already has a column {field.name!r}; choose another output_column, or drop it first."
                )

    def process(self, table: T) -> T:
        """
        Return `table` with this stage's columns added. Does not change `table`.

        May be called from a plain program, a notebook with a running loop, a Ray worker, and from several threads at
        once: all calls share one limit, and the rows of one fill the gaps of the other.

        Args:
            table: pandas or polars DataFrame, Arrow table, `datasets.Dataset`, DuckDB relation or RecordBatchReader
                with the columns that the prompts use; the result is of the same kind. Any other object with
                ``__arrow_c_stream__`` gives an Arrow table.

        Raises:
            InputError: A column is missing.
            FatalError: The server refuses every request: wrong key, no such model.
            RunError: The first rows were all refused. Nothing is raised for single rows.
        """
        rows, convert_back = from_any(table)
        self.check_columns(column_names(rows))
        outcomes = self.submit(self.rows_of(rows)).result()
        result: T = convert_back(self.add_columns(rows, outcomes))
        return result

    def map(self, dataset: ray.data.Dataset, **options: Any) -> ray.data.Dataset:
        """Return a Ray Data Dataset with this stage's columns; `options` are those of `cluster.dataset.map_dataset`."""
        from nemo_llm_stage.cluster.dataset import map_dataset

        return map_dataset(self, dataset, **options)

    def rows_of(self, table: Any) -> list[dict[str, Any]]:
        """Return the table's rows, with the columns that the prompts need."""
        return rows_of(table, None if self.needs_all_columns else sorted(self.required_columns))

    def submit(
        self,
        rows: Sequence[Row],
        *,
        known: Sequence[Known] | None = None,
        store: CompletionStore | None = None,
        on_done: OnDone | None = None,
    ) -> concurrent.futures.Future[list[Outcome]]:
        """
        Start asking `rows` and return at once; the future gives their outcomes in order.

        Args:
            rows: Column name → value.
            known: For each row the results of columns that are not to be asked.
            store: Answers already paid for; looked up and told, on the event loop.
            on_done: Called on the event loop with each outcome as it comes.
        """
        runtime = self._start()
        return runtime.loop.submit(runtime.ask_all(rows, known, store, on_done))

    def add_columns(self, table: Any, outcomes: Sequence[Outcome]) -> Any:
        """Return `table` with the columns that `outcomes` make. A value that does not fit the type fails its row."""
        return self.extend(table, outcomes).table

    def extend(self, table: Any, outcomes: Sequence[Outcome]) -> Extended:
        """Return `table` with the columns that `outcomes` make, less the rows that `keep_if` drops."""
        extended = extend(table, outcomes, self.members)
        return extended if self.keep_if is None else drop(extended, outcomes, self.keep_if, self._judged)

    def check_server(self) -> None:
        """
        Find out, before anything is paid for, whether the servers can be asked.

        Raises:
            FatalError: A key or a model is wrong.
            TransientError: A server cannot be reached.
        """
        runtime = self._start()
        clients = self._clients()
        for key, model in {(id(member.client), member.model): None for member in self.members}:
            runtime.loop.run(clients[key].check(model))

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
                self._runtime = self._open()
            return self._runtime

    def _open(self) -> Runtime:
        clients = self._clients()
        places = {key: place for place, key in enumerate(clients)}
        first = {id(member.client) for member in self.members if not self.uses(member)}
        memo = Memo()
        healths = [Health() for _ in self.members]
        columns = []
        for member, health in zip(self.members, healths, strict=True):
            key = id(member.client)
            asker = member.make_asker(clients[key], health, memo, scope=places[key])
            columns.append(AskedColumn(member.output_column, asker, self.uses(member), member.columns.values))
        return Runtime(list(clients.values()), len(first), RowAsker(columns), healths)

    def _clients(self) -> dict[int, AsyncLLMClient]:
        """Return the clients of all members, each once; those that a row's first requests go to come first."""
        members = sorted(self.members, key=lambda member: bool(self.uses(member)))
        clients: dict[int, AsyncLLMClient] = {}
        for member in members:
            clients.setdefault(id(member.client), member.async_client)
        return clients

    def _generated_by(self, columns: Iterable[str]) -> dict[str, str]:
        """Return the answers of these output columns that prompts may use: name → output column."""
        members = [member for member in self.members if member.output_column in set(columns)]
        return {name: member.output_column for member in members for name in member.columns.answers}

    @functools.cached_property
    def _judged(self) -> dict[str, str]:
        """What `keep_if` may use of the answers: name → output column."""
        choices = {f"{member.output_column}_choice": member.output_column for member in self.members if member.explode}
        return self._generated_by(self.output_columns) | choices

    def _needs(self) -> Iterator[_Needs]:
        for member in self.members:
            others = set(self.output_columns) - {member.output_column}
            yield _Needs("the prompt", member.own_columns, frozenset(self._generated_by(others)))
        if self.keep_if is not None:
            yield _Needs("keep_if", self.keep_if.required_columns, frozenset(self._judged))

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is open in this process."""
        return {name: value for name, value in self.__dict__.items() if name not in {"_lock", "_runtime"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start closed; everything opens at first use."""
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._runtime = None
