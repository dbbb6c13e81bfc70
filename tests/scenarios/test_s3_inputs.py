"""Every kind of input from a real S3 server: the rows that it has, proved by `verify` from there too."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import AsyncHTTPClient, LLMStage, run_job
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import SimulatedServer

pytest.importorskip("s3fs", reason="the S3 tests need s3fs, of the [dev] extra")

ROWS = pa.table({"id": [1, 2, 3], "text": ["a", "b", "c"]})


def put_csv(folder: Folder, _: Path) -> None:
    folder.fs.pipe_file(folder.path("a.csv"), b"id,text\n1,a\n2,b\n")
    folder.fs.pipe_file(folder.path("b.csv.bz2"), bz2.compress(b"id,text\n3,c\n"))


def put_tsv(folder: Folder, _: Path) -> None:
    folder.fs.pipe_file(folder.path("a.tsv"), b"id\ttext\n1\ta\n2\tb\n3\tc\n")


def put_arrow(folder: Folder, _: Path) -> None:
    for name, open_writer, table in (
        ("a.arrow", pa.ipc.new_file, ROWS.slice(0, 2)),
        ("b.arrows", pa.ipc.new_stream, ROWS.slice(2)),
    ):
        sink = io.BytesIO()
        with open_writer(sink, table.schema) as writer:
            writer.write_table(table)
        folder.fs.pipe_file(folder.path(name), sink.getvalue())


def put_delta(folder: Folder, tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    deltalake.write_deltalake(str(tmp_path / "t"), ROWS.slice(1), partition_by=["text"])
    deltalake.write_deltalake(str(tmp_path / "t"), ROWS, partition_by=["text"], mode="overwrite")
    folder.fs.put(str(tmp_path / "t"), folder.path(), recursive=True)


def put_iceberg(folder: Folder, _: Path) -> None:
    pytest.importorskip("pyiceberg")
    from pyiceberg.catalog.memory import InMemoryCatalog

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = {"py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO", "s3.endpoint": folder.fs.s3.meta.endpoint_url}
        catalog = InMemoryCatalog("c", warehouse=folder.url, **store)
        catalog.create_namespace("n")
        table = catalog.create_table("n.t", schema=ROWS.schema, location=folder.url)
        table.append(ROWS.slice(1))
        table.overwrite(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "put", [put_csv, put_tsv, put_arrow, put_delta, put_iceberg], ids=lambda put: put.__name__.removeprefix("put_")
)
def test_an_input_on_s3_is_read(
    make_bucket: Callable[..., str], tmp_path: Path, put: Callable[[Folder, Path], Any]
) -> None:
    """Its own credentials and address reach every library that reads it."""
    bucket = make_bucket()
    put(Folder(f"{bucket}/in"), tmp_path)
    with SimulatedServer() as server:
        stage = LLMStage(
            client=AsyncHTTPClient(server.base_url), model="sim", prompt="Say {{ text }}", output_column="x"
        )
        run_job(stage=stage, input=f"{bucket}/in", output=f"{bucket}/out", engine="local", progress=False)
    output = Folder(f"{bucket}/out")
    names = sorted(name for name in output.names() if name.endswith(".parquet"))
    tables = [pq.read_table(pa.BufferReader(output.read(name))).select(["id", "text"]) for name in names]
    assert sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: row["id"]) == ROWS.to_pylist()
    assert verify_output(f"{bucket}/out", compares_rows=True).problems == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz"])
def test_of_a_bucket_with_versions_the_planned_one_is_read(make_bucket: Callable[..., str], name: str) -> None:
    """Though the object is replaced while the job runs, and before it goes on; --restart reads the newest."""
    bucket = make_bucket()
    folder = Folder(f"{bucket}/in")
    folder.fs.call_s3("put_bucket_versioning", Bucket=bucket[5:], VersioningConfiguration={"Status": "Enabled"})

    def put(words: list[str]) -> None:
        table, sink = pa.table({"text": words}), io.BytesIO()
        pq.write_table(table, sink)
        lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
        folder.fs.pipe_file(folder.path(name), sink.getvalue() if name.endswith(".parquet") else gzip.compress(lines))

    def prompt(row: Any) -> str:
        if row["text"] == "old 0":
            put(["newer"])
        return f"Say {row['text']}"

    def run(**settings: Any) -> Any:
        stage = LLMStage(client=AsyncHTTPClient(server.base_url), model="sim", prompt=prompt, output_column="x")
        options: dict[str, Any] = {"input": f"{bucket}/in", "output": f"{bucket}/out", "rows_per_partition": 2}
        return run_job(stage=stage, **options | {"engine": "local", "progress": False} | settings)

    def words() -> list[str]:
        output = Folder(f"{bucket}/out")
        names = sorted(name for name in output.names() if name.endswith(".parquet"))
        return [
            text for name in names for text in pq.read_table(pa.BufferReader(output.read(name)))["text"].to_pylist()
        ]

    old = [f"old {number}" for number in range(6)]
    put(old)
    with SimulatedServer() as server:
        run()
        assert words() == old
        assert verify_output(f"{bucket}/out", compares_rows=True).problems == []
        Folder(f"{bucket}/out").remove("part-00000000.parquet")
        run()
        assert words() == old
        run(restart=True)
        assert words() == ["newer"]
