"""
The servers that a job or `nemo-llm-stage serve` starts: on Ray or on this machine, shown while they start.

Knows which places there are; what happens in them is the servers room's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlsplit

from nemo_llm_stage.dataset.state.process import ProcessIdentity, this_process
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.report.progress.progress import Progress
from nemo_llm_stage.servers.fleet import Fleet
from nemo_llm_stage.servers.health import is_healthy
from nemo_llm_stage.servers.local import local_places
from nemo_llm_stage.servers.server import Place
from nemo_llm_stage.stage.stage import Stage
from nemo_llm_stage.worker.orders import Control, Need, Orders

if TYPE_CHECKING:  # pydantic takes a quarter of a second, and a job from Python needs none
    from nemo_llm_stage.config.job import JobConfig
    from nemo_llm_stage.config.servers import Servers

MARK = "# written by nemo-llm-stage serve"


def make_fleet(servers: Servers, model: str | None, engine: Literal["ray", "local"], address: str | None) -> Fleet:
    """
    Return the servers, not yet started.

    Args:
        servers: What they are.
        model: The job's.
        engine: Where they run.
        address: The Ray cluster; see `nemo_llm_stage.cluster.connect.connect`.

    Raises:
        ConfigError: There can never be room for them.
        RunError: There is no such cluster.
    """
    plan, folder = servers.plan(model), servers.log_folder
    places: Sequence[Place]
    if engine == "local":
        places = local_places(plan, servers.count, folder)
    else:
        from nemo_llm_stage.cluster.servers import ray_places

        places = ray_places(plan, servers.count, folder, address)
    return Fleet(plan, places)


def servers_of(config: JobConfig, shown: Progress) -> StartedServers:
    """Return the servers that a job starts, not yet started; none where it starts none."""
    from nemo_llm_stage.config.servers import has_servers

    servers, settings = config.servers, config.settings
    if servers is None:
        return StartedServers(None, shown)
    model = next((model for client, model in config.clients_and_models if has_servers(client)), None)
    return StartedServers(partial(make_fleet, servers, model, settings.engine, settings.address), shown)


class StartedServers:
    """
    The servers of one job, for as long as the ``with`` block runs; none where the job starts none.

    Args:
        make: Makes them; None for no servers.
        shown: Shows how they start, and what happens to them.
    """

    def __init__(self, make: Callable[[], Fleet] | None, shown: Progress) -> None:
        self._make, self._shown = make, shown
        self._fleet: Fleet | None = None
        self._write: Callable[[str, str], object] | None = None

    def __enter__(self) -> Self:
        """Start nothing yet: a job that has nothing to ask needs no servers."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End them."""
        if self._fleet is not None:
            self._fleet.close()

    def start(self, stage: Stage) -> None:
        """
        Start them, and return when `stage` can ask them.

        Raises:
            ConfigError: There can never be room for them.
            RunError: None can be started; says why, in the words of its log.
        """
        if self._make is None or self._fleet is not None:
            return
        self._shown.wait_for("the servers to start")
        self._fleet = self._make()
        self._fleet.start()
        self._fleet.wait(self._shown.wait_for_servers, self._shown.note)
        stage.tell_servers(self._fleet.urls)

    def look(self, stage: Stage) -> None:
        """
        Tell `stage` which servers are healthy now, and people what has happened.

        Raises:
            RunError: No server is left.
        """
        if self._fleet is not None:
            self._fleet.check(self._tell)
            stage.tell_servers(self._fleet.urls)

    def put_into(self, control: Control, write: Callable[[str, str], object] | None = None) -> Control:
        """
        Return a control that also tells the workers which servers are healthy.

        Args:
            control: Without them.
            write: Gets what happens to them from now on: the kind of event, and the text.
        """
        self._write = write
        return control if self._make is None else _WithServers(control, lambda: self._fleet)

    def _tell(self, text: str) -> None:
        self._shown.note(text)
        if self._write is not None:
            self._write("server", text)


class _WithServers:
    """Adds the servers' addresses to the orders of another `Control`."""

    def __init__(self, control: Control, fleet: Callable[[], Fleet | None]) -> None:
        self._control, self._fleet = control, fleet

    @property
    def is_draining(self) -> bool:
        return self._control.is_draining

    def orders_of(self, worker: str, need: Need) -> Orders:
        fleet, orders = self._fleet(), self._control.orders_of(worker, need)
        return orders if fleet is None else replace(orders, servers=fleet.urls)

    def forget(self, worker: str) -> None:
        self._control.forget(worker)


class EndpointsFile:
    """
    A file that `base_url` can name: one address a line, replaced as a whole at each change.

    Its first line says which process keeps it, so that a second one does not take the servers away from its readers.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._head = f"{MARK} {json.dumps(asdict(this_process()))}\n"
        self._urls: tuple[str, ...] | None = None

    def take(self) -> None:
        """
        Begin to keep the file; it names no server yet.

        Raises:
            ConfigError: It cannot be written, somebody else keeps it, or it is no such file at all.
        """
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        except OSError as error:
            raise ConfigError(f"cannot read {str(self._path)!r}: {error.strerror}.") from error
        if text and not text.startswith(MARK):
            raise ConfigError(f"{str(self._path)!r} is another file, not one of `serve`; choose one with --endpoints.")
        if _is_kept(text):
            raise ConfigError(
                f"another `nemo-llm-stage serve` keeps {str(self._path)!r}; choose another file with --endpoints."
            )
        self.write(())

    def write(self, urls: tuple[str, ...]) -> None:
        """
        Let the file name these addresses.

        Raises:
            ConfigError: It cannot be written.
        """
        if urls == self._urls and self._path.exists():
            return
        aside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        text = self._head + "".join(f"{url}\n" for url in urls)
        try:
            aside.write_text(text, encoding="utf-8")
            aside.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                aside.unlink()
            raise ConfigError(f"cannot write {str(self._path)!r}: {error.strerror}.") from error
        self._urls = urls


def _is_kept(text: str) -> bool:
    """Return whether a process keeps the file; one on another machine does if a server in it answers."""
    head, _, rest = text.partition("\n")
    with suppress(ValueError, TypeError):
        is_alive = ProcessIdentity(**json.loads(head.removeprefix(MARK))).is_alive()
        if is_alive is not None:
            return is_alive
    servers = [urlsplit(url) for url in rest.split()]
    return any(server.hostname and is_healthy(server.hostname, server.port or 80, "/health") for server in servers)
