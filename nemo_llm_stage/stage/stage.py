"""
A stage: a table in, its rows and new columns out.

Holds clients, their limits and one event loop, shared by all calls and threads of the process. No files, no Ray.
"""

from __future__ import annotations

import concurrent.futures
import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import orjson
import pyarrow as pa

from nemo_llm_stage.client.endpoints.share import ALONE, WorkerPlace
from nemo_llm_stage.client.throttle import OPEN, Spending, Throttle
from nemo_llm_stage.core import Outcome
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.prompt.template import check_columns
from nemo_llm_stage.rows.column import Column, Row
from nemo_llm_stage.rows.query import CompletionStore
from nemo_llm_stage.rows.row import Known
from nemo_llm_stage.stage.adapted import adapt_clients
from nemo_llm_stage.stage.dependencies import needs_of, sources_of, sources_of_keep_if, uses_of
from nemo_llm_stage.stage.doors import Doors
from nemo_llm_stage.stage.extend import Extended, drop, extend
from nemo_llm_stage.stage.hand import Hand
from nemo_llm_stage.stage.keep import KeepIf
from nemo_llm_stage.stage.local_runtime import LocalRuntime
from nemo_llm_stage.stage.loop import result_of
from nemo_llm_stage.stage.order import Order, RowOrder
from nemo_llm_stage.stage.output_columns import OutputColumns
from nemo_llm_stage.stage.runtime import OnDone, Runtime, unique
from nemo_llm_stage.stage.siblings import Siblings
from nemo_llm_stage.stage.status import OrderStatistics, StageStatus
from nemo_llm_stage.stage.table import rows_of


class Stage(Doors):
    """
    Adds generated columns to tables.

    `LLMStage` makes a stage of one column, `MultiColumnStage` one of several. A stage can be pickled at any time. What
    it holds open stays in this process; a copy, also one in a forked process, opens its own at first use.

    Args:
        columns: In the order in which they are written.
        keep_if: An expression over columns and answers; rows for which it is false are dropped. See `KeepIf`.

    Attributes:
        columns: Likewise.
        uses: Output column → the output columns that its prompt uses.
        keep_if: The expression; None where all rows stay.
        outputs: What each of the columns is written as.

    Raises:
        ConfigError: `keep_if` is no expression, columns use each other in a circle, or two have the same name.
    """

    def __init__(self, columns: Sequence[Column], keep_if: str | None = None) -> None:
        self.columns = tuple(columns)
        self.keep_if = None if keep_if is None else KeepIf(keep_if)
        self.outputs = tuple(OutputColumns(column) for column in self.columns)
        names = [field.name for field in self.fields]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"there would be two columns {twice[0]!r}; choose another output_column.")
        self.uses = uses_of(self.columns)
        self._needs = tuple(needs_of(self.columns, self.keep_if))
        self._client_of = adapt_clients(self.columns, self.uses)
        if self.keep_if is not None:
            self.keep_if.check_types(self.fields)
        first = next(column for column in self.columns if not self.uses[column.name])
        beside = [column for column in self.columns if self._client_of[column.name] is self._client_of[first.name]]
        self._order = RowOrder(first.prompt)
        self._siblings = Siblings([column.prompt for column in beside], sorted(sources_of(self.columns)))
        self._runtime = LocalRuntime()
        self._throttle = OPEN
        self._place = ALONE

    @property
    def fields(self) -> list[pa.Field]:
        """The fields that the stage adds, in order."""
        return [field for output in self.outputs for field in output.fields]

    @property
    def output_columns(self) -> tuple[str, ...]:
        """The name of each generated column, without the ones beside it (``_error``, ``_meta`` …)."""
        return tuple(column.name for column in self.columns)

    def with_skips_as_errors(self) -> Self:
        """Return this stage, but one that says in ``X_error`` why a row was skipped; it shares what is open."""
        other = copy.copy(self)
        other.outputs = tuple(OutputColumns(column, skips_are_errors=True) for column in self.columns)
        return other

    @property
    def changes_num_rows(self) -> bool:
        """Whether there may be more or fewer rows afterwards."""
        return self.keep_if is not None or any(column.explode for column in self.columns)

    @property
    def required_columns(self) -> frozenset[str]:
        """The columns of the input that prompts, parameters and `keep_if` mention."""
        return frozenset[str]().union(*(needs.columns - needs.generated for needs in self._needs))

    @property
    def needs_all_columns(self) -> bool:
        """Whether a prompt may look at any column."""
        return any(column.prompt.needs_all_columns for column in self.columns)

    @property
    def max_concurrent_requests(self) -> int:
        """Most requests in flight at once, over all clients and servers."""
        return self.total_limit(ALONE)

    def total_limit(self, place: WorkerPlace) -> int:
        """Return the most requests in flight at once of the worker in this place, over all clients and servers."""
        return sum(client.total_limit(place) for client in unique(self._client_of.values()))

    def server_urls(self, place: WorkerPlace = ALONE) -> list[str]:
        """Return the base URLs of the servers that the worker in this place asks, as far as known; may block."""
        urls = (url for client in unique(self._client_of.values()) for url in client.server_urls(place))
        return list(dict.fromkeys(urls))

    def tell_servers(self, urls: Sequence[str]) -> None:
        """Take the addresses of the servers that the job starts, as they are from now on."""
        for client in unique(self._client_of.values()):
            client.tell_servers(urls)

    def take_place(self, place: WorkerPlace) -> None:
        """
        Be the stage of one of several workers that share the servers.

        The stage is closed for that where it is open: what is open has the limits of the place before.
        """
        if place == self._place:
            return
        self.close()
        self._place = place
        for client in unique(self._client_of.values()):
            client.take_place(place)

    def check_columns(self, available: Sequence[str]) -> None:
        """
        Refuse an input that does not fit the prompts or the output columns, before anything is sent.

        Raises:
            InputError: A prompt needs a column that is not there; the message names the nearest one.
            ConfigError: A column to be added is there already.
        """
        for needs in self._needs:
            check_columns(needs.columns, [*available, *sorted(needs.generated)], user=needs.user)
        for field in self.fields:
            if field.name in available:
                raise ConfigError(
                    f"the input already has a column {field.name!r}; choose another output_column, or drop it first."
                )

    def process_block(self, block: pa.Table) -> pa.Table:
        """Return a block of a larger table with this stage's columns: `process` without a look at the server."""
        self.check_columns(block.column_names)
        outcomes = result_of(self.submit(self.rows_of(block)))
        return self.add_columns(block, outcomes)

    def rows_of(self, table: Any) -> list[Row]:
        """Return the table's rows, with the columns that the prompts need."""
        return rows_of(table, None if self.needs_all_columns else sorted(self.required_columns))

    def submit(
        self,
        rows: Sequence[Row],
        *,
        known: Sequence[Known] | None = None,
        store: CompletionStore | None = None,
        on_done: OnDone | None = None,
        on_start: Callable[[], None] | None = None,
        order: Order = "auto",
        hand: Hand | None = None,
        avoids: str | None = None,
    ) -> concurrent.futures.Future[list[Outcome]]:
        """
        Start `rows` and return at once; the future gives their outcomes in order. Cancelling it cancels the requests.

        Args:
            rows: Column name → value.
            known: For each row the results of columns that are not generated again.
            store: Keeps the completions; called on the event loop.
            on_done: Called on the event loop with each outcome as it comes. What it raises ends these rows.
            on_start: Called on the event loop as each row is started. Must not raise.
            order: ``input`` sends the rows as given. ``auto`` sends rows whose prompts begin alike one after another,
                where that lets the server's prefix cache do more.
            hand: Gets the rows that `Runtime.take_back` takes; their outcomes are empty.
            avoids: Base URL of a server where the same requests are in flight: they are sent again, to others.
        """
        plan = None if order == "input" else self._order.of(rows)
        plan = self._siblings.keep_together(rows, plan)
        return self._open().submit(rows, known, store, on_done, on_start, plan, hand, avoids)

    @property
    def runtime(self) -> Runtime | None:
        """What is open in this process: takes rows back, tells which are overdue, and drops some."""
        return self._runtime.current

    def add_columns(self, table: Any, outcomes: Sequence[Outcome]) -> Any:
        """Return `table` with the columns that `outcomes` make. A value that does not fit the type fails its row."""
        return self.extend(table, outcomes).table

    def extend(self, table: Any, outcomes: Sequence[Outcome]) -> Extended:
        """Return `table` with the columns that `outcomes` make, without the rows that `keep_if` drops."""
        extended = extend(table, outcomes, self.outputs)
        if self.keep_if is None:
            return extended
        return drop(extended, outcomes, self.keep_if, sources_of_keep_if(self.columns))

    def check_server(self) -> None:
        """
        Find out, before any paid request, whether the servers accept the keys and models.

        Raises:
            FatalError: A key or a model is wrong.
            TransientError: A server cannot be reached.
        """
        runtime = self._open()
        checks = {(id(self._client_of[column.name]), column.model): column for column in self.columns}
        for column in checks.values():
            runtime.loop.run(self._client_of[column.name].check(column.model))

    def check_server_once(self) -> None:
        """Do `check_server`, unless it has passed since the stage was opened; raises likewise."""
        runtime = self._open()
        if not runtime.is_checked:
            self.check_server()
            runtime.is_checked = True

    @property
    def num_in_flight(self) -> int:
        """Requests in flight now."""
        runtime = self._runtime.current
        return 0 if runtime is None else runtime.num_in_flight

    @property
    def spending(self) -> Spending:
        """What the requests of all clients took since the stage was opened."""
        runtime = self._runtime.current
        return Spending() if runtime is None else runtime.spending

    def throttle(self, throttle: Throttle) -> None:
        """Hold requests back as `throttle` says, from now on. May be called from any thread."""
        self._throttle = throttle
        runtime = self._runtime.current
        if runtime is not None:
            runtime.throttle(throttle)

    def when_quiet(self) -> concurrent.futures.Future[None]:
        """Return what is done once the stage, which is paused, has no request in flight and has kept every answer."""
        return self._runtime.when_quiet()

    def status(self) -> StageStatus:
        """Return how the stage stands in this process. May be called from any thread."""
        runtime = self._runtime.current
        status = StageStatus(max_in_flight=self.max_concurrent_requests) if runtime is None else runtime.status()
        return replace(status, order=self.order_statistics())

    @property
    def gains_from_order(self) -> bool:
        """Whether rows were sent in another order than they were given when prompts were looked at last."""
        return self._order.gains

    def order_statistics(self) -> OrderStatistics:
        """Return what the order in which rows are sent has saved."""
        return self._order.statistics()

    def describe(self) -> dict[str, Any]:
        """Return everything that decides what the answers are, as JSON-able values, without secrets."""
        return {
            "columns": {column.name: column.describe() for column in self.columns},
            "keep_if": None if self.keep_if is None else self.keep_if.source,
        }

    @property
    def fingerprint(self) -> str:
        """Hash of `describe`: two stages with the same fingerprint write the same columns."""
        text = orjson.dumps(self.describe(), option=orjson.OPT_SORT_KEYS, default=repr)
        return hashlib.blake2b(text, digest_size=16).hexdigest()

    def close(self) -> None:
        """Close connections and stop the event loop. The stage can be used again after. Safe to call twice."""
        self._runtime.close()

    def _open(self) -> Runtime:
        runtime = self._runtime.open(lambda: Runtime(self.columns, self.uses, self._client_of))
        runtime.throttle(self._throttle)
        return runtime
