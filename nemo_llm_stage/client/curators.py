"""
This package's clients count as NeMo Curator's own, wherever both are in one program.

Knows the name of Curator's module; never imports it.
"""

from __future__ import annotations

import asyncio
import sys
from abc import ABC
from collections.abc import Callable
from typing import Any

CURATORS_MODULE = "nemo_curator.models.client.llm_client"


def count_as_curators(base: type[ABC]) -> None:
    """
    Let every subclass of `base` count in ``isinstance`` as one of Curator's class of that name.

    Curator's stages tell asynchronous clients from synchronous ones by that. Does nothing where Curator's module is not
    loaded; safe to call twice.
    """
    module = sys.modules.get(CURATORS_MODULE)
    if module is not None:
        getattr(module, base.__name__).register(base)


class _CuratorsName:
    """
    What tests written for Curator's clients read under a private name of theirs; None before the first request.

    A subclass that has an attribute of this name keeps it.

    Args:
        read: Returns the value for a client on the running event loop.
    """

    def __init__(self, read: Callable[[Any, asyncio.AbstractEventLoop], Any]) -> None:
        self._read = read

    def __get__(self, client: Any, owner: type) -> Any:
        """Return the value."""
        if client is None:
            return self
        if vars(client).get("_limits") is None:
            return None
        try:
            return self._read(client, asyncio.get_running_loop())
        except RuntimeError:  # no loop runs
            return None


SEMAPHORE = _CuratorsName(lambda client, _: client.limit)
SEMAPHORE_LOOP = _CuratorsName(lambda _, loop: loop)
