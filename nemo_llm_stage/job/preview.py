"""
A look at a job before it is run: a few rows spread over the dataset, their exact prompts, and what comes back.

Writes nothing. Knows plans and stages; what is shown is the report room's.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa

from nemo_llm_stage.client.endpoint_status import merge_endpoints
from nemo_llm_stage.config.job import JobConfig
from nemo_llm_stage.core import Message, Outcome, RowResult
from nemo_llm_stage.dataset.files import find_input
from nemo_llm_stage.dataset.plan import Partition, Plan
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.errors import RowError
from nemo_llm_stage.job.planning import plan_input
from nemo_llm_stage.prompt.shared_first import LateShare, late_shares
from nemo_llm_stage.rows.column import Column, Row
from nemo_llm_stage.stage.stage import Stage

ROWS_PER_CHUNK = 1024
NUM_TOGETHER = 512
"""Rows from the beginning of the input that tell which columns repeat."""


@dataclass(frozen=True)
class PreviewedColumn:
    """
    One column of a row.

    Attributes:
        name: The output column.
        messages: What is asked; empty where the prompt cannot be made.
        text: What a base model is asked: the messages, formatted; None for a chat.
        result: The answer, or why no request was sent; None in a dry run.
        waits_for: Output columns whose answers the prompt uses, where they are not there to make it.
    """

    name: str
    messages: list[Message]
    text: str | None
    result: RowResult | None
    waits_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreviewedRow:
    """
    One row of a preview.

    Attributes:
        number: Its place in the dataset, from 0; None where the dataset was not counted.
        columns: One for each column to add.
        is_dropped: Whether `keep_if` leaves it out.
    """

    number: int | None
    columns: tuple[PreviewedColumn, ...]
    is_dropped: bool = False


@dataclass(frozen=True)
class Preview:
    """
    A few rows, and what they are a sample of.

    Attributes:
        rows: In the dataset's order.
        num_rows: Of the whole dataset.
        is_exact: Whether it was counted.
        max_concurrent_requests: Most requests that the job will have in flight, over all actors.
        price_input: Of a million input tokens, to tell what the job costs; None if not given.
        price_output: Likewise for output tokens.
        late_shares: What prompts share and say too late for a prefix cache.
        prompt_speed: Prompt tokens that all servers together compute a second; None where they do not tell.
    """

    rows: tuple[PreviewedRow, ...]
    num_rows: int
    is_exact: bool
    max_concurrent_requests: int
    price_input: float | None = None
    price_output: float | None = None
    late_shares: tuple[LateShare, ...] = ()
    prompt_speed: float | None = None

    def __repr__(self) -> str:
        """Return the rows' prompts and answers, as the command line shows them."""
        from nemo_llm_stage.report.preview_panels import preview_panels
        from nemo_llm_stage.report.progress.displays import as_text

        return as_text(preview_panels(self))

    def _repr_html_(self) -> str:
        """Return likewise what a notebook shows."""
        from nemo_llm_stage.report.preview_panels import preview_panels
        from nemo_llm_stage.report.progress.displays import as_html

        return as_html(preview_panels(self))


def preview_job(
    config: JobConfig,
    num_rows: int = 5,
    *,
    is_dry: bool = False,
    before_check: Callable[[Stage], None] | None = None,
) -> Preview:
    """
    Render, and unless `is_dry` ask, a few rows of the job's input.

    Args:
        config: The job. A row that fails is not asked again for hours, as it would be in a run.
        num_rows: How many; spread over the dataset, the same ones each time.
        is_dry: Whether to render only; no server is looked for.
        before_check: Called before the servers are looked for: may start them.

    Raises:
        ConfigError: The settings or the input cannot work.
        RequestError: The server cannot be reached, or refuses every request.
    """
    settings = config.settings
    found = find_input(config.input)
    plan = plan_input(found.files, settings, lambda _: None, tables=found.tables)
    speed = None
    if is_dry:
        stage = config.make_stage()
        stage.check_columns(plan.schema.names)
        rows = preview_rows(stage, _sample(plan, stage, num_rows), is_dry=True)
        late = _late_shares(plan, stage)
    else:
        with config.model_copy(update={"give_up_after": 0.0}).open_stage() as stage:
            rows, speed = _asked(plan, stage, num_rows, before_check)
            late = _late_shares(plan, stage)
    prices = settings.price_input, settings.price_output
    return Preview(tuple(rows), plan.num_rows, plan.is_exact, config.total_limit(), *prices, late, speed)


def _late_shares(plan: Plan, stage: Stage) -> tuple[LateShare, ...]:
    """Return what the prompts say too late, judged by rows that stand together."""
    together = _read(plan.partitions[0], plan, stage, range(NUM_TOGETHER)) if plan.partitions else []
    return tuple(share for column in stage.columns for share in late_shares(column.prompt, together))


def _asked(
    plan: Plan, stage: Stage, num_rows: int, before_check: Callable[[Stage], None] | None
) -> tuple[list[PreviewedRow], float | None]:
    """Return the rows, and how many prompt tokens a second the servers that asked for them say that they compute."""
    stage.check_columns(plan.schema.names)
    sample = _sample(plan, stage, num_rows)
    try:
        if before_check is not None:
            before_check(stage)
        stage.check_server()
        rows = preview_rows(stage, sample, is_dry=False)
        servers = merge_endpoints(stage.status().endpoints)
        return rows, sum(server.prompt_speed or 0.0 for server in servers) or None
    finally:
        stage.close()


def preview_rows(stage: Stage, sample: Sequence[tuple[int | None, Row]], *, is_dry: bool) -> list[PreviewedRow]:
    """
    Render, and unless `is_dry` ask, these rows.

    Args:
        stage: What to ask.
        sample: Rows with their places in the dataset, from 0; None where it was not counted.
        is_dry: Whether nothing is sent.

    Raises:
        RequestError: The server refuses every request.
    """
    rows = [row for _, row in sample]
    outcomes: Sequence[Outcome | None] = [None] * len(rows)
    dropped: Collection[int] = ()
    if not is_dry:
        outcomes = asked = stage.submit(rows).result()
        dropped = stage.extend(_table_of(rows), asked).dropped
    return [
        PreviewedRow(
            number, tuple(_rendered(stage, column, row, outcome) for column in stage.columns), index in dropped
        )
        for index, ((number, row), outcome) in enumerate(zip(sample, outcomes, strict=True))
    ]


def _table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table; values that Python cannot hold are null."""
    return pa.Table.from_pylist([{name: _value_or_none(row, name) for name in row} for row in rows])


def _value_or_none(row: Mapping[str, Any], name: str) -> Any:
    try:
        return row[name]
    except RowError:
        return None


def _rendered(stage: Stage, column: Column, row: Row, outcome: Outcome | None) -> PreviewedColumn:
    """Return one column of a row as it was asked, or, without an outcome, as it would be."""
    name, uses = column.name, stage.uses[column.name]
    result = None if outcome is None else outcome[name]
    if uses and (outcome is None or any(outcome[used].error is not None for used in uses)):
        return PreviewedColumn(name, [], None, result, () if outcome else uses)
    values: dict[str, Any] = {}
    for other in stage.columns:
        if outcome is not None and other.name in uses:
            values |= other.values(outcome[other.name])
    try:
        messages = column.prompt.render({**row, **values})
        formatter = column.conversation_formatter
        text = None if formatter is None else formatter.format_conversation(messages)
    except RowError as error:
        return PreviewedColumn(name, [], None, result or RowResult(None, f"{error.kind}: {error}"))
    return PreviewedColumn(name, messages, text, result)


def _sample(plan: Plan, stage: Stage, num_rows: int) -> list[tuple[int | None, Row]]:
    """Return rows with their numbers: one at random out of each of `num_rows` equal parts of the dataset."""
    ends = list(accumulate(_sizes(plan)))
    total = ends[-1]
    num_rows = min(num_rows, total)
    dice = random.Random(0)  # noqa: S311 - the same rows each time, so that previews can be compared
    wanted: defaultdict[int, list[int]] = defaultdict(list)
    for part in range(num_rows):
        position = dice.randrange(part * total // num_rows, (part + 1) * total // num_rows)
        partition = bisect_right(ends, position)
        wanted[partition].append(position - (ends[partition - 1] if partition else 0))
    sample: list[tuple[int | None, Row]] = []
    for index, offsets in wanted.items():
        first = ends[index - 1] if index else 0
        rows = _read(plan.partitions[index], plan, stage, offsets)
        sample += [(first + offset if plan.is_exact else None, row) for offset, row in zip(offsets, rows, strict=False)]
    return sample


def _sizes(plan: Plan) -> list[int]:
    """Return the rows of each partition; the uncounted ones share what is left of the estimate by their bytes."""
    num_left = plan.num_rows - sum(partition.num_rows or 0 for partition in plan.partitions)
    num_bytes = sum(part.stop - part.start for part in plan.partitions if part.num_rows is None)
    return [
        max(1, num_left * (part.stop - part.start) // num_bytes) if part.num_rows is None else part.num_rows
        for part in plan.partitions
    ]


def _read(partition: Partition, plan: Plan, stage: Stage, offsets: Sequence[int]) -> list[Row]:
    """Return the rows at `offsets` (rising, from 0); where the partition is shorter than estimated, its last one."""
    rows: list[Row] = []
    first, table = 0, None
    for table in read_partition(partition, plan.schema, rows_per_chunk=ROWS_PER_CHUNK, on_bad=lambda _: None):
        here = [offset - first for offset in offsets if first <= offset < first + table.num_rows]
        rows += stage.rows_of(table.take(here)) if here else []
        first += table.num_rows
        if len(rows) == len(offsets):
            return rows
    return rows if table is None else rows + stage.rows_of(table.slice(table.num_rows - 1))
