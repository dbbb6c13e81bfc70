"""What all tests share: one Ray for those that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of 4 CPUs, started once for all tests that ask for it."""
    import ray

    from nemo_llm_stage.cluster.connect import quiet_ray_data

    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    quiet_ray_data()
    yield
    ray.shutdown()
