"""
Generation parameters, some of which may come from the row.

Pure. Knows parameters and expressions; knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from nemo_llm_stage.client.llm_client import GenerationConfig
from nemo_llm_stage.errors import ConfigError, PromptError
from nemo_llm_stage.prompt import Expression

_NUMBERS: dict[str, tuple[type[int | float], Callable[[float], bool], str]] = {
    "max_tokens": (int, lambda value: value >= 1, "a whole number from 1"),
    "seed": (int, lambda value: True, "a whole number"),
    "temperature": (float, lambda value: value >= 0, "a number from 0"),
    "top_k": (int, lambda value: True, "a whole number"),
    "top_p": (float, lambda value: 0 <= value <= 1, "a number from 0 to 1"),
}
"""Parameters that may be expressions: type, range, and the range in words."""


class Parameters:
    """
    How a row's answer is generated. Can be pickled.

    Args:
        config: A `GenerationConfig`, or a dict of its parameters; text in the place of a number is an expression over
            the row's columns, e.g. ``"{{ temperature }}"``.

    Attributes:
        config: The parameters that are the same for every row, and the defaults of the others.
        expressions: Parameter → expression.
        required_columns: The columns that the expressions mention.

    Raises:
        ConfigError: An unknown parameter, a text that is no expression, or an expression for ``n``.
    """

    def __init__(self, config: GenerationConfig | Mapping[str, Any] | None) -> None:
        given = GenerationConfig.of(config)
        default = GenerationConfig()
        self.expressions: dict[str, str] = {
            name: value for name in _NUMBERS if isinstance(value := getattr(given, name), str)
        }
        if isinstance(given.n, str):
            raise ConfigError("generation_config: n must be a number: it decides the column's type.")
        self.config = replace(given, **{name: getattr(default, name) for name in self.expressions})
        self._compiled = {name: _compile(name, text) for name, text in self.expressions.items()}
        columns = (expression.required_columns for expression in self._compiled.values())
        self.required_columns = frozenset[str]().union(*columns)

    @property
    def is_repeatable(self) -> bool:
        """Whether a request has one answer: at temperature 0 or with a seed."""
        is_greedy = "temperature" not in self.expressions and self.config.temperature == 0
        return is_greedy or "seed" in self.expressions or self.config.seed is not None

    def of_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return the parameters that come from `row`: name → value.

        Raises:
            PromptError: One is null, no number, or out of the parameter's range.
        """
        return {name: _number(name, expression.evaluate(row)) for name, expression in self._compiled.items()}


def _compile(name: str, text: str) -> Expression:
    if "{{" not in text:
        raise ConfigError(f'generation_config: {name} is {text!r}; give a number, or "{{{{ column }}}}".')
    try:
        return Expression(text, on_null="error")
    except ConfigError as error:
        raise ConfigError(f"generation_config: {name}: {error}") from None


def _number(name: str, value: Any) -> int | float:
    kind, is_fit, words = _NUMBERS[name]
    try:
        number = float(value)
        if is_fit(number) and (kind is float or number.is_integer()):
            return kind(number)
    except (TypeError, ValueError):
        pass
    raise PromptError(
        f"generation_config: {name} is {'null' if value is None else repr(value)[:100]}; it must be {words}"
    )
