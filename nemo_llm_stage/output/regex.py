"""An answer from which a regular expression takes one text or several."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import ConfigError, ParseError
from nemo_llm_stage.output.base import Output
from nemo_llm_stage.output.reasoning import without_reasoning


class RegexOutput(Output):
    """
    What the groups of a pattern catch at the first place in the answer where it matches.

    Named groups give a struct with a field each, one unnamed group gives its text, no group gives the whole match.
    Groups that take no part in the match are null.

    Args:
        pattern: A Python regular expression; the answer is searched for it.
        arrow_type: What the caught text is read as: one type, or for named groups a type for each name. Strings where
            not given.

    Raises:
        ConfigError: It is no pattern, has several unnamed groups, or a type is given for a name that no group has.
    """

    def __init__(
        self, pattern: str | re.Pattern[str], arrow_type: pa.DataType | dict[str, pa.DataType] | None = None
    ) -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{pattern!r} is no regular expression: {error}") from error
        names = list(self._pattern.groupindex)
        if not names and self._pattern.groups > 1:
            raise ConfigError(f"{self._pattern.pattern!r} has several groups: give them names, (?P<name>…).")
        if not names:
            if isinstance(arrow_type, dict):
                raise ConfigError(f"{self._pattern.pattern!r} has no named groups: give one arrow_type.")
            self.arrow_type = pa.string() if arrow_type is None else arrow_type
            return
        types = arrow_type if isinstance(arrow_type, dict) else dict.fromkeys(names, arrow_type or pa.string())
        if unknown := set(types) - set(names):
            raise ConfigError(f"{self._pattern.pattern!r} has no group {min(unknown)!r}.")
        self.arrow_type = pa.struct([(name, types.get(name, pa.string())) for name in names])

    def parse(self, text: str, completion: Completion, choice: int) -> Any:
        """
        Return what the groups caught.

        Raises:
            ParseError: The pattern matches nowhere, or a caught text is not of its type.
        """
        match = self._pattern.search(without_reasoning(text, completion, choice))
        if match is None:
            raise ParseError(f"the answer does not match the pattern {self._pattern.pattern!r}.")
        if self._pattern.groupindex:
            return {field.name: _cast(match[field.name], field.type) for field in self.arrow_type}
        return _cast(match[1 if self._pattern.groups else 0], self.arrow_type)

    def describe(self) -> dict[str, Any]:
        """Return the kind, the pattern and the type."""
        pattern = {"pattern": self._pattern.pattern, "flags": self._pattern.flags}
        return {"kind": "regex", **pattern, "arrow_type": str(self.arrow_type)}


def _cast(text: str | None, arrow_type: pa.DataType) -> Any:
    if text is None or arrow_type == pa.string():
        return text
    try:
        return pa.scalar(text, pa.string()).cast(arrow_type).as_py()
    except pa.ArrowException as error:
        raise ParseError(f"{text[:200]!r} is not {arrow_type}.") from error
