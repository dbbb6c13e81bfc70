"""A bit that flips on the disk is found by `verify`, or changes no value; nothing ends in a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_llm_stage import OutputConflictError
from nemo_llm_stage.run import verify_output

STEP_BITS = 101
"""A prime, so that every place in a byte is hit."""


def flipped(path: Path) -> Iterator[int]:
    """Flip every so many bits of a file, one at a time; the file is whole again after each."""
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), STEP_BITS):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        yield bit
    path.write_bytes(whole)


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_a_flipped_bit_of_a_committed_file_is_found(job: Any, output_format: str) -> None:
    """Wherever it is: in pages, page headers, statistics or the footer; in rows of JSONL."""
    job.run(output_format=output_format, rows_per_partition=100, input=job.folder / "in" / "a.parquet")
    path = job.folder / "out" / f"part-00000000.{output_format}"
    assert verify_output(str(job.folder / "out")).is_complete
    silent = [bit for bit in flipped(path) if not verify_output(str(job.folder / "out")).problems]
    rows = job.rows()
    for bit in silent:
        data = bytearray(path.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        assert job.rows() == rows
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)


def test_a_flipped_bit_in_the_counts_of_a_jsonl_file_is_found(job: Any) -> None:
    """They are covered by the checksum of the file; only the name of a count that is 0 may change unseen."""
    job.run(output_format="jsonl", rows_per_partition=100, input=job.folder / "in" / "a.parquet")
    (path,) = job.folder.glob(".out.nemo_llm_stage/commits/*.json")
    counters = verify_output(str(job.folder / "out")).counters
    for _ in flipped(path):
        verification = verify_output(str(job.folder / "out"))
        assert verification.problems or verification.counters == counters


def test_a_flipped_bit_of_the_record_is_told(job: Any) -> None:
    """With a message, to `verify` and to the next run."""
    job.run(rows_per_partition=100, input=job.folder / "in" / "a.parquet")
    (path,) = job.folder.glob(".out.nemo_llm_stage/job.json")
    for _ in flipped(path):
        with pytest.raises(OutputConflictError, match=r"job\.json is damaged"):
            verify_output(str(job.folder / "out"))
        with pytest.raises(OutputConflictError, match=r"job\.json is damaged"):
            job.run(rows_per_partition=100, input=job.folder / "in" / "a.parquet")
