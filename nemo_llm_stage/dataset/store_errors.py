"""
What the errors of stores' libraries mean.

Knows exceptions; asks no store.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from http import HTTPStatus
from typing import ParamSpec, TypeVar

from nemo_llm_stage.errors import LLMStageError

P = ParamSpec("P")
T = TypeVar("T")

_MAY_PASS = {errno.EBUSY, errno.EIO}
"""Error numbers after which a new try may succeed. EIO also stands for errors without a number: s3fs on that 409."""


def as_os_errors(method: Callable[P, T]) -> Callable[P, T]:
    """Return `method`, which then raises OSError for any error of a store's library."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (OSError, LLMStageError):
            raise
        except Exception as error:
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error

    return wrapped


def may_pass(error: Exception) -> bool:
    """Whether a new try may succeed."""
    return getattr(error, "errno", None) in _MAY_PASS


def has_no_conditions(error: Exception) -> bool:
    """Whether a store answered (501) that it has no conditional PUTs."""
    return isinstance(error, NotImplementedError) or getattr(error, "errno", None) == errno.ENOSYS


def is_taken(error: Exception) -> bool:
    """Whether a store refused to replace what is there. s3fs knows only the words of some: AWS's, not SeaweedFS's."""
    answer = getattr(error.__cause__, "response", None)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    return isinstance(error, FileExistsError) or status == HTTPStatus.PRECONDITION_FAILED
