"""
What `nemo-llm-stage doctor` looks at on this machine: versions, extras, file descriptors, the Ray cluster.

Each look gives one `Finding`; nothing is changed. Servers are looked at in `server_findings`.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from nemo_llm_stage.client.open_files import lack_of_files, open_file_limits
from nemo_llm_stage.errors import LLMStageError

EXTRAS = {
    "local": "xllamacpp",
    "s3": "s3fs",
    "gcs": "gcsfs",
    "azure": "adlfs",
    "cluster": "aiohttp_cors",  # of ray[default]
    "curator": "nemo_curator",
    "report": "matplotlib",
    "hf": "huggingface_hub",
    "verify": "duckdb",
    "delta": "deltalake",
    "iceberg": "pyiceberg",
    "metrics": "prometheus_client",
    "otel": "opentelemetry.exporter.otlp.proto.http",
}
"""Extra → a module that it brings, and nothing else of the package does."""

"""File descriptors that a process needs beside one for each request: Python, Ray, input and output files."""


@dataclass(frozen=True, slots=True)
class Finding:
    """
    What one look found.

    Attributes:
        name: What was looked at.
        text: What it is; for a problem also what to do.
        is_ok: Whether a job can run with it.
    """

    name: str
    text: str
    is_ok: bool = True


def versions() -> Finding:
    """Return the versions that a bug report needs."""
    packages = ", ".join(f"{name} {_version(name)}" for name in ("ray", "pyarrow", "openai", "pydantic"))
    return Finding("versions", f"Python {platform.python_version()} on {platform.platform()}; {packages}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def extras(wanted: Collection[str] = ()) -> Finding:
    """Return which extras are installed; it is a problem if one of `wanted` is not."""
    missing = [name for name, module in EXTRAS.items() if not _is_there(module)]
    installed = ", ".join(name for name in EXTRAS if name not in missing) or "none"
    needed = [name for name in missing if name in wanted]
    if needed:
        return Finding("extras", f"the job needs: pip install 'nemo-llm-stage[{','.join(needed)}]'", is_ok=False)
    return Finding("extras", f"installed: {installed}; not installed: {', '.join(missing) or 'none'}")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a part of its name
        return False


def open_files(max_concurrent_requests: int) -> Finding:
    """Return whether the limit of open files is high enough for this many requests in flight in one process."""
    lack = lack_of_files(max_concurrent_requests)
    if lack is not None:
        return Finding("open files", lack, is_ok=False)
    soft, _ = open_file_limits()
    limit = "no limit" if soft == math.inf else f"up to {soft:,.0f}"
    return Finding("open files", f"{limit}, enough for {max_concurrent_requests:,} requests in flight")


def cluster(address: str | None, actors: int, num_cpus_per_actor: float) -> Finding:
    """Return whether the Ray cluster lets this process in and has room for the actors."""
    target = address or os.environ.get("RAY_ADDRESS")
    if target is None:
        return Finding("cluster", "no address is given: a job with engine: ray starts a Ray on this machine")
    from nemo_llm_stage.cluster.connect import check_room, cluster_words, connect

    try:
        connect(target)
        check_room(actors, num_cpus_per_actor)
        return Finding("cluster", f"{target}: {cluster_words()}")
    except LLMStageError as error:
        return Finding("cluster", str(error), is_ok=False)
