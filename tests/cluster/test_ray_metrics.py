"""A live job's metrics come out of a real Ray, by the names that the dashboard asks for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest
from ray_cluster import RayCluster
from slow_job import SlowJob, end

from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.state.orders import give_order
from nemo_llm_stage.report.metrics.dashboard import dashboard
from nemo_llm_stage.report.metrics.figures import LEFT
from nemo_llm_stage.testing import Fault, SimulatedServer

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PATIENCE_S = 90.0


def asked_for() -> set[str]:
    """The names of all series that the dashboard's queries ask for, as Ray writes them."""
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return {f"ray_{name}" for query in queries for name in re.findall(r"\$\{prefix\}(\w+)", query)}


def test_the_dashboard_finds_its_series_in_rays_metrics(tmp_path: Path, shared_cluster: RayCluster) -> None:
    """Every one of them, with the job's output as their label; a time left that nobody knows is not there."""
    with ExitStack() as stack:
        server = stack.enter_context(SimulatedServer(service_time_s=0.1, faults=[Fault(400, contains="row 7")]))
        job = SlowJob(tmp_path, server, stack)
        options = ["--engine", "ray", "--address", shared_cluster.address, "--set", "max_failed_rows=null"]
        options += ["--price-input", "1", "--price-output", "1", "--no-progress"]
        words = [sys.executable, "-m", "nemo_llm_stage", *job.words(*options, num_rows=5000)]
        driver = subprocess.Popen(
            words, env=shared_cluster.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        stack.callback(end, driver)

        def wait_for(is_there: Callable[[set[str]], bool]) -> set[str]:
            """Return the names of the job's series as soon as they are as they should be, or after a while."""
            give_up_s = time.monotonic() + PATIENCE_S
            names: set[str] = set()
            while not is_there(names) and time.monotonic() < give_up_s and driver.poll() is None:
                with urlopen(shared_cluster.metrics, timeout=30) as answer:
                    lines = answer.read().decode().splitlines()
                names = {re.split(r"[{ ]", line)[0] for line in lines if json.dumps(str(job.output)) in line}
                time.sleep(0.5)
            return names

        assert not asked_for() - wait_for(lambda names: asked_for() <= names)
        give_order(OutputFolder(str(job.output)).state, "pause")
        time_left = f"ray_{LEFT.prometheus_name}"
        names = wait_for(lambda names: bool(names) and time_left not in names)
        assert asked_for() - names == {time_left}
        assert driver.poll() is None
