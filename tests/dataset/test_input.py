"""What of an input is read, and what is refused before anything is paid."""

from __future__ import annotations

import bz2
import datetime as dt
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import InputError, LLMStageError, OutputConflictError
from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.dataset.files import find_files
from nemo_llm_stage.dataset.plan import Plan, cut, make_plan
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.run import verify_output


def read(plan: Plan) -> pa.Table:
    parts = [read_partition(partition, plan.schema, rows_per_chunk=2) for partition in plan.partitions]
    return pa.concat_tables(table for part in parts for table in part)


ROWS = [{"text": "a\nb", "n": 1}, {"text": "ü", "n": 2}, {"text": "c", "n": 3}]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl.bz2", "a.jsonl.xz", "array.json", "array.json.gz"])
def test_json_in_every_wrapping_is_read(tmp_path: Path, name: str) -> None:
    """Lines, or one array of rows; plain or packed."""
    text = json.dumps(ROWS, indent=2) if "array" in name else "".join(json.dumps(row) + "\n" for row in ROWS)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(text.encode()))
    plan = make_plan(find_files(tmp_path))
    assert read(plan).to_pylist() == ROWS
    assert plan.num_rows == 3


LONG = json.dumps({"n": 1, "long": "x" * (2 << 20)}, indent=1) + '{"n": 2}'


@pytest.mark.parametrize("ending", ["json", "jsonl", "ndjson.gz"])
@pytest.mark.parametrize(
    "text",
    [
        '{\n  "n": 1\n}\n{"n":\n2}',
        '\ufeff{"n": 1}{"n": 2}',
        '{"n": 1}{"n": \n2}\n',
        '{"n":\r\n1}\r\n{"n": 2}\r\n',
        '[\n{"n": 1},\n{"n": 2}\n]\n',
        LONG,
        json.dumps({"n": 1, "long": [None] * 200_000}, indent=1) + "\n" + '{"n": 2}',
    ],
    ids=["pretty", "one line", "one and a half", "CR", "array", "a long text", "many lines"],
)
@pytest.mark.parametrize("scan_input", ["full", "sample"])
def test_json_may_hold_rows_of_several_lines(tmp_path: Path, ending: str, text: str, scan_input: str) -> None:
    """As programs write documents, one after the other; each row once, however the rows are cut."""
    data = gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode()
    (tmp_path / f"a.{ending}").write_bytes(data)
    plan = make_plan(find_files(tmp_path), rows_per_partition=1, scan_input=scan_input)
    assert read(plan).column("n").to_pylist() == [1, 2]
    assert (plan.num_rows, plan.is_exact, len(plan.partitions)) == (2, True, 1)
    assert cut(plan.partitions[0], 0.5) is None


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"n": 1}]\n[{"n": 2}]\n', "line 2, is not JSON .there is more after the JSON array"),
        ('[{"n": 1}', "line 1, is not JSON .a JSON array is not closed"),
        ('{"n": 1}\n{"n":', "line 2, is not JSON"),
        ('{"n": 1}\n{\n"n": 2\n}\n', "line 2, is not JSON"),
        ('{"n": \n{"n": 1}\n{"n": 2}\n', "line 1, is not JSON"),
        ('{"n": 1} x\n{"n": 1}\n', "line 1, is not JSON"),
        ('{\n"n": 1\n}\n{\n"n": 2, x\n}\n', "line 5, is not JSON"),
        ('{"n": 1', "line 1, is not JSON"),
    ],
)
def test_a_broken_json_file_is_refused(tmp_path: Path, ending: str, text: str, words: str) -> None:
    """Nothing of it is passed over, and its line is named."""
    (tmp_path / f"a.{ending}").write_text(text)
    with pytest.raises(InputError, match=words):
        make_plan(find_files(tmp_path))


def test_a_document_that_breaks_off_can_be_skipped(tmp_path: Path) -> None:
    """As other damaged files."""
    (tmp_path / "a.jsonl").write_text('{\n"n": 1\n}\n{\n"n":')
    (tmp_path / "b.jsonl").write_text('{"n": 2}\n')
    told: list[BadInput] = []
    plan = make_plan(find_files(tmp_path), on_bad=told.append)
    assert read(plan).column("n").to_pylist() == [2]
    assert ["line 5, is not JSON" in bad.reason for bad in told] == [True]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b"\xef\xbb{}", 1),
        ('{"text": "a"}\n'.encode("utf-16"), 1),
        (b'{"text": "a"}\n{"text": "\xe9"}\n', 2),
        (b'{\n"text": "\xe9"}\n', 2),
    ],
)
def test_json_that_is_not_utf_8_is_refused(tmp_path: Path, name: str, data: bytes, number: int) -> None:
    """With what converts it."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"line {number}, is not UTF-8 \(.*\).*`iconv -f ENCODING"):
        make_plan(find_files(tmp_path))


def test_folders_give_columns_as_in_hive(job: Any, tmp_path: Path) -> None:
    """Typed as pyarrow does, below the input only, for rows of both formats."""
    for year, lang, name in (
        (2024, "en", "a.parquet"),
        (2025, "a%20b", "b.jsonl"),
        (-1, "__HIVE_DEFAULT_PARTITION__", "c.parquet"),
    ):
        path = tmp_path / "run=7" / f"year={year}" / f"lang={lang}" / name
        path.parent.mkdir(parents=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"text": [path.name]}), path)
        else:
            path.write_text(json.dumps({"text": path.name}) + "\n")
    source = tmp_path / "run=7"
    expected = [
        {"text": "c.parquet", "year": -1, "lang": None},
        {"text": "a.parquet", "year": 2024, "lang": "en"},
        {"text": "b.jsonl", "year": 2025, "lang": "a b"},
    ]
    plan = make_plan(find_files(source))
    assert plan.schema.field("year").type == pa.int32()
    assert read(plan).to_pylist() == expected
    for output_format in ("parquet", "jsonl"):
        output = job.folder / output_format
        job.run(input=source, output=output, output_format=output_format)
        files = sorted(output.glob("part-*"))
        rows = [
            row
            for file in files
            for row in (pq.read_table(file).to_pylist() if output_format == "parquet" else map(json.loads, file.open()))
        ]
        assert [{name: row[name] for name in ("text", "year", "lang")} for row in rows] == expected
        assert verify_output(str(output), compares_rows=True).is_complete


def test_an_output_in_the_input_folder_is_refused_at_once(job: Any) -> None:
    """And an input in the output folder."""
    with pytest.raises(OutputConflictError, match="in the input folder"):
        job.run(output=job.folder / "in" / "out")
    with pytest.raises(OutputConflictError, match="is in the output folder"):
        job.run(output=job.folder)
    assert job.server.stats.num_requests == 0


def test_old_timestamps_beyond_nanoseconds_keep_their_year(job: Any, tmp_path: Path) -> None:
    """INT96 holds the year 9999; nanoseconds would make it 1816."""
    far = [dt.datetime(9999, 12, 31, tzinfo=dt.UTC), dt.datetime(1, 1, 1, tzinfo=dt.UTC), None]
    table = pa.table({"when": pa.array(far, pa.timestamp("us")), "text": ["a", "b", "c"]})
    path = tmp_path / "old.parquet"
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, store_schema=False)
    job.run(input=path)
    written = pq.read_table(next((job.folder / "out").glob("part-*"))).column("when")
    assert written.type == pa.timestamp("us")
    assert [value and value.year for value in written.to_pylist()] == [9999, 1, None]
    assert verify_output(str(job.folder / "out"), compares_rows=True).is_complete


def test_old_timestamps_within_nanoseconds_keep_their_digits(tmp_path: Path) -> None:
    """Where both cannot be had, the file is refused."""
    ns = pa.array([1_577_836_800_123_456_789, None, -1], pa.timestamp("ns"))
    pq.write_table(pa.table({"when": ns}), tmp_path / "old.parquet", use_deprecated_int96_timestamps=True)
    assert read(make_plan(find_files(tmp_path))).column("when").combine_chunks() == ns


def test_a_footer_that_contradicts_its_row_groups_is_damage(tmp_path: Path) -> None:
    """Found when planning."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(40)}), path, row_group_size=20)
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - size : -8]
    place = footer.index(b"\x16\x50\x19")  # the rows of the file (zigzag 40), before the list of row groups
    path.write_bytes(data[: -8 - size] + footer[:place] + b"\x16\x52\x19" + footer[place + 3 :] + data[-8:])
    with pytest.raises(InputError, match="footer says 41 rows, its row groups say 40"):
        make_plan(find_files(tmp_path))


def test_an_input_that_is_replaced_while_the_job_runs_stops_it(job: Any) -> None:
    """Before `_SUCCESS`, whether its partitions were all read or not."""
    path = job.folder / "in" / "b.jsonl"
    changed: list[int] = []

    def change(row: Any) -> str:
        if not changed:
            changed.append(1)
            path.write_text(path.read_text().replace("row 39", "row 40"))
        return f"Say {row['text']}"

    with pytest.raises(LLMStageError, match=r"input was changed while the job ran: .*b\.jsonl"):
        job.run(job.stage(prompt=change))
    assert not (job.folder / "out" / "_SUCCESS").exists()
