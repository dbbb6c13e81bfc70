"""
How many actors a job gets, and on which nodes: beside their servers where a node has one.

Needs a connected Ray. Knows addresses; knows nothing of what an actor does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit


def actors_for(server_urls: Sequence[str], num_cpus: float) -> int:
    """
    Return how many actors of so many CPUs suit these servers: one for each, as far as the cluster has CPUs.

    Args:
        server_urls: Empty where each actor asks the server of its own node: then there is one for each node.
        num_cpus: Of each actor.
    """
    import ray

    num_wanted = len(set(server_urls)) or len(set(_nodes().values()))
    total: float = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    return max(1, min(num_wanted, int(total / num_cpus)))


def node_of(server_urls: Sequence[str]) -> str | None:
    """Return the id of the node that runs most of these servers; None where no node does."""
    nodes = _nodes()
    found = [nodes[host] for host in (urlsplit(url).hostname for url in server_urls) if host in nodes]
    return max(found, key=found.count, default=None)


def place_at(node_id: str | None) -> Any:
    """Return a scheduling strategy of Ray: on that node if it has room, else anywhere; spread where it is None."""
    if node_id is None:
        return "SPREAD"
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=True)


def _nodes() -> dict[str, str]:
    """Return address or name of each living node → its id."""
    import ray

    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return {node[name]: node["NodeID"] for node in nodes for name in ("NodeManagerHostname", "NodeManagerAddress")}
