"""
Join a Ray cluster, or start a local one.

Knows Ray's connection and its logs; knows nothing of datasets.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from nemo_llm_stage.cluster.submit import LOCKED_ADVICE
from nemo_llm_stage.errors import ConfigError, RunError


def import_ray() -> None:
    """Import Ray without its advice on widgets, which a notebook would show above a job."""
    logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray  # noqa: F401


def connect(address: str | None = None) -> None:
    """
    Make sure this process is connected to Ray.

    Does nothing if it is. Otherwise joins the cluster at `address` (``auto``: the one on this machine), else the one in
    ``RAY_ADDRESS`` (which ``ray job submit`` sets). Without either, starts a local Ray that ends with this process.

    Raises:
        RunError: There is no cluster at the address, or it refuses this process. The message says what to do.
    """
    import ray

    if ray.is_initialized():
        return
    target = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.ERROR}
    if target:
        options["address"] = target
    else:
        # By default Ray joins any Ray on this machine. That may be another job's, and its end would be ours.
        options |= {"address": "local", "include_dashboard": False}
    try:
        ray.init(**options)
    except Exception as error:
        where = f"the Ray cluster at {target!r}" if target else "a local Ray"
        raise RunError(f"cannot {'join' if target else 'start'} {where}: {_advice(error, target)}") from error


def check_room(num_actors: int, num_cpus: float) -> None:
    """
    Refuse more actors than the cluster has CPUs for: they would never start.

    Raises:
        ConfigError: The cluster has too few CPUs.
    """
    import ray

    total = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    if num_actors * num_cpus > total:
        raise ConfigError(
            f"{num_actors} actors of {num_cpus:g} CPUs need {num_actors * num_cpus:g} CPUs, and the Ray cluster has "
            f"{total:g}; lower --actors or --num-cpus-per-actor. One actor keeps thousands of requests in flight."
        )


def cluster_words() -> str:
    """Return the size of the connected cluster in words."""
    import ray

    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_nodes = len([node for node in ray.nodes() if node["Alive"]])  # type: ignore[no-untyped-call]
    return f"{num_nodes:,} nodes with {total.get('CPU', 0.0):g} CPUs and {total.get('GPU', 0.0):g} GPUs"


def quiet_ray_data() -> Any:
    """
    Turn off Ray Data's own progress lines, and its timeout for jobs without progress.

    Returns:
        The DataContext of the Dataset that is built next.
    """
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    context.max_errored_blocks = 0
    # While a server is down no block moves. Our own progress display says so, and the job waits.
    context.execution_no_progress_timeout_s = -1
    return context


def _advice(error: Exception, target: str | None) -> str:
    text = str(error).strip().partition("\n")[0]
    if target and target.startswith("ray://"):
        return (
            f"{text}. A ray:// address needs ray[client], and the job ends with this connection. Run the job on the "
            "cluster itself: nemo-llm-stage submit JOB.yaml --address http://HEAD:8265."
        )
    if "auth" in str(error).lower() and "token" in str(error).lower():
        return f"{text}. {LOCKED_ADVICE}"
    if isinstance(error, ConnectionError):
        return (
            f"{text}. Check the address (host:6379, or `auto` on a node of the cluster), or unset RAY_ADDRESS. "
            f"If Ray's own lines say Unauthenticated: {LOCKED_ADVICE}"
        )
    return text
