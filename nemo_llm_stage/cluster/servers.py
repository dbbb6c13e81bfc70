"""
Places for servers on a Ray cluster: an actor with GPUs holds each process, a placement group those of several nodes.

Nothing here waits: what an actor answers is looked at when it has come.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from nemo_llm_stage.cluster.connect import connect
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.servers.host import HostStatus, ServerHost
from nemo_llm_stage.servers.plan import ServerPlan
from nemo_llm_stage.servers.why import Reason

STATUS_S = 10.0
"""An actor answers when its server changes, or after so long."""

STOP_TIMEOUT_S = 30.0


class ServerActor(ServerHost):
    """A server's process in a Ray actor, on the GPUs that Ray gave it."""

    def __init__(self, plan: ServerPlan, number: int, rank: int, log_folder: str | None) -> None:
        import ray

        gpu_ids = [str(number) for number in ray.get_gpu_ids()]
        ip: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        super().__init__(plan, number, rank, ip, gpu_ids, log_folder)


def ray_places(
    plan: ServerPlan, num_servers: int, log_folder: str | None = None, address: str | None = None
) -> list[RayPlace]:
    """
    Return a place for each server; each waits until the cluster has room for it.

    Args:
        plan: What a server is.
        num_servers: How many.
        log_folder: For their logs, on their nodes.
        address: See `connect`.

    Raises:
        RunError: There is no cluster.
        ConfigError: The Ray of this machine alone can never have room for a server.
    """
    import ray

    is_own = not (address or os.environ.get("RAY_ADDRESS") or ray.is_initialized())
    connect(address)
    if is_own:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        num_gpus, num_cpus = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
        if not plan.fits(num_servers, num_gpus, num_cpus):
            raise ConfigError(
                f"{num_servers} servers with {plan.num_gpus:g} GPUs and {plan.num_cpus:g} CPUs on {plan.num_nodes} "
                f"nodes do not fit this machine, which has {num_gpus:g} GPUs and {num_cpus:g} CPUs. Join a cluster "
                "with --address, lower servers.count, or set servers.num_gpus: 0 for servers on CPUs."
            )
    return [RayPlace(plan, number, log_folder) for number in range(num_servers)]


class RayPlace:
    """
    A place on a Ray cluster; see `nemo_llm_stage.servers.server.Place`.

    Args:
        plan: What the server is.
        number: Which one, from 0.
        log_folder: For its logs, on its nodes.
    """

    def __init__(self, plan: ServerPlan, number: int, log_folder: str | None) -> None:
        self._plan, self._number, self._log_folder = plan, number, log_folder
        self._group: Any = None
        self._actors: list[Any] = []
        self._head: Any = None
        self._started: list[Any] = []
        self._asked: list[Any] = []
        self._statuses: list[HostStatus] = []

    def start(self) -> None:
        """See `Place`."""
        if not self._actors:
            self._make_actors()
        self._asked, self._started = [], []
        self._statuses = [HostStatus()] * len(self._actors)
        self._head = self._actors[0].free_port.remote()

    def status(self) -> HostStatus:
        """See `Place`."""
        import ray

        try:
            self._go_on()
        except ray.exceptions.RayError as error:
            self._drop_actors()
            line = str(error).strip().partition("\n")[0]
            return HostStatus("lost", reason=Reason("its actor or its node is gone", line))
        ended = [status for status in self._statuses if status.state == "ended"]
        return ended[0] if ended else self._statuses[0]

    def begin_stop(self) -> None:
        """See `Place`."""
        import ray

        with suppress(ray.exceptions.RayError):
            for actor in self._actors if self._started else ():
                actor.begin_stop.remote()

    def close(self) -> None:
        """See `Place`."""
        import ray

        with suppress(ray.exceptions.RayError):
            if self._started and self._actors:
                calls = [actor.close.remote() for actor in self._actors]
                ray.wait(calls, num_returns=len(calls), timeout=STOP_TIMEOUT_S + self._plan.stop_timeout_s)
        with suppress(ray.exceptions.RayError):
            self._drop_actors()

    def _go_on(self) -> None:
        """Do the next step of a start, and take the answers that have come."""
        import ray

        if self._head is not None:
            if not _has_come(self._head):
                return
            (ip, port), self._head = ray.get(self._head), None
            self._started = [actor.start.remote(ip, port) for actor in self._actors]
            return
        if not self._asked:
            if not all(map(_has_come, self._started)):
                return
            ray.get(self._started)
            self._asked = [self._ask(rank, HostStatus(version=-1)) for rank in range(len(self._actors))]
        for rank, asked in enumerate(self._asked):
            if _has_come(asked):
                self._statuses[rank] = ray.get(asked)
                self._asked[rank] = self._ask(rank, self._statuses[rank])

    def _ask(self, rank: int, known: HostStatus) -> Any:
        return self._actors[rank].status.remote(known.version, STATUS_S)

    def _make_actors(self) -> None:
        import ray

        plan, remote = self._plan, ray.remote
        options: dict[str, Any] = {"num_gpus": plan.num_gpus, "num_cpus": plan.num_cpus, "max_concurrency": 4}
        strategies: Sequence[Any] = ["SPREAD" if not plan.num_gpus else "DEFAULT"]
        if plan.num_nodes > 1:
            strategies = self._make_group()
        self._actors = [
            remote(**options, scheduling_strategy=strategy)(ServerActor).remote(
                plan, self._number, rank, self._log_folder
            )
            for rank, strategy in enumerate(strategies)
        ]

    def _make_group(self) -> list[Any]:
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        wanted = {"GPU": self._plan.num_gpus, "CPU": self._plan.num_cpus or 0.01}
        bundle = {name: num for name, num in wanted.items() if num}
        self._group = placement_group([bundle] * self._plan.num_nodes, strategy="STRICT_SPREAD")
        return [PlacementGroupSchedulingStrategy(self._group, rank) for rank in range(self._plan.num_nodes)]

    def _drop_actors(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        for actor in self._actors:
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)
        self._actors, self._group, self._head, self._started, self._asked = [], None, None, [], []


def _has_come(call: Any) -> bool:
    import ray

    return bool(ray.wait([call], timeout=0)[0])
