"""A stage over a table, as in a notebook: a look first, counts after, and cells that are run twice or interrupted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from nemo_llm_stage import AsyncHTTPClient, ConfigError, LLMStage, MultiColumnStage
from nemo_llm_stage.errors import ConnectionFailedError
from nemo_llm_stage.testing import Fault, SimulatedServer

FRAME = pd.DataFrame({"text": [f"row {i}" for i in range(20)]})


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer() as server:
        yield server


def stage_on(base_url: str, name: str = "x", prompt: str = "Say {{ text }}") -> LLMStage:
    client = AsyncHTTPClient(base_url, max_concurrent_requests=4, max_retries=0)
    return LLMStage(client=client, model="sim", prompt=prompt, output_column=name)


def test_a_frame_has_the_counts_of_its_call(server: SimulatedServer, tmp_path: Path) -> None:
    """In its attributes, which outlive a Parquet file."""
    server.faults = [Fault(400, contains="row 3")]
    with_answers = stage_on(server.base_url).process(FRAME)
    counts = with_answers.attrs["nemo_llm_stage"]
    assert (counts["rows"], counts["answered"], counts["failed"]) == (20, 19, 1)
    assert (counts["requests"], counts["errors"]) == (20, {"bad_request": 1})
    with_answers.to_parquet(tmp_path / "out.parquet")
    assert pd.read_parquet(tmp_path / "out.parquet").attrs["nemo_llm_stage"] == counts
    assert "nemo_llm_stage" not in FRAME.attrs


def test_a_cell_can_be_run_twice(server: SimulatedServer) -> None:
    """With overwrite; without it the message has the line to write."""
    stage = stage_on(server.base_url)
    once = stage.process(FRAME)
    with pytest.raises(ConfigError, match=r"stage\.process\(table, overwrite=True\)"):
        stage.process(once)
    twice = stage.process(once, overwrite=True)
    assert list(twice.columns) == list(once.columns)
    assert twice["x"].equals(once["x"])
    assert stage.process(pl.from_pandas(once), overwrite=True).columns == list(once.columns)


def test_a_server_that_is_down_raises_at_once() -> None:
    """No row is failed for it."""
    with pytest.raises(ConnectionFailedError, match="Is the server up"):
        stage_on("http://127.0.0.1:9/v1").process(FRAME)


def test_the_server_is_looked_at_once(server: SimulatedServer) -> None:
    """Not for each of many small tables."""
    stage = stage_on(server.base_url)
    for _ in range(3):
        stage.process(FRAME.head(1))
    assert [request.path for request in server.requests].count("/v1/models") <= 1
    server.faults = [Fault(503)]
    assert stage.process(FRAME.tail(1))["x_error"].iloc[0].startswith("server_error")


def test_a_cache_folder_keeps_the_answers(server: SimulatedServer, tmp_path: Path) -> None:
    """Only new rows are sent; another prompt is asked anew."""
    for num_rows, num_new in ((5, 5), (8, 3), (8, 0)):
        stage = stage_on(server.base_url)
        counts = stage.process(FRAME.head(num_rows), cache_dir=tmp_path / "cache").attrs["nemo_llm_stage"]
        assert (counts["answered"], counts["requests"], counts["from_cache"]) == (num_rows, num_new, num_rows - num_new)
    other = stage_on(server.base_url, prompt="Tell {{ text }}").process(FRAME.head(2), cache_dir=tmp_path / "cache")
    assert other.attrs["nemo_llm_stage"]["requests"] == 2


def test_an_interrupted_cell_keeps_what_is_answered(tmp_path: Path) -> None:
    """Ctrl-C ends it at once; run again, it sends only the rest."""
    with SimulatedServer(service_time_s=lambda body: 30.0 if "row 10" in str(body) else 0.0) as server:
        stage = stage_on(server.base_url)
        while_it_waits = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        while_it_waits.start()
        with pytest.raises(KeyboardInterrupt):
            stage.process(FRAME, cache_dir=tmp_path)
        while_it_waits.join()
        stage.close()
    with SimulatedServer() as server:
        counts = stage_on(server.base_url).process(FRAME, cache_dir=tmp_path).attrs["nemo_llm_stage"]
    assert counts["answered"] == 20
    assert 1 <= counts["requests"] < 20


def test_progress_is_shown_where_it_is_wanted(server: SimulatedServer, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr; by default only in a notebook."""
    stage = stage_on(server.base_url)
    stage.process(FRAME)
    assert capsys.readouterr().err == ""
    stage.process(FRAME.rename_axis("i"), progress=True)
    assert "20/20 100%" in capsys.readouterr().err


def test_a_preview_shows_prompts_and_answers(server: SimulatedServer) -> None:
    """Of rows spread over the table, as text and as HTML, with what all rows would take."""
    seen = stage_on(server.base_url).preview(FRAME, 2)
    for words in ("row 1 of 20", "row 11 of 20", "Say row 10", "all 20 rows", "input tokens"):
        assert words in repr(seen)
    assert "Say row 10" in seen._repr_html_()
    assert server.stats.num_requests == 2


def test_a_dry_preview_sends_nothing() -> None:
    """No server is needed; a column that waits for another says so."""
    down = "http://127.0.0.1:9/v1"
    stage = MultiColumnStage([stage_on(down, "a"), stage_on(down, "b", "Rate {{ a }}")])
    seen = stage.preview(FRAME, 1, dry_run=True)
    assert "no requests were sent" in repr(seen)
    assert "waits for the answer of a" in repr(seen)


def test_a_preview_of_a_small_table_shows_all_of_it(server: SimulatedServer) -> None:
    """An Arrow table too; an empty one shows nothing."""
    stage = stage_on(server.base_url)
    assert len(stage.preview(FRAME.head(3)).rows) == 3
    assert stage.preview(FRAME.head(0)).rows == ()
