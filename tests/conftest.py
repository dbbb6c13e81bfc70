"""What all tests share: one Ray, clusters that can be killed, and one S3 server, for those that need them."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from canary import CANARY
from ray_cluster import RayCluster

pytest_plugins = ["job_fixtures"]

hypothesis.settings.register_profile("any machine", deadline=None)  # one example may be slow beside other work
hypothesis.settings.load_profile("any machine")

S3_KEY = "AKIDCANARY0123456789"
S3_SECRET = "canary-secret-7f1c5e0d9b"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what runs in its background deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = {"ray": ("mark.ray",), "servers": ("mark.local_model", "make_bucket", "s3_server")}
"""Groups of files whose tests share what is slow to start, and the words that tell them."""


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may not be there
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are CPUs, as many tests wait; with the Rays that some of them start, more would be slower."""
    return min(8, (os.cpu_count() or 1) + 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file, and each group of files, to one process; marks of groups do nothing under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class FileScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0])

    return FileScheduling(config, log)


@cache
def group_of(path: str) -> str:
    """Return the group that a file belongs to; its path where it stands by itself."""
    text = (Path(__file__).parent.parent / path).read_text()
    return next((name for name, words in SHARED.items() if any(word in text for word in words)), path)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of 4 CPUs, started once for all tests that ask for it."""
    import ray

    from nemo_llm_stage.cluster.connect import quiet_ray_data

    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    quiet_ray_data()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[RayCluster]:
    """A Ray cluster of one node in processes of its own, for tests that leave it alive; its jobs find a key there."""
    with RayCluster(num_cpus=4, env={"CANARY_KEY": CANARY}) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a real S3 server, in a process of its own."""
    pytest.importorskip("moto", reason="the S3 tests need moto, of the [dev] extra")
    program = [sys.executable, str(Path(__file__).with_name("s3_server.py"))]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


@pytest.fixture
def make_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make a bucket on that server, which the whole environment is set to, and return its URL; see `OtherStores`."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    def make(kind: str = "bucket") -> str:
        name = f"{kind}-{next(_NUMBERS)}"
        s3fs.S3FileSystem().mkdir(name)
        return f"s3://{name}"

    return make


_NUMBERS = itertools.count()
