"""JSONL as the world writes it: what is read is what is written, and what cannot be is said before anything is paid."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import InputError
from nemo_llm_stage.dataset.files import find_files
from nemo_llm_stage.dataset.json_shape import merge_all
from nemo_llm_stage.dataset.jsonl import read_lines
from nemo_llm_stage.dataset.plan import Plan, make_plan
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.dataset.scan import MIN_BYTES_FOR_PROCESSES, ScanRange, scan_all, scan_range
from nemo_llm_stage.run import verify_output


def write(folder: Path, *lines: str, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", errors="surrogatepass")
    return path


def plan_of(path: Path, **options: Any) -> Plan:
    return make_plan(find_files(path), **options)


def read(plan: Plan) -> list[dict[str, Any]]:
    parts = [read_partition(partition, plan.schema, rows_per_chunk=100) for partition in plan.partitions]
    return [row for part in parts for table in part for row in table.to_pylist(maps_as_pydicts="strict")]


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ([1, -(2**63), 2**63 - 1], pa.int64()),
        ([1, 2**63], pa.uint64()),
        ([0, 2**64 - 1], pa.uint64()),
        ([-1, 2**64 - 1], pa.decimal128(38, 0)),
        ([2**64], pa.decimal128(38, 0)),
        ([-(2**63)], pa.int64()),
        ([-(2**63) - 1, 0], pa.decimal128(38, 0)),
        ([1 - 10**19], pa.decimal128(38, 0)),
        ([10**40, -1], pa.decimal256(76, 0)),
    ],
)
def test_integers_keep_every_digit(tmp_path: Path, numbers: list[int], kind: pa.DataType) -> None:
    """In the narrowest type that holds them all."""
    plan = plan_of(write(tmp_path, *(json.dumps({"id": number}) for number in numbers)))
    assert plan.schema.field("id").type == kind
    assert [Decimal(row["id"]) for row in read(plan)] == numbers


def test_integers_that_a_double_does_not_hold_are_not_mixed_with_floats(tmp_path: Path) -> None:
    """Naming both lines; as JSON text they keep their digits."""
    path = write(tmp_path, '{"a": 9007199254740993}', '{"a": 1.5}')
    with pytest.raises(
        InputError, match=r"\(a double would round its integers\): integer in .*line 1 and number in .*line 2"
    ):
        plan_of(path)
    assert [row["a"] for row in read(plan_of(path, on_mixed_types="json"))] == ["9007199254740993", "1.5"]


LINES = [
    '{"text":"a","id":18446744073709551616,"price":1.10,"big":1e5,"metadata":{}}',
    '{"text":"b","id":-1,"price":2,"big":1,"metadata":{},"extra":{"é":[1,null]}}',
    '{"text":"c","id":3,"price":NaN,"big":Infinity,"metadata":{},"extra":null}',
    '{"text":"d \\ud83d","id":4,"price":-Infinity,"big":0,"metadata":{}}',
]


def test_lines_to_lines_is_byte_for_byte(job: Any, tmp_path: Path) -> None:
    """The answers come after what stood there: digits, NaN, half surrogate pairs, absent fields, empty objects."""
    job.run(input=write(tmp_path, *LINES), output_format="jsonl")
    (output,) = (job.folder / "out").glob("part-*.jsonl")
    written = output.read_text().splitlines()
    assert [line[: len(before) - 1] for line, before in zip(written, LINES, strict=True)] == [
        before[:-1] for before in LINES
    ]
    assert all(line[len(before) - 1 :].startswith(',"x":"') for line, before in zip(written, LINES, strict=True))
    assert verify_output(str(job.folder / "out"), compares_rows=True).is_complete


def test_lines_to_parquet_keeps_what_parquet_can_hold(job: Any, tmp_path: Path) -> None:
    """NaN and infinities are floats, an empty object is an empty map, half a surrogate pair is U+FFFD."""
    job.run(input=write(tmp_path, *LINES))
    rows = job.rows()
    assert [row["id"] for row in rows] == [2**64, -1, 3, 4]
    assert [str(row["price"]) for row in rows] == ["1.1", "2.0", "nan", "-inf"]
    assert [row["metadata"] for row in rows] == [[]] * 4
    assert rows[3]["text"] == "d \ufffd"
    assert rows[1]["extra"] == {"é": [1, None]}


def test_a_field_that_first_appears_late_is_there(tmp_path: Path) -> None:
    """All lines are read before anything is paid, unless a sample is asked for."""
    early = '{"text": "' + "z" * 1000 + '", "maybe": null}'
    path = write(tmp_path, *[early] * 5000, '{"text": "", "maybe": {"a": 1}, "late": 7}')
    plan = plan_of(path)
    assert read(plan)[-1] == {"text": "", "maybe": {"a": 1}, "late": 7}
    with pytest.raises(InputError, match=r"line 5001, has a field 'late' .*scan_input: full"):
        read(plan_of(path, scan_input="sample"))


def test_a_nested_field_beyond_the_sample_is_not_dropped(tmp_path: Path) -> None:
    """It is named like any other surprise."""
    early = json.dumps({"text": "z" * 1000, "o": {"a": 1}})
    path = write(tmp_path, *[early] * 5000, '{"text": "", "o": {"a": 1, "b": 2}}')
    with pytest.raises(InputError, match=r"line 5001, has a field 'o\.b'"):
        read(plan_of(path, scan_input="sample"))


MIXED = ['{"content": "hi", "n": 1}', '{"content": [{"type": "text"}], "n": 2}', '{"content": null, "n": 3}']


def test_mixed_types_are_refused_naming_both_places(tmp_path: Path) -> None:
    """Also across files."""
    write(tmp_path, MIXED[0], MIXED[2], name="1.jsonl")
    write(tmp_path, MIXED[2], MIXED[1], name="2.jsonl")
    with pytest.raises(InputError, match=r"'content'.*string in .*1\.jsonl', line 1 and list in .*2\.jsonl', line 2"):
        plan_of(tmp_path)


def test_mixed_types_can_be_kept_as_json_text(job: Any, tmp_path: Path) -> None:
    """In Parquet; lines are written as they stood."""
    path = write(tmp_path, *MIXED)
    stage = job.stage(prompt="{{ content | default('none', true) }}", output_column="x")
    job.run(stage, input=path, on_mixed_types="json")
    assert [row["content"] for row in job.rows()] == ['"hi"', '[{"type":"text"}]', None]
    assert verify_output(str(job.folder / "out"), compares_rows=True).is_complete
    job.run(stage, input=path, on_mixed_types="json", output_format="jsonl", output=job.folder / "lines")
    lines = (job.folder / "lines").glob("part-*.jsonl").__next__().read_text().splitlines()
    assert [json.loads(line)["content"] for line in lines] == ["hi", [{"type": "text"}], None]


def test_skipping_bad_input_leaves_out_rows_of_another_type(job: Any, tmp_path: Path) -> None:
    """Not the whole file."""
    path = write(tmp_path, '{"text": "a", "n": 1}', '{"text": "b", "n": "?"}', '{"text": "c", "n": 3}')
    result = job.run(input=path, on_bad_input="skip")
    assert [row["n"] for row in job.rows()] == [1, 3]
    assert (result.counters.num_left_out, result.bad_files) == (1, ())


def test_a_bool_among_floats_is_no_number(tmp_path: Path) -> None:
    """Arrow would make it 1.0."""
    with pytest.raises(InputError, match="no common type"):
        plan_of(write(tmp_path, '{"a": 1.5}', '{"a": true}'))


def test_objects_with_keys_of_their_own_become_a_map(job: Any, tmp_path: Path) -> None:
    """And not a struct with a field for every key of every row, which grows with the square of the rows."""
    lines = [json.dumps({"text": "t", "scores": {f"key{number}": number, "all": 0}}) for number in range(500)]
    plan = plan_of(write(tmp_path, *lines))
    assert plan.schema.field("scores").type == pa.map_(pa.string(), pa.int64())
    assert any("'scores'" in notice for notice in plan.notices)
    assert read(plan)[7]["scores"] == {"key7": 7, "all": 0}
    stage = job.stage(prompt="{{ scores.all }} {{ scores | tojson }}")
    job.run(stage, input=tmp_path / "a.jsonl")
    prompts = [request.body["messages"][0]["content"] for request in job.server.requests]
    assert '0 {"key7":7,"all":0}' in prompts
    assert sum(path.stat().st_size for path in (job.folder / "out").glob("part-*")) < 500_000


def test_rows_with_fields_of_their_own_are_refused(tmp_path: Path) -> None:
    """They would be a column each."""
    lines = [json.dumps({f"key{number}": number}) for number in range(12_000)]
    with pytest.raises(InputError, match="each line has fields of its own"):
        plan_of(write(tmp_path, *lines))


def test_what_is_nested_deeper_than_parquet_holds_is_json_text(job: Any, tmp_path: Path) -> None:
    """Found before anything is paid, and read back by pyarrow."""
    value: Any = 1
    for _ in range(100):
        value = [value]
    job.run(input=write(tmp_path, json.dumps({"text": "a", "deep": value})))
    (output,) = (job.folder / "out").glob("part-*.parquet")
    deep = pq.read_table(output).column("deep").to_pylist()[0]
    while isinstance(deep, list):
        deep = deep[0]
    assert re.fullmatch(r"\[+1\]+", deep)


def test_a_mended_input_is_planned_anew_with_restart(job: Any, tmp_path: Path) -> None:
    """And without it too, as long as no row is finished."""
    path = write(tmp_path, '{"text": "a"}')
    job.run(input=path)
    write(tmp_path, '{"text": "a"}', '{"text": "b", "new": 1}')
    with pytest.raises(InputError, match="--restart"):
        job.run(input=path)
    job.run(input=path, restart=True)
    assert [row["new"] for row in job.rows()] == [None, 1]


def test_ranges_of_a_file_are_looked_at_by_several_processes(tmp_path: Path) -> None:
    """With the result of one look at all of it, in order."""
    path = write(tmp_path, *(json.dumps({"id": number, "text": "x" * 50}) for number in range(2000)))
    size = path.stat().st_size
    ranges = [ScanRange(str(path), start, min(start + 10_000, size), 100, False) for start in range(0, size, 10_000)]
    done: list[ScanRange] = []
    parts = list(scan_all(ranges, MIN_BYTES_FOR_PROCESSES, done.append))
    assert sorted(wanted.start for wanted in done) == [wanted.start for wanted in ranges]
    whole = scan_range(ScanRange(str(path), 0, None, 100, False))
    assert sum(part.num_rows for part in parts) == whole.num_rows == 2000
    assert merge_all(part.shape for part in parts).as_json() == whole.shape.as_json()
    lines = [offset for offset, _ in read_lines(str(path))]
    assert all(mark in lines for part in parts for mark in part.marks)


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_rows_without_fields_are_rows(job: Any, tmp_path: Path, output_format: str) -> None:
    """Each gets its answer."""
    (tmp_path / "a.jsonl").write_text("{}\n{}\n")
    job.run(job.stage(prompt="Say yes"), input=tmp_path / "a.jsonl", output_format=output_format)
    assert [row["x_error"] for row in job.rows()] == [None, None]
    assert verify_output(str(job.folder / "out"), compares_rows=True).problems == []
