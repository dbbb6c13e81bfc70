"""What the tests of servers share: plans of a toy server, and a way to wait for what happens to a process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_llm_stage.servers.plan import ServerPlan

TOY = str(Path(__file__).with_name("toy_server.py"))


@pytest.fixture
def toy() -> Callable[..., ServerPlan]:
    """Return a function that makes the plan of a toy server that obeys some words."""

    def plan(*words: str, **settings: Any) -> ServerPlan:
        defaults: dict[str, Any] = {"num_gpus": 0, "stop_timeout_s": 1.0}
        return ServerPlan(words=(sys.executable, "-S", TOY, "{port}", *words), **defaults | settings)

    return plan
