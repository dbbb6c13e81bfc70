"""
Proves that every input row came out exactly once.

Looks at the files themselves, not at what a run remembers. Knows plans and outputs; knows nothing of stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.account import Account
from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.dataset.folder import BAD_FILES, OutputFolder
from nemo_llm_stage.dataset.inspect import check_bytes, inspect
from nemo_llm_stage.dataset.plan import Partition, Plan
from nemo_llm_stage.dataset.recount import explodes, output_columns_of, reasons_of
from nemo_llm_stage.dataset.signed_reads import SignedReads
from nemo_llm_stage.errors import LLMStageError

NUM_LEFT_OUT_SHOWN = 5
MAX_ONE_READ = 8 << 20
"""Bytes of a file in an object store that is read in one call; 64 are held at once."""

OnDone = Callable[[int, int], None]
_EARLIER = "{} was written by an earlier job; remove it and run the job again: it is made anew."
_NUM_THREADS = 64


@dataclass(frozen=True)
class Verification:
    """
    What the output folder holds.

    Attributes:
        counters: Summed over the committed files.
        problems: One sentence for each thing that is off; names the partition's file.
        num_partitions: Of the plan.
        num_missing: Partitions not committed yet.
        bad_files: Files of the input that were left out as a whole because they are damaged.
        left_out: The first of what was left out of the input, as it was written down.
    """

    counters: Counters
    problems: list[str] = field(default_factory=list)
    num_partitions: int = 0
    num_missing: int = 0
    bad_files: tuple[str, ...] = ()
    left_out: tuple[BadInput, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Rows in = answered + failed + skipped + dropped + left out, the first three are here, and nothing is off."""
        return not self.problems and not self.num_missing


def verify(
    output: OutputFolder,
    plan: Plan,
    *,
    reads_bytes: bool = False,
    compares_rows: bool = False,
    on_done: OnDone | None = None,
) -> Verification:
    """
    Check each committed file against the plan: there, as many rows as were read, one schema for all.

    Args:
        output: The folder.
        plan: What it should hold.
        reads_bytes: Whether to read every file as a whole and compare it with its checksum, which finds a single
            flipped bit. Otherwise only the footers of Parquet files are read; JSONL files are always read.
        compares_rows: Whether to read the input again as well, and compare it with the output row by row. Parquet is
            read by other readers than the job's: Arrow on another way, and DuckDB where that is installed.
        on_done: Told how many files were looked at, and of how many.
    """
    with ThreadPoolExecutor(1) as pool:  # in a store, side by side
        listing = pool.submit(output.data_stats)
        job = output.read_job() or {}
    reasons = {column: reasons_of(job, column) for column in output_columns_of(job)}
    is_exploded = explodes(job)
    stats = listing.result()
    committed = stats.keys()
    expected = {output.name_of(partition): partition for partition in plan.partitions}
    problems = [f"{name} belongs to no partition of the plan." for name in sorted(committed - expected.keys())]
    present = [name for name in sorted(expected) if name in committed]
    total = Counters()
    schema: pa.Schema | None = None

    def look_at(name: str) -> _Look:
        look = _look(output, name, stats[name].size, expected[name], checks)
        if compares_rows and not look.problems:
            look.problems.extend(_compare(output, name, expected[name], plan.schema, is_exploded))
        return look

    with SignedReads(output.folder) as reads, ThreadPoolExecutor(_NUM_THREADS) as pool:
        checks = _Checks(reasons, is_exploded, job.get("id"), reads_bytes, reads)
        for number, (name, look) in enumerate(zip(present, pool.map(look_at, present), strict=True), 1):
            if on_done is not None:
                on_done(number, len(present))
            problems.extend(look.problems)
            total.add(look.counters)
            schema = schema or look.schema
            if look.schema is not None and not look.schema.equals(schema):
                problems.append(f"{name} has another schema than {present[0]}.")
    return _verification(output, total, problems, len(expected), len(expected) - len(present))


def verify_account(
    output: OutputFolder, plan: Plan, account: Account, *, is_exploded: bool, has_bad_input: bool
) -> Verification:
    """
    Check what the committed files count against the plan, without opening those that the ledger tells of.

    Args:
        output: The folder.
        plan: What it should hold.
        account: Of the job's files, as they are now.
        is_exploded: Whether each answer of a row is written as a row of its own.
        has_bad_input: Whether it may be written down somewhere that input was left out.
    """
    expected = {output.name_of(partition): partition for partition in plan.partitions}
    problems = [f"{name} belongs to no partition of the plan." for name in sorted(account.names - expected.keys())]
    total = Counters()
    for name in sorted(expected.keys() & account.names):
        entry = account.entries.get(name)
        if entry is not None:
            total.add(entry.counters)
            problems.extend(_wrong_counts(name, entry.counters, expected[name], is_exploded))
        elif name in account.damaged:
            problems.append(f"{name} is damaged or cannot be read: {account.damaged[name]}")
        else:
            problems.append(_EARLIER.format(name))
    num_missing = len(expected.keys() - account.names)
    if not has_bad_input:
        return Verification(total, problems, len(expected), num_missing)
    return _verification(output, total, problems, len(expected), num_missing)


def _verification(
    output: OutputFolder, total: Counters, problems: list[str], num_partitions: int, num_missing: int
) -> Verification:
    with ThreadPoolExecutor(1) as pool:
        listing = pool.submit(lambda: tuple(output.left_out(NUM_LEFT_OUT_SHOWN)))
        bad_files = tuple(record.path for record in output.read_bad_input(BAD_FILES))
    left_out = listing.result()
    return Verification(total, problems, num_partitions, num_missing, bad_files, left_out)


@dataclass(frozen=True)
class _Look:
    counters: Counters
    schema: pa.Schema | None
    problems: list[str]


@dataclass(frozen=True, slots=True)
class _Checks:
    reasons: Mapping[str, Sequence[str]]
    is_exploded: bool
    job_id: str | None
    reads_bytes: bool
    reads: SignedReads


def _look(output: OutputFolder, name: str, size: int, partition: Partition, checks: _Checks) -> _Look:
    try:
        is_one_read = checks.reads_bytes and not output.folder.is_local and size <= MAX_ONE_READ
        data = checks.reads.read(name) if is_one_read and output.format == "parquet" else None
        if checks.reads_bytes:  # before Arrow looks at it: a damaged footer can end the process
            check_bytes(output, name, data)
        file = inspect(output, name, checks.reasons, data)
    except (LLMStageError, OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        advice = "Remove the file and run the job again: it is made anew."
        why = str(error) if str(error).endswith(advice) else f"{error} {advice}"
        return _Look(Counters(), None, [f"{name} is damaged or cannot be read: {why}"])
    counters, problems = file.counters, []
    if file.num_rows != counters.num_written:
        problems.append(f"{name} holds {file.num_rows} rows, but {counters.num_written} were written.")
    problems += _wrong_counts(name, counters, partition, checks.is_exploded)
    for column in checks.reasons:
        num, num_counted = file.errors_by_column[column], counters.errors_by_column.get(column, 0)
        if num != num_counted:
            problems.append(
                f"{name} has {num} rows that failed or were skipped in {column}, but {num_counted} were counted."
            )
    if checks.job_id is not None and file.job_id not in (None, checks.job_id):
        problems.append(_EARLIER.format(name))
    return _Look(counters, file.schema, problems)


def _wrong_counts(name: str, counters: Counters, partition: Partition, is_exploded: bool) -> list[str]:
    """Return what is off with the counts of a committed file."""
    problems = []
    if not is_exploded and counters.num_written != counters.num_rows - counters.num_dropped:
        dropped = f" and {counters.num_dropped} of them dropped" if counters.num_dropped else ""
        problems.append(f"{name} holds {counters.num_written} rows, but {counters.num_rows} were finished{dropped}.")
    if partition.num_rows is not None and counters.num_rows + counters.num_left_out != partition.num_rows:
        left_out = f" and {counters.num_left_out} left out" if counters.num_left_out else ""
        problems.append(
            f"{name}: {counters.num_rows} rows were finished{left_out}, but its input has {partition.num_rows}."
        )
    return problems


def _compare(output: OutputFolder, name: str, partition: Partition, schema: pa.Schema, is_exploded: bool) -> list[str]:
    from nemo_llm_stage.dataset.compare import first_misplaced, first_misplaced_in_duckdb  # only for ``verify --rows``

    by = ""
    try:
        number = first_misplaced(output, name, partition, schema, repeats=is_exploded)
        if number is None:
            number = first_misplaced_in_duckdb(output, name, partition, schema, repeats=is_exploded)
            by = " as DuckDB reads both,"
    except (LLMStageError, OSError, ValueError, pa.ArrowException) as error:
        return [f"{name} cannot be compared with its input: {error}"]
    what = f"{name}, row {number},{by} is not the row of {partition.path!r} that it should be."
    return [] if number is None else [what]
