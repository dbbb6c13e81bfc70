"""
YAML that a person wrote becomes values; a mistake is shown with its line and one hint.

Knows YAML; knows nothing of settings.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from nemo_llm_stage.errors import ConfigError

_MAX_LINE_CHARS = 120
_TWICE = "stands in this mapping twice"

_HINTS = (
    (re.compile(r"^\s*\t|^ *- *\t"), "Indent with spaces; YAML does not allow tabs."),
    (
        re.compile(r"""^[^"'#|>]*\{\{"""),
        'Put the template in quotes, e.g. prompt: "{{ text }}", or on the next lines after `prompt: |`.',
    ),
    (re.compile(r"""^[^"']*: [^"']*: """), 'Put the value in quotes; it contains ": ".'),
    (re.compile(r": +[@`%]"), "Put the value in quotes; it begins with a character that YAML reserves."),
    (re.compile(r"""^[^"]*"[^"]*$|^[^']*'[^']*$"""), "Close the quotes."),
)


def parse_yaml(text: str, source: str) -> Any:
    """
    Return the values of a YAML text.

    Args:
        text: The text.
        source: What to call it in a message, e.g. ``the job file 'job.yaml'``.

    Raises:
        ConfigError: It is not YAML. The message has the line's number, the line itself and a hint.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe one
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark is None:
            raise ConfigError(f"{source} is not YAML: {error.problem}.") from error
        lines = text.splitlines()
        number = min(mark.line, len(lines) - 1) if lines else 0
        line = lines[number] if lines else ""
        hint = _hint_of_problem(error) if _TWICE in str(error.problem) else _hint(line) or _hint_of_problem(error)
        shown = line.replace("\t", "→")[:_MAX_LINE_CHARS]
        raise ConfigError(f"{source}, line {number + 1}, is not YAML:\n    {shown}\n  {hint}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which PyYAML takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} {_TWICE}", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def _hint(line: str) -> str | None:
    return next((hint for pattern, hint in _HINTS if pattern.search(line)), None)


def _hint_of_problem(error: yaml.MarkedYAMLError) -> str:
    if "expected <block end>" in str(error.problem) or "mapping values" in str(error.problem):
        return "Check the indentation: settings of one section start in the same column."
    return f"YAML says: {error.problem}."
