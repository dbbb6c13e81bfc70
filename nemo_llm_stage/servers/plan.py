"""
What is started as one server: the words of its command, with what is known only on the spot put into them.

Pure. A server on several nodes is several processes, one on each; the first one, of rank 0, answers requests.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.suggest import did_you_mean

PLACEHOLDERS = (
    "port",
    "model",
    "gpu_ids",
    "num_gpus",
    "host",
    "number",
    "node_rank",
    "num_nodes",
    "head_ip",
    "head_port",
)
"""What stands in braces in a command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """
    One of several equal servers.

    Attributes:
        words: The command, with placeholders.
        worker_words: The command on the second node and all further ones.
        model: For ``{model}``.
        num_gpus: On each node.
        num_cpus: On each node; what Ray reserves.
        num_nodes: Nodes of one server.
        port: Where the first server listens, each further one on the next; None for any that is free.
        env: Variables beside those that are set where it starts.
        health_path: Answers with status 200 as soon as requests may come.
        start_timeout_s: Seconds from the start of its process until it must be healthy.
        stop_timeout_s: Seconds from SIGTERM to SIGKILL.
        max_restarts: How often it is started again in a row.
    """

    words: tuple[str, ...]
    worker_words: tuple[str, ...] = ()
    model: str = ""
    num_gpus: float = 1
    num_cpus: float = 0
    num_nodes: int = 1
    port: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    health_path: str = "/health"
    start_timeout_s: float = 1800.0
    stop_timeout_s: float = 10.0
    max_restarts: int = 3

    def fits(self, num_servers: int, num_gpus: float, num_cpus: float) -> bool:
        """Return whether one machine that has so much is enough for so many servers."""
        has_room = self.num_gpus * num_servers <= num_gpus and self.num_cpus * num_servers <= num_cpus
        return has_room and self.num_nodes == 1

    def command(self, spot: Spot) -> list[str]:
        """Return the words to start on this spot."""
        words = self.worker_words or self.words
        values = {**spot.values(), "model": self.model, "num_gpus": f"{self.num_gpus:g}", "num_nodes": self.num_nodes}
        return [_filled_in(word, values) for word in (words if spot.rank else self.words)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """
    Where one process of a server runs.

    Attributes:
        number: Of the server, from 0.
        rank: Of the node among those of the server, from 0.
        ip: Of the node.
        port: Where it listens for requests.
        gpu_ids: Of the node's GPUs that it has.
        head_ip: Of the first node.
        head_port: On the first node, for the processes of the server among each other.
    """

    number: int = 0
    rank: int = 0
    ip: str = "127.0.0.1"
    port: int = 0
    gpu_ids: Sequence[str] = ()
    head_ip: str = "127.0.0.1"
    head_port: int = 0

    def values(self) -> dict[str, object]:
        """Return what placeholders stand for."""
        return {
            "port": self.port,
            "gpu_ids": ",".join(self.gpu_ids),
            "host": self.ip,
            "number": self.number,
            "node_rank": self.rank,
            "head_ip": self.head_ip,
            "head_port": self.head_port,
        }


def check_command(words: Sequence[str]) -> None:
    """
    Refuse a command with a placeholder that is not known. ``{{`` and ``}}`` are plain braces.

    Raises:
        ConfigError: It names the word.
    """
    for word in words:
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(word) if name is not None]
        except ValueError as error:
            raise ConfigError(f"{word!r}: {error}; write {{{{ and }}}} for plain braces") from None
        for name in names:
            if name not in PLACEHOLDERS:
                known = ", ".join(f"{{{one}}}" for one in PLACEHOLDERS)
                hint = did_you_mean(name, PLACEHOLDERS) or f"known are {known}; write {{{{ and }}}} for plain braces"
                raise ConfigError(f"{{{name}}} in {word!r}: {hint}")


def _filled_in(word: str, values: Mapping[str, object]) -> str:
    return "".join(
        text + ("" if name is None else str(values[name])) for text, name, _, _ in string.Formatter().parse(word)
    )
