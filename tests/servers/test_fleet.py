"""Several servers: begun together, started again where one dies, given up where that cannot help."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nemo_llm_stage import ConfigError
from nemo_llm_stage.errors import RunError
from nemo_llm_stage.servers.fleet import Fleet, FleetView
from nemo_llm_stage.servers.local import local_places
from nemo_llm_stage.servers.plan import ServerPlan

TIMEOUT_S = 20.0
MakePlan = Callable[..., ServerPlan]


@contextmanager
def fleet_of(plan: ServerPlan, num_servers: int) -> Iterator[Fleet]:
    fleet = Fleet(plan, local_places(plan, num_servers))
    fleet.start()
    try:
        yield fleet
    finally:
        fleet.close()


def until(is_true: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + TIMEOUT_S
    while not is_true():
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def pid_at(url: str) -> int:
    """The process that listens there."""
    port = url.rpartition(":")[2].partition("/")[0]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes().split(b"\0")
        if b"toy_server.py" in b" ".join(words) and port.encode() in words:
            return int(path.parent.name)
    raise AssertionError(f"nobody listens at {url}")


@pytest.mark.slow
def test_all_start_and_one_that_dies_is_started_again(toy: MakePlan) -> None:
    """At the same address, so that clients know it; what happened is told once."""
    views: list[FleetView] = []
    news: list[str] = []
    with fleet_of(toy(), 2) as fleet:
        fleet.wait(views.append, news.append)
        urls = fleet.urls
        assert len(urls) == 2
        assert (views[-1].num_healthy, views[-1].num_servers) == (2, 2)
        assert {view.words for view in views} == {"the servers to be healthy"}  # there is no cluster to have room in
        os.kill(pid_at(urls[0]), signal.SIGKILL)
        until(lambda: fleet.urls == urls[1:])
        until(lambda: set(fleet.urls) == set(urls))
        fleet.check(news.append)
    assert next(text for text in news if "has died" in text).startswith("server 1 has died (signal 9")
    assert "started again (1 of 3)" in " ".join(news)


def test_a_mistake_is_not_tried_again(toy: MakePlan) -> None:
    """The error has the log's own line, and where the log is."""
    news: list[str] = []
    plan = toy("says", "OSError: m is not a local folder and is not a valid model identifier")
    with fleet_of(plan, 1) as fleet, pytest.raises(RunError, match="model not found: OSError: m is not") as failure:
        fleet.wait(lambda _: None, news.append)
    assert ".log" in str(failure.value)
    assert "given up" in news[-1]


def test_the_limit_of_restarts_holds(toy: MakePlan) -> None:
    """A server that fails for no lasting reason is started again so often and no more."""
    news: list[str] = []
    with (
        fleet_of(toy("says", "ValueError: no luck", max_restarts=1), 1) as fleet,
        pytest.raises(RunError, match="no luck"),
    ):
        fleet.wait(lambda _: None, news.append)
    assert ["started again" in text for text in news] == [True, False]


def test_one_that_fails_once_is_up_after_all(toy: MakePlan, tmp_path: Path) -> None:
    """For instance because the memory of the one before was not free yet."""
    with fleet_of(toy("once", str(tmp_path / "tried"), "CUDA out of memory"), 1) as fleet:
        fleet.wait(lambda _: None, lambda _: None)
        assert len(fleet.urls) == 1


def test_gpus_are_shared_out(toy: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each server sees its own; more than there are is refused."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    plan = ServerPlan(words=("sh", "-c", "echo $CUDA_VISIBLE_DEVICES / {gpu_ids}; exit 1"), num_gpus=2, max_restarts=0)
    news: list[str] = []
    with fleet_of(plan, 2) as fleet, pytest.raises(RunError):
        fleet.wait(lambda _: None, news.append)
    assert sorted(text.partition("code 1, ")[2][:9] for text in news) == ["2,3 / 2,3", "5,7 / 5,7"]
    with pytest.raises(ConfigError, match="3 servers with 2 GPUs need 6, and this machine has 4"):
        local_places(plan, 3)
