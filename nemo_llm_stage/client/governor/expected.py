"""How many tokens of the KV cache a request will take, before it is sent. Learned from the answers. Pure."""

from __future__ import annotations

from collections import OrderedDict

from nemo_llm_stage.client.generation import GenerationConfig

MAX_CONFIGS = 64
"""Columns that are told apart: each has a GenerationConfig of its own."""

CHARS_PER_TOKEN = 4.0
MAX_FIRST_INPUT_TOKENS = 8192.0
"""Most that is expected of a prompt before the first answer: an image in it is long as text."""

FIRST_OUTPUT_TOKENS = 256
"""What is expected of answers before the first one, or ``max_tokens`` where that is less."""

WEIGHT = 0.02
"""Of the newest answer in a running mean; the first ones count more."""


NUM_LEARNED, ONE_OF = 64, 8
"""Every one of so many answers is learned from, then one of so many."""


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
        self._learned: OrderedDict[int, _Learned] = OrderedDict()

    def of(self, num_chars: int, config: GenerationConfig, hit_rate: float = 0.0) -> float:
        """
        Return the tokens that a request is expected to hold on average.

        Args:
            num_chars: Of its prompt, or of the whole request: only the same is to be told to `learn`.
            config: Its parameters; the rows of a column share one.
            hit_rate: Share of prompt tokens that come from the prefix cache.
        """
        learned = self._learned.get(id(config))
        if learned is None or learned.output_tokens.value is None:
            output = min(float(config.max_tokens or FIRST_OUTPUT_TOKENS), FIRST_OUTPUT_TOKENS) * (config.n or 1)
            prompt = min(MAX_FIRST_INPUT_TOKENS, num_chars / CHARS_PER_TOKEN)
        else:
            output = learned.output_tokens.value
            prompt = num_chars / (learned.chars_per_token.value or CHARS_PER_TOKEN)
        return prompt * (1 - hit_rate) + 0.5 * output

    def learn(self, num_chars: int, config: GenerationConfig, input_tokens: int | None, output_tokens: int) -> None:
        """Take an answer's true numbers."""
        learned = self._learned.get(id(config))
        if learned is None:
            learned = self._learned[id(config)] = _Learned(config)
            if len(self._learned) > MAX_CONFIGS:
                self._learned.popitem(last=False)
        learned.num_answers += 1
        if learned.num_answers > NUM_LEARNED and learned.num_answers % ONE_OF:
            return
        learned.output_tokens.add(output_tokens)
        if input_tokens:
            learned.chars_per_token.add(max(0.1, num_chars / input_tokens))


class _Learned:
    """What is known of one column. Holds its config, so that the config's id stays its own."""

    __slots__ = ("chars_per_token", "config", "num_answers", "output_tokens")

    def __init__(self, config: GenerationConfig) -> None:
        self.config = config
        self.num_answers = 0
        self.output_tokens = RunningMean()
        self.chars_per_token = RunningMean()
