"""
Is what a job writes what it read, whatever files it is given?

Takes a folder of Parquet, Arrow and JSON files (of public test suites, say), runs each through a job of its own against
an instant simulated server, and sets the input's columns in the output beside those of the input as pyarrow, pandas,
polars, DuckDB and datasets see them; of an output of lines, the lines themselves. A file is: the same for all readers;
the same but for readers that are known to read the input in another way, which is proved and said; refused before any
request was paid for, which is right where pyarrow, checksums on, does not read it either; wrong; or a traceback.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from _report import make_parser, show

from nemo_llm_stage import AsyncHTTPClient, LLMStage, LLMStageError, run_job
from nemo_llm_stage.dataset.files import ARROW_SUFFIXES, JSONL_SUFFIXES, PARQUET_SUFFIXES, format_of
from nemo_llm_stage.dataset.jsonl import read_lines
from nemo_llm_stage.dataset.parquet_file import EMPTY_KEY, schema_of
from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import SimulatedServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from parquet_readers import READERS, view

COLUMN = "nemo_llm_stage_answer"


def check_file(path: Path, output: Path, server: SimulatedServer) -> tuple[str, str]:
    """Run one file through a job; return its verdict and what there is to say of it."""
    shutil.rmtree(output, ignore_errors=True)
    num_before = server.stats.num_requests
    client = AsyncHTTPClient(server.base_url)
    stage = LLMStage(client=client, model="sim", prompt="Say yes", output_column=COLUMN)
    kind = format_of(path.name)
    output_format: Any = "jsonl" if kind == "jsonl" else "parquet"
    try:
        run_job(
            stage=stage,
            input=path,
            output=output,
            engine="local",
            output_format=output_format,
            rows_per_partition=1 << 40,
            progress=False,
        )
    except LLMStageError as error:
        if server.stats.num_requests > num_before:
            return "refused late", str(error)
        return ("refused, pyarrow reads it" if kind == "parquet" and _is_read(path) else "refused"), str(error)
    except Exception:  # noqa: BLE001 - a traceback is what is looked for
        return "traceback", traceback.format_exc(limit=-3)
    try:
        verification = verify_output(str(output), compares_rows=True)
        if not verification.is_complete:
            return "wrong", "; ".join(verification.problems)
        different = list(_differences(path, output, kind))
    except Exception:  # noqa: BLE001 - as above
        return "traceback", traceback.format_exc(limit=-3)
    told = ", ".join(f"{reader}: {reason or 'differs'}" for reader, reason in different)
    if not all(reason for _, reason in different):
        return "wrong", told
    return ("same, but for readers" if different else "same"), told


def _is_read(path: Path) -> bool:
    """Whether pyarrow reads a file, with checksums where it has them, and as many rows as its footer tells of."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return bool(file.read().num_rows == file.metadata.num_rows)
    except Exception:  # noqa: BLE001 - whatever pyarrow raises
        return False


def _differences(path: Path, output: Path, kind: str) -> Iterator[tuple[str, str]]:
    """Yield what sees another thing in the output than in the input, and why, where that is the reader's way."""
    (written,) = sorted(output.glob("part-*"))
    if kind == "jsonl":
        before = (line.strip().removeprefix(b"\xef\xbb\xbf")[:-1].rstrip() for _, line in read_lines(str(path)))
        after = (line for _, line in read_lines(str(written)))
        if not all(line.startswith(start) for start, line in zip(before, after, strict=True)):
            yield "a line", ""
    elif kind == "arrow":
        table = _read_arrow(path)
        output = pq.ParquetFile(written).read()
        names = output.schema.names[: table.num_columns]
        if names != table.schema.names or output.columns[: len(names)] != table.columns:
            yield "pyarrow", ""
    else:
        columns = pq.read_metadata(path).schema.to_arrow_schema().names
        for name, reader in READERS.items():
            before, after = view(reader, path, columns), view(reader, written, columns)
            if before != after:
                yield name, _way_of_reader(path, written, name, before, after)
        if len(set(columns)) < len(columns):  # only by their places
            before, after = pq.ParquetFile(path).read().columns, pq.ParquetFile(written).read().columns
            if before != after[: len(columns)]:
                yield "pyarrow", ""


def _read_arrow(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _way_of_reader(path: Path, written: Path, name: str, before: Any, after: Any) -> str:
    """Return why a reader sees an input in another way than its output, where the output is right; else nothing."""
    if isinstance(before, str) and before.startswith("fails with"):
        return "does not read the input"
    if not _has_int96(path):
        return _way_of_empty_structs(path, written, name)
    as_it_is = pq.read_table(path, coerce_int96_timestamp_unit="us")
    output = pq.read_table(written, columns=as_it_is.schema.names)
    if output.schema.types != as_it_is.schema.types:  # in nanoseconds, as all times fit these
        same_text = name == "duckdb" and str(after[0]).replace("TIMESTAMP_NS", "TIMESTAMP") == str(before[0])
        return "reads INT96 in microseconds" if same_text and after[1] == before[1] else ""
    return "INT96 beyond the range of nanoseconds wraps, or has no Python value" if output.equals(as_it_is) else ""


def _way_of_empty_structs(path: Path, written: Path, name: str) -> str:
    """Return that columns made of structs without fields, which no library writes, are null: all else is the same."""
    with path.open("rb") as file:
        schema = schema_of(file)[0]
    columns = [field.name for field in schema if EMPTY_KEY not in (field.metadata or {})]
    reader = READERS[name]
    is_same = len(columns) < len(schema) and view(reader, path, columns) == view(reader, written, columns)
    return "structs without fields are null" if is_same else ""


def _has_int96(path: Path) -> bool:
    schema = pq.read_metadata(path).schema
    return any(schema.column(number).physical_type == "INT96" for number in range(len(schema)))


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Check all files and return a row for each verdict."""
    suffixes = PARQUET_SUFFIXES + JSONL_SUFFIXES + ARROW_SUFFIXES
    paths = sorted(path for path in options.files.rglob("*") if path.name.lower().endswith(suffixes) and path.is_file())
    verdicts: Counter[str] = Counter()
    with SimulatedServer() as server:
        for path in paths:
            verdict, words = check_file(path, options.folder / "corpus", server)
            verdicts[verdict] += 1
            if verdict != "same":
                print(
                    f"{verdict}: {path.relative_to(options.files)}: {words.strip()[-400:]}", file=sys.stderr, flush=True
                )
    return [{"verdict": verdict, "files": num} for verdict, num in verdicts.most_common()]


def main() -> None:
    """Read the command line, check the files, and show how they fared."""
    parser = make_parser(__doc__)
    parser.add_argument("files", type=Path, metavar="FOLDER", help="looked through with its subfolders")
    options = parser.parse_args()
    results = run(options)
    cells = [(result["verdict"], f"{result['files']:,}") for result in results]
    show("corpus", options=options, columns=("verdict", "files"), rows=cells, results=results)


if __name__ == "__main__":
    main()
