"""
What is done with an answer that cannot be used as it came, and with a prompt that does not fit.

Settings, and their checks; the work is done by `ask`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.suggest import did_you_mean

OnTruncated = Literal["accept", "error", "retry_longer", "continue"]
OnOverflow = Literal["error", "shrink_output", "truncate_input_head", "truncate_input_tail", "truncate_input_middle"]

CAP_FACTOR = 4
"""Without `max_tokens_cap` an answer may grow to as many times ``max_tokens``: two doublings, three continuations."""


@dataclass(frozen=True, kw_only=True)
class RecoveryPolicy:
    """
    How hard a row is tried before it fails.

    Attributes:
        max_reasks: Times that a row is asked again with what is wrong with its answer, where the answer cannot be
            parsed.
        on_truncated: An answer that was cut off at ``max_tokens`` is taken as it is (``accept``), fails the row
            (``error``), is thrown away and asked for again with twice the tokens (``retry_longer``), or the model is
            asked to go on with it (``continue``).
        max_tokens_cap: Most output tokens that the last two go up to; None for 4 times ``max_tokens``. An answer that
            is cut off there as well fails the row.
        on_overflow: A prompt that does not fit the model's context fails the row (``error``), gets the answer tokens
            that are left (``shrink_output``), or loses the beginning, the end or the middle of its longest user text
            (``truncate_input_head``, ``_tail``, ``_middle``). Goes by the limits that the server states.

    Raises:
        ConfigError: A word that is none of these, or a number below 0.
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
