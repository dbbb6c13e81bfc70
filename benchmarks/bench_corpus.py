"""
Is what a job writes what it read, whatever files it is given?

Takes a folder of Parquet and JSON files (of public test suites, say), runs each through a job of its own against an
instant simulated server, and sets the input's columns in the output beside those of the input as pyarrow, pandas,
polars, DuckDB and datasets see them; of an output of lines, the lines themselves. A file is: the same for all readers;
refused before any request was paid for, which is right where pyarrow does not read it either; wrong; or a traceback.
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

import pyarrow.parquet as pq
from _report import make_parser, show

from nemo_llm_stage import AsyncHTTPClient, LLMStage, LLMStageError, run_job
from nemo_llm_stage.dataset.files import JSONL_SUFFIXES, PARQUET_SUFFIXES
from nemo_llm_stage.dataset.jsonl import read_lines
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
    is_parquet = path.name.lower().endswith(PARQUET_SUFFIXES)
    output_format: Any = "parquet" if is_parquet else "jsonl"
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
        return ("refused, pyarrow reads it" if is_parquet and _is_read(path) else "refused"), str(error)
    except Exception:  # noqa: BLE001 - a traceback is what is looked for
        return "traceback", traceback.format_exc(limit=-3)
    try:
        verification = verify_output(str(output), compares_rows=True)
        if not verification.is_complete:
            return "wrong", "; ".join(verification.problems)
        different = list(_differences(path, output, is_parquet=is_parquet))
    except Exception:  # noqa: BLE001 - as above
        return "traceback", traceback.format_exc(limit=-3)
    return ("wrong", ", ".join(different)) if different else ("same", "")


def _is_read(path: Path) -> bool:
    try:
        pq.read_table(path)
    except Exception:  # noqa: BLE001 - whatever pyarrow raises
        return False
    return True


def _differences(path: Path, output: Path, *, is_parquet: bool) -> Iterator[str]:
    """Yield what sees another thing in the output than in the input."""
    (written,) = sorted(output.glob("part-*"))
    if not is_parquet:
        before = (line.strip().removeprefix(b"\xef\xbb\xbf")[:-1].rstrip() for _, line in read_lines(str(path)))
        after = (line for _, line in read_lines(str(written)))
        if not all(line.startswith(start) for start, line in zip(before, after, strict=True)):
            yield "a line"
        return
    columns = pq.read_metadata(path).schema.to_arrow_schema().names
    for name, reader in READERS.items():
        if view(reader, written, columns) != view(reader, path, columns):
            yield name


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Check all files and return a row for each verdict."""
    suffixes = PARQUET_SUFFIXES + JSONL_SUFFIXES
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
