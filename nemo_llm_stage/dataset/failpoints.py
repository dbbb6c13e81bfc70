"""
Named places between reading, journaling and committing, so that tests can crash there.

Does nothing unless a test listens, or ``NEMO_LLM_STAGE_FAILPOINTS`` says where to kill this process. Knows nothing of
what is done at the places.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

from nemo_llm_stage.errors import ConfigError

FAILPOINTS = (
    "record.before",
    "record.after",
    "gather.before",
    "gather.between",
    "gather.after",
    "read.before",
    "piece.before",
    "journal.before_write",
    "journal.before_open",
    "journal.after_write",
    "journal.before_put",
    "journal.after_put",
    "stream.before_put",
    "stream.after_put",
    "stream.before_remove",
    "stream.after_remove",
    "stream.before_merge",
    "stream.after_merge",
    "piece.after",
    "write.before",
    "commit.before_publish",
    "commit.after_publish",
    "commit.before_summary",
    "commit.before_replace",
    "commit.between_replace",
    "commit.after_replace",
    "retire.before",
    "retire.between",
    "retire.after",
    "ledger.before_open",
    "ledger.before_write",
    "ledger.after_write",
    "ledger.before_put",
    "ledger.after_put",
    "ledger.before_merge",
    "ledger.between_merge",
    "ledger.after_merge",
    "ledger.before_rewrite",
    "ledger.between_rewrite",
    "ledger.after_rewrite",
    "finish.before",
    "finish.after",
    "restart.before",
    "restart.between",
    "restart.after",
    "extend.before",
    "extend.after",
)
"""In the order of a job: record, gather, read, journal, write, commit, retire, ledger, finish; restart, more input."""

VARIABLE = "NEMO_LLM_STAGE_FAILPOINTS"
"""Environment variable: ``NAME=PROBABILITY`` of a death at each pass; several, separated by commas."""

LOG_VARIABLE = "NEMO_LLM_STAGE_FAILPOINTS_LOG"
"""Environment variable: a file to which each death appends a line ``NAME PID``."""

Hook = Callable[[str], None]
_hook: Hook | None = None


def reach(name: str) -> None:
    """Pass the failpoint `name`. Costs 50 ns if nobody listens."""
    if _hook is not None:
        _hook(name)


def listen(hook: Hook | None) -> None:
    """
    Call `hook` with the name of each failpoint that any thread of this process passes; None stops that.

    An exception of `hook` is raised at the failpoint.
    """
    global _hook  # one switch for the whole process: an unused failpoint costs one look
    _hook = hook


def kill_here() -> None:
    """End this process at once, as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def hook_of(text: str, log: str | None = None) -> Hook:
    """
    Return a hook that kills this process.

    Args:
        text: In the form of `VARIABLE`.
        log: See `LOG_VARIABLE`.

    Raises:
        ConfigError: There is no such failpoint, or a probability is no number.
    """
    chances: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, chance = part.partition("=")
        if name not in FAILPOINTS:
            raise ConfigError(f"{VARIABLE}: no failpoint is called {name!r}; there are {', '.join(FAILPOINTS)}.")
        try:
            chances[name] = float(chance or 1)
        except ValueError:
            raise ConfigError(f"{VARIABLE}: {chance!r} is not a probability.") from None

    def hook(name: str) -> None:
        if random.random() < chances.get(name, 0.0):  # noqa: S311 - chance, not a secret
            if log is not None:
                fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                os.write(fd, f"{name} {os.getpid()}\n".encode())
            kill_here()

    return hook


if VARIABLE in os.environ:
    listen(hook_of(os.environ[VARIABLE], os.environ.get(LOG_VARIABLE)))
