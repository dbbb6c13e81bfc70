"""What the tests on the real NeMo Curator share: one Ray cluster that every executor joins."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from nemo_llm_stage.testing import SimulatedServer, SimulatedServerProcess


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A cluster of 4 CPUs in RAY_ADDRESS: Curator's executors shut down what they start, which takes longer."""
    import nemo_curator  # noqa: F401 - sets limits that the cluster must be started with
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # keeps a cluster at 127.0.0.1 where it is
    # A folder of its own, or other programs on this machine would join the cluster; short, as it holds sockets.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        head = {
            "num_cpus": 4,
            "node_ip_address": "127.0.0.1",
            "include_dashboard": True,  # Xenna asks it
            "dashboard_host": "127.0.0.1",
            "temp_dir": folder,
        }
        cluster = Cluster(initialize_head=True, head_node_args=head)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield
        cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    """A server that answers at once, in this process."""
    with SimulatedServer() as server:
        yield server


@pytest.fixture
def server_process() -> Iterator[SimulatedServerProcess]:
    """A server that answers at once, in a process of its own."""
    with SimulatedServerProcess() as server:
        yield server
