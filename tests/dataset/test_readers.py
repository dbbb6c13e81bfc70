"""Every reader takes the output folder as it is, during and after the job, and finds the rows and nothing else."""

from __future__ import annotations

import io
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest

from nemo_llm_stage import OutputConflictError, RunError
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.dataset.layout import find_layout
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.report.console import PlainConsole
from nemo_llm_stage.report.summary import summary
from nemo_llm_stage.run import verify_output

Rows = list[dict[str, Any]]


class StopError(Exception):
    """Raised where a process would be killed."""


def read_datasets(out: Path, format: str) -> list[Any]:  # noqa: A002 - as in OutputFolder
    import datasets

    kind = "json" if format == "jsonl" else "parquet"
    options = {"split": "train", "cache_dir": str(out.parent / "cache")}
    return list(datasets.load_dataset(kind, data_dir=str(out), **options)["id"])


READERS: dict[str, dict[str, Callable[[Path], list[Any]]]] = {
    "parquet": {
        "pandas": lambda out: pd.read_parquet(out)["id"].tolist(),
        "polars": lambda out: pl.read_parquet(out)["id"].to_list(),
        "polars, lazy": lambda out: pl.scan_parquet(out).collect()["id"].to_list(),
        "pyarrow": lambda out: ds.dataset(out).to_table()["id"].to_pylist(),
        "DuckDB": lambda out: duckdb.connect().sql(f"select id from '{out}/**/*.parquet'").df()["id"].tolist(),
        "datasets": lambda out: read_datasets(out, "parquet"),
    },
    "jsonl": {
        "polars": lambda out: pl.scan_ndjson(out).collect()["id"].to_list(),
        "pyarrow": lambda out: ds.dataset(out, format="json").to_table()["id"].to_pylist(),
        "DuckDB": lambda out: duckdb.connect().sql(f"select id from '{out}/**/*.jsonl'").df()["id"].tolist(),
        "datasets": lambda out: read_datasets(out, "jsonl"),
    },
}
PAIRS = [(kind, reader) for kind, readers in READERS.items() for reader in readers]


@pytest.fixture
def listen() -> Iterator[Callable[[Any], None]]:
    yield failpoints.listen
    failpoints.listen(None)


@pytest.mark.parametrize(("output_format", "reader"), PAIRS)
def test_a_finished_output_is_read_as_it_is(job: Any, output_format: str, reader: str) -> None:
    """With its markers and all."""
    job.run(output_format=output_format, keep_raw=True)
    assert sorted(READERS[output_format][reader](job.folder / "out")) == list(range(40))


@pytest.mark.parametrize(("output_format", "reader"), PAIRS)
def test_a_growing_output_is_read_as_it_is(
    job: Any, listen: Callable[[Any], None], output_format: str, reader: str
) -> None:
    """Only whole files are there, whatever a worker is writing."""
    found: list[list[Any]] = []

    reading = threading.Lock()

    def read(name: str) -> None:
        if name != "commit.before_publish":
            return
        with reading:
            if found or not list((job.folder / "out").glob("part-*")):
                return
            found.append(READERS[output_format][reader](job.folder / "out"))

    listen(read)
    job.run(output_format=output_format)
    assert 0 < len(found[0]) < 40
    assert set(found[0]) < set(range(40))


def test_a_folder_that_was_removed_is_begun_anew(job: Any) -> None:
    """Its state beside it does not hold up a job with other settings."""
    job.run()
    shutil.rmtree(job.folder / "out")
    job.run(job.stage(prompt="Tell {{ text }}"), input=job.folder / "in" / "a.parquet")
    assert len(job.rows()) == 25
    assert verify_output(str(job.folder / "out")).is_complete


def test_a_folder_that_was_moved_without_its_state_is_told(job: Any) -> None:
    """With what to move."""
    job.run()
    (job.folder / "out").rename(job.folder / "moved")
    with pytest.raises(OutputConflictError, match=r"\.moved\.nemo_llm_stage', which is not there. Move or copy both"):
        verify_output(str(job.folder / "moved"))
    (job.folder / ".out.nemo_llm_stage").rename(job.folder / ".moved.nemo_llm_stage")
    assert verify_output(str(job.folder / "moved")).is_complete


def test_state_is_inside_where_nothing_can_be_written_beside(job: Any, listen: Callable[[Any], None]) -> None:
    """Here a file is in the way; a run that was stopped goes on there."""
    (job.folder / ".out.nemo_llm_stage").write_text("in the way")

    def stop(name: str) -> None:
        if name == "commit.before_publish":
            raise StopError

    listen(stop)
    with pytest.raises(RunError, match="Stop"):
        job.run()
    listen(None)
    assert (job.folder / "out" / ".nemo_llm_stage" / "job.json").exists()
    job.run()
    assert job.server.stats.num_repaid <= 8  # in flight as the run was stopped
    assert pd.read_parquet(job.folder / "out")["id"].tolist() == list(range(40))
    assert verify_output(str(job.folder / "out")).is_complete


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
@pytest.mark.parametrize("is_inside", [False, True])
def test_the_summary_says_how_to_open_the_output(job: Any, output_format: str, is_inside: bool) -> None:
    """As it is; where the state is among the files, polars is told which they are."""
    if is_inside:
        (job.folder / ".out.nemo_llm_stage").write_text("in the way")
    shown = io.StringIO()
    PlainConsole(file=shown, width=400).print(summary(job.run(output_format=output_format)))
    calls = re.findall(r"(?:pandas|polars)\.read_\w+\(.+\)", shown.getvalue())
    assert len(calls) == {"parquet": 2, "jsonl": 1}[output_format]
    for call in calls:
        assert sorted(eval(call, {"pandas": pd, "polars": pl})["id"]) == list(range(40))
    assert ("*" in calls[-1]) == is_inside


@pytest.mark.parametrize(
    ("url", "state"),
    [
        ("/data/out", "/data/.out.nemo_llm_stage"),
        ("/data/out/", "/data/.out.nemo_llm_stage"),
        ("memory://bucket/a/out", "memory://bucket/a/.out.nemo_llm_stage"),
        ("memory://bucket", "memory://bucket/.nemo_llm_stage"),
        ("/", "//.nemo_llm_stage"),
    ],
)
def test_the_place_beside_a_folder(url: str, state: str) -> None:
    """A bucket and the root of a disk have none."""
    assert find_layout(Folder(url)).state_url == state
