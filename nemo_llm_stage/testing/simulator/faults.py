"""
What goes wrong, and for whom: faults by rate, by prompt, by attempt and by time.

Every choice follows from the seed, the prompt and the attempt alone, so a run repeats. Knows nothing of how a fault
looks on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.testing.simulator.answers import uniform

FaultKind = Literal[
    "drop",
    "reset",
    "half_body",
    "wrong_length",
    "html",
    "abort",
    "content_filter",
    "null_content",
    "empty_choices",
    "broken_json",
    "hang",
    "endless_stream",
    "slow_drip",
    "exit",
]

KINDS: tuple[str, ...] = get_args(FaultKind)


@dataclass(frozen=True)
class Fault:
    """
    One thing that goes wrong. The rates of several faults that fit a request add up.

    Attributes:
        kind: An HTTP status (429, 500, 503, 401 …), answered at once and without work; or one of
            "drop": the connection is closed after the work, without an answer;
            "reset": the same, broken off with a TCP reset;
            "half_body": half of the answer, then the connection is closed;
            "wrong_length": a Content-Length that is too small for the body; streams are cut in half instead;
            "html": 200 with a page of HTML;
            "abort": 200 with finish_reason "abort" and an empty text;
            "content_filter": 200 with finish_reason "content_filter" and no text;
            "null_content": 200 with a text of null;
            "empty_choices": 200 without choices;
            "broken_json": 200, and the text (not the body) is cut in half: no valid JSON where a schema was asked for;
            "hang": accepted and never answered, without work;
            "endless_stream": an answer that goes on until the client leaves;
            "slow_drip": the answer in small pieces over `seconds`;
            "exit": the server dies at once with all its connections. A process ends with exit code 1; a server in
            this process refuses connections for `seconds` and comes back.
        rate: Share of the attempts that fail, 0 to 1.
        contains: Only prompts with this text in them.
        attempts: Only the first so many attempts of each request; None: all.
        retry_after_s: Sent as Retry-After with a status.
        seconds: How long, for "slow_drip" and "exit".
        from_s: Only later than so many seconds after the faults were set.
        until_s: Only until so many seconds after the faults were set; None: for ever.
    """

    kind: int | FaultKind
    rate: float = 1.0
    contains: str = ""
    attempts: int | None = None
    retry_after_s: float | None = None
    seconds: float = 1.0
    from_s: float = 0.0
    until_s: float | None = None

    def __post_init__(self) -> None:
        is_status = isinstance(self.kind, int) and 400 <= self.kind < 600
        if not is_status and self.kind not in KINDS:
            raise ConfigError(f"no fault is called {self.kind!r}; there are: an HTTP status, {', '.join(KINDS)}.")
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"rate is {self.rate}; it must be between 0 and 1.")

    @classmethod
    def of(cls, value: Fault | dict[str, Any] | str) -> Fault:
        """
        Return a fault from its fields as plain values, or from ``KIND[:RATE][@TEXT]`` as a command line has it.

        `429:0.2` hits a fifth of the attempts; `exit@poison` each prompt with "poison" in it.

        Raises:
            ConfigError: There is no such fault.
        """
        if isinstance(value, Fault):
            return value
        if isinstance(value, dict):
            return cls(**value)
        words, _, contains = value.partition("@")
        kind, _, rate = words.partition(":")
        try:
            return cls(int(kind) if kind.isdigit() else kind, float(rate or 1), contains)  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError(f"{value!r} is no fault of the form KIND[:RATE][@TEXT]: {error}") from error


def pick_fault(faults: Sequence[Fault], *, prompt: str, attempt: int, since_s: float, seed: int) -> Fault | None:
    """
    Return the fault that hits this attempt, if any.

    Args:
        faults: All that are switched on.
        prompt: The rendered prompt.
        attempt: How many times this body has come, this time included.
        since_s: Seconds since the faults were set.
        seed: Changes who is hit.
    """
    left = uniform(seed, "fault", prompt, attempt)
    for fault in faults:
        if fault.attempts is not None and attempt > fault.attempts:
            continue
        if since_s < fault.from_s or (fault.until_s is not None and since_s >= fault.until_s):
            continue
        if fault.contains in prompt:
            if left < fault.rate:
                return fault
            left -= fault.rate
    return None
