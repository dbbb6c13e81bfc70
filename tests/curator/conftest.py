"""What the tests on the real NeMo Curator share: one Ray cluster that every executor joins."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

from nemo_llm_stage.testing import SimulatedServer, SimulatedServerProcess

NUM_CPUS = 5
"""What Xenna's streaming mode needs for the five stages of the tests' pipeline: it takes 95 % and rounds down."""


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A cluster in RAY_ADDRESS: Curator's executors shut down what they start, which takes longer."""
    import nemo_curator  # noqa: F401 - sets limits that the cluster must be started with
    from ray.cluster_utils import Cluster

    # A folder of its own, or other programs on this machine would join the cluster; short, as it holds sockets.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        head = {"num_cpus": NUM_CPUS, "include_dashboard": True, "temp_dir": folder}  # Xenna asks the dashboard
        cluster = Cluster(initialize_head=True, head_node_args=head)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield
        cluster.shutdown()


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
