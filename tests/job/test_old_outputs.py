"""Outputs and journals of an older version are resumed, verified and retried as that version would have done it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_llm_stage.testing import SimulatedServer

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from make_old_outputs import CASES, read_rows, retry, run, unpack, verify


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer() as server:
        yield server


@pytest.mark.parametrize("name", CASES)
def test_an_old_job_is_ended_without_sending_what_was_answered(
    server: SimulatedServer, tmp_path: Path, name: str
) -> None:
    """As many requests, and the same rows, as the older version needed; every row is there once."""
    unpack(name, tmp_path, server.base_url)
    expected, case = json.loads((tmp_path / "expected.json").read_text()), CASES[name]
    server.faults = [] if case.retries else case.faults
    (retry if case.retries else run)(case, tmp_path, server.base_url)
    assert server.stats.num_requests == expected["num_requests"]
    assert read_rows(tmp_path) == expected["rows"]
    assert verify(tmp_path).startswith("0\n")


@pytest.mark.parametrize("name", CASES)
def test_failed_rows_of_an_old_job_are_retried(server: SimulatedServer, tmp_path: Path, name: str) -> None:
    """Once it is ended; they and no others."""
    unpack(name, tmp_path, server.base_url)
    expected, case = json.loads((tmp_path / "expected.json").read_text()), CASES[name]
    server.faults = [] if case.retries else case.faults
    (retry if case.retries else run)(case, tmp_path, server.base_url)
    server.faults = []
    server.reset()
    retry(case, tmp_path, server.base_url)
    assert server.stats.num_requests == expected["num_retried"]
    assert read_rows(tmp_path) == expected["rows_retried"]
    assert verify(tmp_path).startswith("0\n")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dies_at is None])
def test_a_finished_old_job_is_verified_as_it_is(server: SimulatedServer, tmp_path: Path, name: str) -> None:
    """Also row by row."""
    unpack(name, tmp_path, server.base_url)
    assert verify(tmp_path).startswith("0\n")
