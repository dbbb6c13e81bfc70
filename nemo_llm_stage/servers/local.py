"""
Places on this machine, without Ray: each server is a process with some of the machine's GPUs.

Knows how this machine's GPUs are named; knows nothing of what uses them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.servers.host import HostStatus, ServerHost
from nemo_llm_stage.servers.plan import ServerPlan


class LocalPlace:
    """
    A place on this machine.

    Args:
        host: Holds the process.
    """

    def __init__(self, host: ServerHost) -> None:
        self._host = host

    def start(self) -> None:
        """See `Place`."""
        self._host.start(*self._host.free_port())

    def status(self) -> HostStatus:
        """See `Place`."""
        return self._host.status()

    def begin_stop(self) -> None:
        """See `Place`."""
        self._host.begin_stop()

    def close(self) -> None:
        """See `Place`."""
        self._host.close()


def local_places(plan: ServerPlan, num_servers: int, log_folder: str | None = None) -> list[LocalPlace]:
    """
    Return a place for each server.

    Raises:
        ConfigError: This machine has too few GPUs, or a server wants several nodes.
    """
    if plan.num_nodes > 1:
        raise ConfigError("a server on several nodes needs `engine: ray`.")
    gpus, each = gpu_ids(), int(plan.num_gpus)
    if each != plan.num_gpus:
        raise ConfigError(f"servers.num_gpus is {plan.num_gpus:g}; a part of a GPU needs `engine: ray`.")
    if each * num_servers > len(gpus):
        raise ConfigError(
            f"{num_servers} servers with {each} GPUs need {each * num_servers}, and this machine has {len(gpus)}; "
            "lower servers.count, or set servers.num_gpus: 0 for servers on CPUs."
        )
    return [
        LocalPlace(ServerHost(plan, number, gpu_ids=gpus[number * each :][:each], log_folder=log_folder))
        for number in range(num_servers)
    ]


def gpu_ids() -> list[str]:
    """Return the ids of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [word.strip() for word in visible.split(",") if word.strip() and word.strip() != "-1"]
    devices = Path("/dev").glob("nvidia[0-9]*")
    return sorted((match[1] for path in devices if (match := re.fullmatch(r"nvidia(\d+)", path.name))), key=int)
