"""
Say what a user's callable is, so that a changed one is noticed.

Knows the standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any


def describe_callable(function: Callable[..., Any]) -> dict[str, Any]:
    """
    Return the name of `function` and a hash of its source, JSON-able and the same in every process.

    Where there is no source to read (typed into a prompt, built in), its byte code and constants stand in. What it
    calls or closes over is not looked at: a change there goes unseen.
    """
    if isinstance(function, functools.partial):
        bound = {
            "args": [repr(arg) for arg in function.args],
            "kwargs": {k: repr(v) for k, v in function.keywords.items()},
        }
        return describe_callable(function.func) | bound
    target = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', repr(target))}"
    return {"callable": name, "source_sha256": hashlib.sha256(_source_of(target).encode()).hexdigest()}


def _source_of(target: Any) -> str:
    try:
        return inspect.getsource(target)
    except (OSError, TypeError):
        code = getattr(target, "__code__", None)
        return f"{code.co_code.hex()} {code.co_names}" if code else repr(getattr(target, "__qualname__", ""))
