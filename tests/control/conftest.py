"""What the tests of a run's control share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from slow_job import SlowJob

from nemo_llm_stage.testing import SimulatedServer


@pytest.fixture
def slow_job(tmp_path: Path) -> Iterator[SlowJob]:
    with ExitStack() as stack:
        server = stack.enter_context(SimulatedServer(service_time_s=0.1))
        yield SlowJob(tmp_path, server, stack)
