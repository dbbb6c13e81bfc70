"""`verify --rows`: each row of the output is set beside the row of the input that it should be."""

from __future__ import annotations

import datetime as dt
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.dataset import checksum
from nemo_llm_stage.run import verify_output

ROWS = [
    {
        "text": f"row {number % 7}",
        "score": math.nan if number % 3 else None,
        "data": bytes([number]),
        "day": dt.date(2026, 11, 1 + number),
        "nested": [{"a": number, "b": None}],
    }
    for number in range(20)
]


def write_input(folder: Path) -> Path:
    path = folder / "many_types.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def swap_two_rows(path: Path) -> None:
    """Swap two rows of a file without a checksum, as older versions wrote it."""
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines(keepends=True)
        lines[3], lines[4] = lines[4], lines[3]
        path.write_text("".join(lines))
        counts = path.parents[1] / ".out.nemo_llm_stage" / "commits" / f"{path.name}.json"
        counts.write_text(json.dumps({**json.loads(counts.read_text()), "checksum": None}))
        return
    with pq.ParquetFile(path) as file:
        table, metadata = file.read(), file.metadata.metadata
    kept = {key: value for key, value in metadata.items() if key not in (b"ARROW:schema", checksum.KEY)}
    swapped = table.take([0, 1, 2, 4, 3, *range(5, table.num_rows)])
    pq.write_table(swapped.replace_schema_metadata(kept), path)


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_rows_in_their_places_are_proved_and_swapped_ones_named(job: Any, output_format: str) -> None:
    """Of columns of any type; counts alone do not tell."""
    job.run(input=write_input(job.folder), output_format=output_format)
    url = str(job.folder / "out")
    assert verify_output(url, compares_rows=True).is_complete
    swap_two_rows(job.folder / "out" / f"part-00000001.{output_format}")
    assert verify_output(url).is_complete
    problems = verify_output(url, compares_rows=True).problems
    assert len(problems) == 1
    assert f"part-00000001.{output_format}, row 4, is not the row of" in problems[0]


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    "settings",
    [
        {"keep_if": "{{ not text.endswith('3') }}"},
        {"explode": True, "generation_config": {"n": 3, "temperature": 1.0, "seed": None}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_rows_that_were_dropped_or_made_several_are_proved(
    job: Any, settings: dict[str, Any], output_format: str
) -> None:
    """They come in the input's order all the same."""
    job.run(job.stage(**settings), output_format=output_format)
    verification = verify_output(str(job.folder / "out"), compares_rows=True)
    assert verification.is_complete, verification
    assert verification.counters.num_written != 40


def test_lines_that_were_left_out_are_no_gap(job: Any) -> None:
    """They are written down elsewhere."""
    path = job.folder / "in" / "b.jsonl"
    path.write_text(path.read_text().replace(json.dumps({"id": 27, "text": "row 27", "tags": ["27"]}), "{"))
    job.run(on_bad_input="skip")
    assert verify_output(str(job.folder / "out"), compares_rows=True).is_complete
