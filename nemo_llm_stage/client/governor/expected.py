"""How many tokens of the KV cache a request will take, before it is sent. Learned from the answers. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from nemo_llm_stage.client.generation import GenerationConfig
from nemo_llm_stage.core import Message

MAX_CONFIGS = 64
"""Columns that are told apart: each has a GenerationConfig of its own."""

CHARS_PER_TOKEN = 4.0
IMAGE_CHARS = 4000
FIRST_OUTPUT_TOKENS = 256
"""What is expected of answers before the first one, or ``max_tokens`` where that is less."""

WEIGHT = 0.02
"""Of the newest answer in a running mean; the first ones count more."""


class RunningMean:
    """The mean of what came lately. `value` is None before the first."""

    __slots__ = ("_num", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        self._num = 0

    def add(self, value: float) -> None:
        """Take one more value."""
        self._num += 1
        weight = max(WEIGHT, 1 / self._num)
        self.value = value if self.value is None else self.value + weight * (value - self.value)


class ExpectedTokens:
    """
    Expects of a request its prompt, less what the prefix cache has, and half of its answer.

    A request holds its whole prompt from its start on, and of its answer between nothing and all.
    """

    def __init__(self) -> None:
        self._outputs: OrderedDict[int, tuple[GenerationConfig, RunningMean]] = OrderedDict()
        self._chars_per_token = RunningMean()

    def of(self, num_chars: int, config: GenerationConfig, hit_rate: float = 0.0) -> float:
        """
        Return the tokens that a request is expected to hold on average.

        Args:
            num_chars: Of its prompt; see `num_chars_of`.
            config: Its parameters; the rows of a column share one.
            hit_rate: Share of prompt tokens that come from the prefix cache.
        """
        known = self._outputs.get(id(config))
        output = None if known is None else known[1].value
        if output is None:
            output = min(float(config.max_tokens or FIRST_OUTPUT_TOKENS), FIRST_OUTPUT_TOKENS) * (config.n or 1)
        return num_chars / (self._chars_per_token.value or CHARS_PER_TOKEN) * (1 - hit_rate) + 0.5 * output

    def learn(self, num_chars: int, config: GenerationConfig, input_tokens: int | None, output_tokens: int) -> None:
        """Take an answer's true numbers."""
        known = self._outputs.get(id(config))
        if known is None:
            known = self._outputs[id(config)] = (config, RunningMean())
            if len(self._outputs) > MAX_CONFIGS:
                self._outputs.popitem(last=False)
        known[1].add(output_tokens)
        if input_tokens:
            self._chars_per_token.add(max(0.1, num_chars / input_tokens))


def num_chars_of(messages: Iterable[Message]) -> int:
    """Return the characters of a conversation; an image counts as `IMAGE_CHARS`."""
    num_chars = 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            num_chars += len(content)
        elif isinstance(content, list):
            num_chars += sum(map(_chars_of_part, content))
    return num_chars


def _chars_of_part(part: object) -> int:
    text = part.get("text") if isinstance(part, dict) else None
    return len(text) if isinstance(text, str) else IMAGE_CHARS
