"""
A look at JSONL before a job: the shape of its values, its number of rows, and where lines begin.

Large files are looked at in ranges, by processes of their own, as parsing keeps a core busy. Knows lines and shapes;
knows nothing of partitions. Run as a module, it takes ranges on stdin and writes what it finds to stdout.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Any

import orjson

from nemo_llm_stage.dataset.bad_input import OnBad
from nemo_llm_stage.dataset.json_shape import Shape
from nemo_llm_stage.dataset.json_text import has_long_numbers
from nemo_llm_stage.dataset.json_types import shape_of_rows
from nemo_llm_stage.dataset.jsonl import LineParser, read_lines
from nemo_llm_stage.errors import InputError

RANGE_BYTES = 32 << 20
"""Of a file that can be read from any place, what is looked at in one piece."""

MIN_BYTES_FOR_PROCESSES = 128 << 20
"""Below this in all, starting other processes does not pay."""

_LINES_PER_CHUNK = 4096
_BYTES_PER_CHUNK = 8 << 20
_MAX_FIELDS = 10_000


@dataclass(frozen=True, slots=True)
class ScanRange:
    """
    What to look at.

    Attributes:
        path: A JSONL file.
        start: First byte.
        stop: One past the last in which a line begins; None for the file's end.
        stride: Rows from one mark to the next.
        skips_bad: Whether broken lines are skipped.
    """

    path: str
    start: int
    stop: int | None
    stride: int
    skips_bad: bool


@dataclass(frozen=True, slots=True)
class Scanned:
    """
    What a range holds.

    Attributes:
        shape: Of its rows.
        num_rows: Lines that are not blank, broken ones included.
        marks: Offset of every `stride`-th of them, the first one included.
        end: One past the last line.
        is_document: Whether it is a whole file whose rows do not have a line each.
    """

    shape: Shape
    num_rows: int
    marks: Sequence[int]
    end: int
    is_document: bool = False


def scan_range(wanted: ScanRange) -> Scanned:
    """
    Look at all lines of a range.

    Raises:
        InputError: The file cannot be read, a line is broken, or each line has fields of its own.
    """
    ignore: OnBad | None = (lambda _: None) if wanted.skips_bad else None
    parser = LineParser(wanted.path, ignore)
    shape = Shape()
    marks: list[int] = []
    told: list[bool] = []
    num_rows, end = 0, wanted.start
    lines = read_lines(wanted.path, wanted.start, wanted.stop, on_document=lambda: told.append(True))
    for chunk in _chunks(lines):
        is_long = has_long_numbers(b"\n".join(line for _, line in chunk))
        rows = [row for _, row in parser.parse(chunk, is_exact=is_long)]
        shape.merge(shape_of_rows(rows), is_row=True)
        if len(shape.fields) > _MAX_FIELDS and shape.is_sparse:
            raise InputError(
                f"{wanted.path!r}: each line has fields of its own, {len(shape.fields):,} so far: too many for columns."
                ' Put them into one field, e.g. {"fields": {…}}: it becomes a map.'
            )
        marks.extend(offset for number, (offset, _) in enumerate(chunk, num_rows) if number % wanted.stride == 0)
        num_rows += len(chunk)
        end = chunk[-1][0] + len(chunk[-1][1])
    return Scanned(shape, num_rows, marks, end, bool(told))


def scan_all(
    ranges: Sequence[ScanRange], num_bytes: int, on_done: Callable[[ScanRange], None]
) -> Iterator[Scanned | InputError]:
    """
    Yield what each range holds, in order, or why it cannot be told.

    Args:
        ranges: What to look at.
        num_bytes: In all.
        on_done: Told after each range.
    """
    num_processes = min(os.cpu_count() or 1, len(ranges))
    if num_bytes < MIN_BYTES_FOR_PROCESSES or num_processes < 2:
        for wanted in ranges:
            yield _scan_or_error(wanted)
            on_done(wanted)
        return
    helpers: SimpleQueue[_Helper] = SimpleQueue()
    started = [_Helper() for _ in range(num_processes)]
    for helper in started:
        helpers.put(helper)

    def scan(wanted: ScanRange) -> Scanned | InputError:
        helper = helpers.get()
        try:
            return helper.scan(wanted)
        finally:
            helpers.put(helper)
            on_done(wanted)

    try:
        with ThreadPoolExecutor(num_processes) as pool:
            yield from pool.map(scan, ranges)
    finally:
        for helper in started:
            helper.close()


class _Helper:
    """A process that looks at ranges. Where it dies, this process looks at them."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)  # noqa: S603 - this package

    def scan(self, wanted: ScanRange) -> Scanned | InputError:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(orjson.dumps(asdict(wanted)) + b"\n")
            self._process.stdin.flush()
            found = orjson.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            return _scan_or_error(wanted)
        if "shape" not in found:  # the reason must be raised here, with its cause
            return _scan_or_error(wanted)
        return Scanned(
            Shape.from_json(found["shape"]), found["num_rows"], found["marks"], found["end"], found["is_document"]
        )

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _chunks(lines: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the lines in lists of a bounded number of lines and bytes."""
    while chunk := list(itertools.islice(lines, 1)):
        num_bytes = len(chunk[0][1])
        for line in itertools.islice(lines, _LINES_PER_CHUNK - 1):
            chunk.append(line)
            num_bytes += len(line[1])
            if num_bytes >= _BYTES_PER_CHUNK:
                break
        yield chunk


def _scan_or_error(wanted: ScanRange) -> Scanned | InputError:
    try:
        return scan_range(wanted)
    except InputError as error:
        return error


def _serve() -> None:
    for line in sys.stdin.buffer:
        found: dict[str, Any] = {}
        scanned = _scan_or_error(ScanRange(**orjson.loads(line)))
        if isinstance(scanned, Scanned):
            found = {
                "shape": scanned.shape.as_json(),
                "num_rows": scanned.num_rows,
                "marks": scanned.marks,
                "end": scanned.end,
                "is_document": scanned.is_document,
            }
        sys.stdout.buffer.write(orjson.dumps(found) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
