"""
This package's clients count as NeMo Curator's own, wherever both are in one program.

Knows the name of Curator's module; never imports it.
"""

from __future__ import annotations

import sys
from abc import ABC

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
