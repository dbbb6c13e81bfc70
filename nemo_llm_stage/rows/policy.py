"""
What to do about an answer that cannot be used as it came, and about a prompt that does not fit.

Settings and their checks; `generate` acts on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.suggest import did_you_mean

OnTruncated = Literal["accept", "error", "retry_longer", "continue"]
OnOverflow = Literal["error", "shrink_output", "truncate_input_head", "truncate_input_tail", "truncate_input_middle"]

CAP_FACTOR = 4
"""Without `max_tokens_cap`, an answer may grow to 4 times ``max_tokens``: two doublings, or three continuations."""


@dataclass(frozen=True, kw_only=True)
class RecoveryPolicy:
    """
    How hard a row is tried before it fails.

    Attributes:
        max_reasks: Most requests for a new answer in place of one that cannot be parsed; each tells the model what was
            wrong.
        on_truncated: What to do about an answer that was cut off at ``max_tokens``: take it as it is (``accept``), fail
            the row (``error``), discard it and send the request again with twice the tokens (``retry_longer``), or
            let the model continue it (``continue``).
        max_tokens_cap: Most output tokens of ``retry_longer`` and ``continue``; None for 4 times ``max_tokens``. An
            answer that is cut off there, too, fails the row.
        on_overflow: What to do about a prompt that does not fit the model's context: fail the row (``error``), lower
            ``max_tokens`` to what is left (``shrink_output``), or cut the beginning, the end or the middle of its
            longest user text (``truncate_input_head``, ``_tail``, ``_middle``), by the limits that the server states.

    Raises:
        ConfigError: An unknown word, or a number out of range.
    """

    max_reasks: int = 2
    on_truncated: OnTruncated = "accept"
    max_tokens_cap: int | None = None
    on_overflow: OnOverflow = "error"

    def __post_init__(self) -> None:
        if self.max_reasks < 0:
            raise ConfigError(f"max_reasks is {self.max_reasks}; it must not be negative.")
        if self.max_tokens_cap is not None and self.max_tokens_cap < 1:
            raise ConfigError(f"max_tokens_cap is {self.max_tokens_cap}; it must be at least 1.")
        for name, words in (("on_truncated", get_args(OnTruncated)), ("on_overflow", get_args(OnOverflow))):
            word = getattr(self, name)
            if word not in words:
                hint = did_you_mean(str(word), words) or f"it must be one of {', '.join(words)}."
                raise ConfigError(f"{name} is {word!r}; {hint}")
