"""
What an attempt came to: texts that become a Completion, failures that are kept with the error.

Knows nothing of how an attempt is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import InvalidResponseError, RequestError
from nemo_llm_stage.fields import texts_or_none


def completion_of_texts(texts: Any, *, latency_s: float | None = None) -> Completion:
    """
    Return the Completion of a client that only tells texts.

    Raises:
        InvalidResponseError: `texts` is not a list of str, or is empty: there is no answer in it.
    """
    if isinstance(texts, str):
        texts = [texts]
    typed = texts_or_none(texts)
    if typed is None:
        raise InvalidResponseError(f"The client returned {texts!r:.200}, not a list of texts.")
    return Completion(texts=typed, latency_s=latency_s)


def note_failures(error: Exception, kinds: Sequence[str]) -> None:
    """Keep the kinds of all failed attempts with the last one's error, whosever type it is."""
    if isinstance(error, RequestError):
        error.failures = tuple(kinds)
    else:
        error._failures = tuple(kinds)  # type: ignore[attr-defined]  # noqa: SLF001 - read back in `complete`
