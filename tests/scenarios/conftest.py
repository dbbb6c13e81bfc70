"""What the scenarios share: the crash harness of the benchmarks, and servers in processes of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_llm_stage.testing import SimulatedServerProcess

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from _nursery import Nursery


@pytest.fixture(scope="module")
def crash_server() -> Iterator[SimulatedServerProcess]:
    """Serves each request for 4 ms, so that some are in flight whenever a job dies."""
    with SimulatedServerProcess(service_time_s=0.004) as server:
        yield server


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Forks attempts at jobs."""
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def another() -> Iterator[Nursery]:
    """A second nursery, for attempts that meet one of the first."""
    with Nursery() as nursery:
        yield nursery
