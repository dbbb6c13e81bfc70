"""
A stage over one table, in a program or a notebook: with progress, counts, and answers that outlive the call.

Knows stages, journals and displays; `Stage.process` and `Stage.preview` hand over to it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_llm_stage.core import Outcome
from nemo_llm_stage.counters import Counters, sum_counters
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.rows.column import Row
from nemo_llm_stage.stage.interchange import from_any
from nemo_llm_stage.stage.loop import result_of
from nemo_llm_stage.stage.stage import Stage
from nemo_llm_stage.stage.table import column_names, without_columns

if TYPE_CHECKING:
    from nemo_llm_stage.dataset.journal import Journal
    from nemo_llm_stage.job.preview import Preview

ATTRIBUTE = "nemo_llm_stage"
"""Key of the counts in ``DataFrame.attrs``."""

SHOW_EVERY_S = 0.25
"""How often the display gets new figures; it renews itself less often."""


def process(stage: Stage, table: Any, *, overwrite: bool, progress: bool | None, cache_dir: str | Path | None) -> Any:
    """See `Stage.process`."""
    started_s = time.monotonic()
    rows, convert_back = from_any(table)
    if overwrite:
        rows = without_columns(rows, [field.name for field in stage.fields])
    elif made := [field.name for field in stage.fields if field.name in column_names(rows)]:
        raise ConfigError(
            f"the table already has a column {made[0]!r}. To make it again: stage.process(table, overwrite=True). "
            "Otherwise choose another output_column."
        )
    stage.check_columns(column_names(rows))
    if len(rows):
        stage.check_server_once()
    is_shown = _is_notebook() if progress is None else progress
    with _opened(cache_dir) as journal:
        outcomes = _answer(stage, stage.rows_of(rows), journal, is_shown)
    extended = stage.extend(rows, outcomes)
    result = convert_back(extended.table)
    if type(result).__module__.partition(".")[0] == "pandas":
        result.attrs[ATTRIBUTE] = counts(outcomes, extended.dropped, time.monotonic() - started_s)
    return result


def preview(stage: Stage, table: Any, num_rows: int, *, dry_run: bool) -> Preview:
    """See `Stage.preview`."""
    from nemo_llm_stage.job.preview import Preview, preview_rows

    rows, _ = from_any(table)
    stage.check_columns(column_names(rows))
    total = len(rows)
    places = [part * total // num_rows for part in range(num_rows)] if num_rows < total else range(total)
    taken = rows.iloc[list(places)] if hasattr(rows, "iloc") else rows.take(list(places))
    if total and not dry_run:
        stage.check_server_once()
    seen = preview_rows(stage, list(zip(places, stage.rows_of(taken), strict=True)), is_dry=dry_run)
    return Preview(tuple(seen), total, is_exact=True, max_concurrent_requests=stage.max_concurrent_requests)


def counts(outcomes: Sequence[Outcome], dropped: Collection[int], elapsed_s: float) -> dict[str, Any]:
    """Return what a call did, as JSON-able values."""
    counters = Counters()
    for index, outcome in enumerate(outcomes):
        counters.count(outcome, is_dropped=index in dropped)
    run = counters.without_resumed()
    return {
        "rows": counters.num_rows,
        "answered": counters.num_answered,
        "failed": counters.num_failed,
        "skipped": counters.num_skipped,
        "dropped": counters.num_dropped,
        "from_cache": counters.num_resumed,
        "requests": run.num_attempts,
        "input_tokens": run.input_tokens,
        "output_tokens": run.output_tokens,
        "errors": dict(counters.errors),
        "elapsed_s": round(elapsed_s, 3),
    }


def _is_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from nemo_llm_stage.report.progress.displays import is_notebook

    return is_notebook()


@contextmanager
def _opened(cache_dir: str | Path | None) -> Iterator[Journal | None]:
    """Yield the journal in `cache_dir` until the block ends; None for none."""
    if cache_dir is None:
        yield None
        return
    from nemo_llm_stage.dataset.journal import Journal
    from nemo_llm_stage.dataset.storage import Folder

    journal = Journal(Folder(str(cache_dir)), flush_interval_s=2.0)
    try:
        yield journal
    finally:
        journal.close()


def _answer(stage: Stage, rows: Sequence[Row], journal: Journal | None, is_shown: bool) -> list[Outcome]:
    if not is_shown:
        return result_of(stage.submit(rows, store=journal))
    from nemo_llm_stage.report.progress.progress import Progress
    from nemo_llm_stage.report.progress.view import JobTitle
    from nemo_llm_stage.report.summary import table_summary
    from nemo_llm_stage.worker.engine import RunStatus

    started_s = time.monotonic()
    counters, lock = Counters(), threading.Lock()

    def count(outcome: Outcome) -> None:  # on the event loop
        with lock:
            counters.count(outcome)

    def counted() -> Counters:
        with lock:
            return sum_counters([counters])

    models = tuple(dict.fromkeys(column.model for column in stage.columns))
    with Progress() as shown:
        shown.begin(JobTitle(stage.output_columns, models, len(rows)), Counters())
        future = stage.submit(rows, store=journal, on_done=count)
        try:
            while not wait([future], SHOW_EVERY_S).done:
                shown.update(RunStatus(stage=stage.status()), counted())
            outcomes = future.result()
        except BaseException:
            future.cancel()
            raise
        shown.update(RunStatus(stage=replace(stage.status(), num_in_flight=0)), counted())
        shown.finish(table_summary(counters, time.monotonic() - started_s))
    return outcomes
