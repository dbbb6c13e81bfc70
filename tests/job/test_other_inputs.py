"""Jobs over CSV, TSV and Arrow files: what was read is what is written, in both output formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import Fault

CSV = 'id,zip,text,score\n1,007,"one, ""two""\nthree",1.5\n2,123,row 31,\n3,,,2\n'


def write_csv(path: Path) -> None:
    path.write_text(CSV)


def write_tsv(path: Path) -> None:
    path.write_text('id\tzip\ttext\tscore\n1\t007\t"one, ""two""\nthree"\t1.5\n2\t123\trow 31\t\n3\t\t\t2\n')


def write_arrow(path: Path) -> None:
    with pa.ipc.new_file(str(path), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=2)


TABLE = pa.table(
    {
        "id": [1, 2, 3],
        "zip": ["007", "123", None],
        "text": ['one, "two"\nthree', "row 31", None],
        "score": [1.5, None, 2.0],
    }
)


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
@pytest.mark.parametrize(("name", "write"), [("a.csv", write_csv), ("a.tsv", write_tsv), ("a.arrow", write_arrow)])
def test_rows_come_out_as_they_were(job: Any, name: str, write: Callable[[Path], None], output_format: str) -> None:
    """Also after a retry; `verify --rows` reads both sides again."""
    path = job.folder / name
    write(path)
    job.server.faults = [Fault(400, contains="row 31")]
    job.run(input=path, output_format=output_format, rows_per_partition=2, max_failed_rows=None)
    job.server.faults = []
    assert job.retry().counters.num_failed == 0
    out = job.folder / "out"
    if output_format == "jsonl":
        rows = [json.loads(line) for file in sorted(out.glob("part-*")) for line in file.open()]
        assert [{name: row[name] for name in TABLE.schema.names} for row in rows] == TABLE.to_pylist()
    else:
        assert pq.read_table(out).select(TABLE.schema.names).equals(TABLE)
    verification = verify_output(str(out), compares_rows=True)
    assert (verification.problems, verification.num_missing) == ([], 0)


def test_declared_types_of_a_job(job: Any) -> None:
    """`column_types` of a job file, or in Python."""
    path = job.folder / "a.csv"
    write_csv(path)
    job.run(input=path, column_types={"id": "string", "score": "float32"})
    schema = pq.read_schema(next((job.folder / "out").glob("part-*")))
    assert [str(schema.field(name).type) for name in ("id", "score")] == ["string", "float"]
