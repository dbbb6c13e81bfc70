"""Damaged files and broken lines stop a job before it pays, or are left out and written down."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import InputError
from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import Fault

Answers = Callable[..., list[str]]


def break_line(path: Path, number: int, text: str = '{"id": 27, "te') -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = text
    path.write_text("\n".join(lines) + "\n")


def records(job: Any) -> list[dict[str, Any]]:
    paths = sorted((job.folder / ".out.nemo_llm_stage" / "bad_input").glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.open()]


def ids(job: Any) -> list[int]:
    return [row["id"] for row in job.rows()]


def test_by_default_a_broken_line_stops_the_job_before_it_pays(job: Any) -> None:
    """Naming file and line; no folder is claimed."""
    break_line(job.folder / "in" / "b.jsonl", 3)
    with pytest.raises(InputError, match=r"b\.jsonl', line 3, is not JSON"):
        job.run()
    assert job.server.stats.num_requests == 0
    assert not (job.folder / "out").exists() or not (job.folder / ".out.nemo_llm_stage" / "job.json").exists()


def test_by_default_a_damaged_file_stops_the_job_before_it_pays(job: Any) -> None:
    """Naming the file."""
    (job.folder / "in" / "c.parquet").write_bytes(b"PAR1 half a file")
    with pytest.raises(InputError, match=r"cannot read .*c\.parquet"):
        job.run()
    assert job.server.stats.num_requests == 0


@pytest.mark.parametrize("scan_input", ["full", "sample"])
def test_broken_lines_are_left_out_and_written_down(job: Any, answers: Answers, scan_input: str) -> None:
    """With file, line and reason; all others are answered."""
    break_line(job.folder / "in" / "b.jsonl", 3)
    break_line(job.folder / "in" / "b.jsonl", 14, "[39]")
    result = job.run(on_bad_input="skip", scan_input=scan_input)
    assert ids(job) == [number for number in range(40) if number not in (27, 38)]
    assert [row["x"] for row in job.rows()][:27] == answers(range(27))
    assert (result.counters.num_rows, result.counters.num_left_out, result.bad_files) == (38, 2, ())
    written = records(job)
    assert [(Path(record["path"]).name, record["line"], record["num_rows"]) for record in written] == [
        ("b.jsonl", 3, 1),
        ("b.jsonl", 14, 1),
    ]
    assert written[0]["reason"].startswith("is not JSON")
    verification = verify_output(str(job.folder / "out"))
    assert verification.is_complete
    assert verification.counters.num_left_out == 2


def test_damaged_files_are_left_out_and_written_down(job: Any) -> None:
    """A Parquet file without a footer and half a gzip file; a job that goes on leaves them out too."""
    (job.folder / "in" / "c.parquet").write_bytes(b"PAR1 half a file")
    packed = gzip.compress(b'{"id": 1, "text": "row 1", "tags": []}\n' * 1000)
    (job.folder / "in" / "d.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    result = job.run(on_bad_input="skip")
    assert [Path(path).name for path in result.bad_files] == ["c.parquet", "d.jsonl.gz"]
    assert ids(job) == list(range(40))
    assert [Path(record["path"]).name for record in records(job)] == ["c.parquet", "d.jsonl.gz"]
    (job.folder / "out" / "part-00000001.parquet").unlink()
    assert job.run(on_bad_input="skip").bad_files == result.bad_files
    with pytest.raises(InputError, match=r"left a file out: cannot read .*c\.parquet"):
        job.run()


def test_a_file_damaged_in_its_middle_gives_its_whole_rows(job: Any) -> None:
    """The rest of the partition that hits the damage is left out, and counted."""
    path = job.folder / "in" / "c.parquet"
    rows = [{"id": number, "text": f"row {number}", "tags": []} for number in range(40, 80)]
    options: dict[str, Any] = {"row_group_size": 10, "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    texts = pq.read_metadata(path).row_group(2).column(1)
    data = bytearray(path.read_bytes())
    data[texts.data_page_offset + texts.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"c\.parquet"):
        job.run(output=job.folder / "stopped")
    result = job.run(on_bad_input="skip", rows_per_partition=20)
    assert ids(job) == list(range(60))
    assert result.counters.num_left_out == 20
    assert verify_output(str(job.folder / "out")).is_complete


def test_an_input_that_is_all_damaged_is_refused(job: Any) -> None:
    """An empty output would look like success."""
    (job.folder / "in" / "a.parquet").write_bytes(b"PAR1")
    (job.folder / "in" / "b.jsonl").unlink()
    with pytest.raises(InputError, match="all of the 1 input files are damaged"):
        job.run(on_bad_input="skip")


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_failed_rows_among_broken_lines_are_asked_again(job: Any, output_format: str) -> None:
    """In their own places."""
    break_line(job.folder / "in" / "b.jsonl", 3)
    job.server.faults = [Fault(400, contains="row 28")]
    job.run(on_bad_input="skip", output_format=output_format)
    job.server.faults = []
    counters = job.retry().counters
    assert (counters.num_rows, counters.num_failed, counters.num_left_out) == (39, 0, 1)
    assert ids(job) == [number for number in range(40) if number != 27]


def test_lost_counts_of_a_jsonl_output_still_know_what_was_left_out(job: Any) -> None:
    """From what was written down."""
    break_line(job.folder / "in" / "b.jsonl", 3)
    job.run(on_bad_input="skip", output_format="jsonl")
    for path in (job.folder / ".out.nemo_llm_stage" / "commits").iterdir():
        path.unlink()
    verification = verify_output(str(job.folder / "out"))
    assert verification.is_complete, verification
    assert verification.counters.num_left_out == 1


def test_a_missing_file_is_no_damage(job: Any, tmp_path: Path) -> None:
    """It may come back: the job stops, and rows are not left out by an accident of the network."""
    job.run(on_bad_input="skip")
    (job.folder / "out" / "part-00000001.parquet").unlink()
    (job.folder / "in" / "a.parquet").rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"a\.parquet is gone"):
        job.run(on_bad_input="skip")
