"""
The texts of a client that returns nothing else become a Completion.

Knows nothing of how they were fetched.
"""

from __future__ import annotations

from typing import Any

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import InvalidResponseError
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
