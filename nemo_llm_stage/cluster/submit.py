"""
A job file becomes a Ray job: the working directory is uploaded, and the job runs on the cluster.

Knows Ray's job API; knows a job only by its file and its paths.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_llm_stage.errors import ConfigError, RunError

LOCKED_ADVICE = (
    "The cluster uses token authentication: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to the "
    "token file that `ray start` used (by default ~/.ray/auth_token on the head node)."
)

PYTHON_ADVICE = (
    "the Python that the cluster started has no nemo_llm_stage. A job does not run with the Python of Ray itself, but "
    "with the `python` that comes first on the PATH that `ray start` had on the head node. Activate the environment "
    "before `ray start`, or name its Python: --python /path/to/venv/bin/python."
)
_NO_PACKAGE = re.compile(r"No module named '?nemo_llm_stage")
_LOUD_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env")
_NOT_A_COMMAND = (126, 127)  # what a shell exits with


class JobSubmission:
    """
    A connection to a cluster's job API.

    Args:
        address: The dashboard's URL, e.g. ``http://head:8265``.

    Raises:
        ConfigError: The address is of another kind.
        RunError: Nothing answers there, or it does not accept the token.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise ConfigError(
                f"address is {address!r}; jobs go to the dashboard: http://HEAD:8265 (not ray:// or host:6379)."
            )
        self._client = _translated(address, lambda: _client_at(address))
        self._address = address

    def submit(self, entrypoint: Sequence[str], runtime_env: Mapping[str, Any], submission_id: str | None) -> str:
        """Upload the working directory that `runtime_env` names, start the job, and return its id."""
        job_id: str = _translated(
            self._address,
            lambda: self._client.submit_job(
                entrypoint=shlex.join(entrypoint), runtime_env=dict(runtime_env), submission_id=submission_id
            ),
        )
        return job_id

    def follow(self, job_id: str, show: Callable[[str], None]) -> int:
        """
        Pass the job's log on to `show` as it comes, until the job has ended.

        Returns:
            The exit code of the job's command; 1 where it was stopped or could not start.

        Raises:
            RunError: There is no such Python on the cluster, or it has no nemo_llm_stage.
        """
        asyncio.run(_pass_on(self._client.tail_job_logs(job_id), show))
        info = self._client.get_job_info(job_id)
        if info.driver_exit_code is None and str(info.status) != "SUCCEEDED":
            show(f"{info.status}: {info.message}\n")
            return 1
        exit_code = int(info.driver_exit_code or 0)
        if exit_code in _NOT_A_COMMAND or (exit_code and _NO_PACKAGE.search(self._client.get_job_logs(job_id))):
            raise RunError(PYTHON_ADVICE)
        return exit_code


def check_paths(paths: Sequence[str]) -> None:
    """
    Refuse relative paths: on the cluster they lie in Ray's temporary copy of the working directory.

    Raises:
        ConfigError: Names the first one.
    """
    for path in paths:
        if "://" not in path and not Path(path).is_absolute():
            raise ConfigError(
                f"{path!r} is a relative path. On the cluster it would lie in Ray's temporary copy of the working "
                "directory, where no later run finds it. Write an absolute path on storage that every node has, or a "
                "URL such as s3://bucket/folder."
            )


def _client_at(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in _LOUD_LOGGERS:  # each upload and each closed connection at INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    return JobSubmissionClient(address)


async def _pass_on(log: AsyncIterator[str], show: Callable[[str], None]) -> None:
    async for text in log:
        show(text)


def _translated(address: str, call: Callable[[], Any]) -> Any:
    """Return what `call` returns; Ray's errors become one message."""
    import ray

    try:
        return call()
    except ImportError as error:
        raise ConfigError("submitting jobs needs ray[default]: pip install 'nemo-llm-stage[cluster]'.") from error
    except ray.exceptions.AuthenticationError as error:
        words = str(error).strip().partition("\n")[0]
        raise RunError(f"{address} does not let this machine in: {words}. {LOCKED_ADVICE}") from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        words = str(error).strip().partition("\n")[0]
        raise RunError(
            f"cannot submit the job to {address}: {words} Is it the dashboard's address, by default port 8265?"
        ) from error
