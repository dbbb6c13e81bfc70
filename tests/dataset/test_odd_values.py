"""Values that Python has no type for: they go through, and only the row whose prompt needs one fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.report.rows_table import sample
from nemo_llm_stage.run import head, verify_output

_TWICE = pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], ["a", "a"])
COLUMNS: dict[str, pa.Array] = {
    "year_10000": pa.array([253_402_300_800_000, 0], pa.timestamp("ms")),
    "year_0": pa.array([-719_528, 0], pa.date32()),
    "far_duration": pa.array([2**62, 0], pa.duration("s")),
    "no_utf8": pa.array([b"\xff\xfe", b"fine"]).view(pa.string()),
}
ALL_ROWS: dict[str, pa.Array] = {
    "unknown_zone": pa.array([1, 2], pa.timestamp("us", "Mars/Phobos")),
    "fields_of_one_name": _TWICE,
}


def write(folder: Path, columns: dict[str, pa.Array]) -> Path:
    path = folder / "odd.parquet"
    pq.write_table(pa.table({**columns, "text": ["a", "b"]}), path)
    return path


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_odd_values_that_no_prompt_uses_go_through(job: Any, tmp_path: Path, output_format: str) -> None:
    """Are shown at the end, compared with the input, and asked again beside."""
    columns = COLUMNS | ALL_ROWS
    source = write(tmp_path, columns)
    job.run(input=source, output_format=output_format)
    url = str(job.folder / "out")
    assert verify_output(url, compares_rows=True).is_complete
    rows = head(url, 5)
    assert len(rows) == 2
    assert sample(rows, list(columns), ["x"]).row_count == 2 * (len(columns) + 2)  # with the answer, and a line between
    if output_format == "parquet":
        (output,) = (job.folder / "out").glob("part-*.parquet")
        assert pq.read_table(output).select(list(columns)).equals(pq.read_table(source).select(list(columns)))


@pytest.mark.parametrize("name", COLUMNS)
def test_a_row_whose_prompt_uses_an_odd_value_fails_alone(job: Any, tmp_path: Path, name: str) -> None:
    """With the column's name."""
    job.run(job.stage(prompt=f"Say {{{{ {name} }}}}"), input=write(tmp_path, COLUMNS), max_failed_rows=None)
    errors = pq.read_table(next((job.folder / "out").glob("part-*"))).column("x_error").to_pylist()
    assert errors[0].startswith(f"prompt: column {name!r} ")
    assert errors[1] is None


@pytest.mark.parametrize("name", ALL_ROWS)
def test_a_column_of_odd_values_fails_every_row_that_uses_it(job: Any, tmp_path: Path, name: str) -> None:
    """And no more than these."""
    job.run(job.stage(prompt=f"Say {{{{ {name} }}}}"), input=write(tmp_path, ALL_ROWS), max_failed_rows=None)
    errors = pq.read_table(next((job.folder / "out").glob("part-*"))).column("x_error").to_pylist()
    assert all(error.startswith(f"prompt: column {name!r} ") for error in errors)


def test_lines_of_odd_values_can_be_read_back(job: Any, tmp_path: Path) -> None:
    """NaN as Python writes it, times with all their digits, foreign bytes as lone surrogates."""
    columns = {
        **COLUMNS,
        "nan": pa.array([float("nan"), float("inf")]),
        "ns": pa.array([1_577_836_800_123_456_789, None], pa.timestamp("ns")),
        "time": pa.array([1, None], pa.time64("ns")),
    }
    job.run(input=write(tmp_path, columns), output_format="jsonl")
    first, second = map(json.loads, next((job.folder / "out").glob("part-*.jsonl")).open())
    assert (str(first["nan"]), second["nan"]) == ("nan", float("inf"))
    assert (first["ns"], first["time"]) == ("2020-01-01T00:00:00.123456789", "00:00:00.000000001")
    assert (first["year_10000"], first["year_0"]) == ("10000-01-01T00:00:00.000", "0000-01-01")
    assert first["no_utf8"].encode("utf-8", "surrogateescape") == b"\xff\xfe"
    assert first["far_duration"] == f"{2**62} s"


def test_process_takes_frames_with_odd_objects(job: Any) -> None:
    """One value that cannot be sent is its row's matter."""
    frame = pd.DataFrame({"text": ["fine", 2**70, "half \ud800", None]}, dtype=object)
    stage = job.stage()
    done = stage.process(frame)
    stage.close()
    assert done["x"].notna().tolist()[:2] == [True, True]
    assert done["x_error"].tolist()[2].startswith("prompt: column 'text' cannot be read: it holds half a surrogate")
    assert done["x_skipped"].notna().tolist()[3]
    assert done["text"].tolist()[:3] == frame["text"].tolist()[:3]
