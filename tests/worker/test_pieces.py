"""Several workers share the partitions, and pieces of them: the output is that of one worker."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_llm_stage import AsyncHTTPClient, ConfigError
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.testing import Fault


class StopError(Exception):
    """Raised where a process would be killed."""


@pytest.fixture
def listen() -> Any:
    yield failpoints.listen
    failpoints.listen(None)


def test_pieces_make_the_same_files(job: Any, answers: Callable[..., list[str]]) -> None:
    """Parquet and JSONL; each row is asked once and counted once."""
    result = job.run(actors=3, rows_per_partition=25)
    assert [row["x"] for row in job.rows()] == answers(range(40))
    assert [row["id"] for row in job.rows()] == list(range(40))
    counters = result.counters
    assert (counters.num_rows, counters.num_resumed, counters.num_attempts) == (40, 0, 40)
    assert job.server.stats.num_requests == 40


def test_pieces_are_what_several_workers_run(job: Any, listen: Callable[[Any], None]) -> None:
    """And leave nothing behind."""
    reached: list[str] = []
    listen(reached.append)
    job.run(actors=3, rows_per_partition=25)
    assert reached.count("piece.after") > 4
    left = [path for name in ("journal", "tmp") for path in (job.folder / ".out.nemo_llm_stage" / name).glob("*")]
    assert left == []


@pytest.mark.parametrize("place", ["piece.before", "piece.after", "write.before", "commit.before_publish"])
def test_no_piece_is_paid_for_twice(job: Any, listen: Callable[[Any], None], place: str) -> None:
    """Whatever was done when the run ended, and however many workers go on."""
    passes = 0

    def stop(name: str) -> None:
        nonlocal passes
        passes += name == place
        if passes == 4 or (passes and place.startswith(("write", "commit"))):
            raise StopError

    listen(stop)
    with pytest.raises(Exception, match="Stop"):
        job.run(actors=3, rows_per_partition=25)
    listen(None)
    job.run(actors=2, rows_per_partition=25)
    assert [row["id"] for row in job.rows()] == list(range(40))
    assert all(row["x_error"] is None for row in job.rows())
    assert job.server.stats.num_repaid <= 24  # at most what was in flight as the run ended


def test_a_failed_row_of_a_piece_is_counted_once(job: Any) -> None:
    """It is asked once more when the file is made, and what it cost is on the account."""
    job.server.faults = [Fault(400, contains="row 7")]
    counters = job.run(actors=3, rows_per_partition=25, max_failed_rows=None).counters
    assert (counters.num_rows, counters.num_failed, counters.num_answered) == (40, 1, 39)
    assert sum(counters.errors.values()) == 1
    assert counters.num_attempts == job.server.stats.num_requests


def test_broken_lines_are_recorded_once(job: Any) -> None:
    """By the worker that makes the file."""
    path: Path = job.folder / "in" / "b.jsonl"
    path.write_text(path.read_text() + "{broken\n" + json.dumps({"id": 40, "text": "row 40", "tags": []}) + "\n")
    counters = job.run(actors=3, rows_per_partition=25, on_bad_input="skip").counters
    assert (counters.num_rows, counters.num_left_out) == (41, 1)


def test_raw_answers_of_pieces_are_kept(job: Any) -> None:
    """A changed parser then needs no request."""
    job.run(actors=3, rows_per_partition=25, keep_raw=True)
    num_requests = job.server.stats.num_requests
    job.run(job.stage(parser=str.upper), actors=2, restart=True, keep_raw=True)
    assert job.server.stats.num_requests == num_requests
    assert all(row["x"].isupper() for row in job.rows())


def test_a_stage_that_cannot_be_copied_is_refused(job: Any) -> None:
    """By several workers in one process; each needs a client of its own."""
    client = AsyncHTTPClient(job.server.base_url, max_concurrent_requests=8)
    client.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="a stage that can be copied"):
        job.run(job.stage(client=client), actors=3, rows_per_partition=25)
