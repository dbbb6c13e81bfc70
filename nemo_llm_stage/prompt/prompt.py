"""
A row becomes the messages of one request.

Pure apart from reading template files when made. Knows nothing of clients, tables or files of data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_llm_stage.core import Message
from nemo_llm_stage.errors import ConfigError, PromptError, SkippedError
from nemo_llm_stage.identity import describe_callable
from nemo_llm_stage.prompt.template import Expression, OnNull, Template, check_columns

RowFunction = Callable[[Mapping[str, Any]], "str | list[Message]"]


class Prompt:
    """
    How a row becomes messages. Immutable, can be pickled; templates are compiled once per process.

    Args:
        prompt: The user's turn: a template's text, a path of a file holding one, or a function from the row to a text
            or to messages.
        system_prompt: The system turn: a template's text or a path.
        on_null: What a null column that a template uses leads to: ``skip`` leaves the row unasked, ``error`` fails it,
            ``empty`` takes it for ``''``. None, NaN, pandas' NA and NaT are null. A function gets the row as it is.
        skip_when: An expression; rows for which it is true are left unasked.

    Attributes:
        required_columns: The columns that the templates mention.
        needs_all_columns: Whether a function or ``{{ row }}`` may look at any column.

    Raises:
        ConfigError: A template is wrong, or there is nothing to ask.
    """

    def __init__(
        self,
        prompt: str | os.PathLike[str] | RowFunction | None = None,
        *,
        system_prompt: str | os.PathLike[str] | None = None,
        on_null: OnNull = "skip",
        skip_when: str | None = None,
    ) -> None:
        if on_null not in {"skip", "error", "empty"}:
            raise ConfigError(f"on_null is {on_null!r}; it must be skip, error or empty.")
        if prompt is None:
            raise ConfigError("there is nothing to ask: give prompt.")
        self._function = prompt if callable(prompt) else None
        self._system = None if system_prompt is None else _template(system_prompt, on_null)
        self._user = None if callable(prompt) else _template(prompt, on_null)
        self._skip_when = None if skip_when is None else Expression(skip_when, on_null=on_null)
        self.on_null: OnNull = on_null
        templates = [template for template in (self._system, self._user, self._skip_when) if template is not None]
        self.required_columns = frozenset[str]().union(*(template.required_columns for template in templates))
        self.needs_all_columns = self._function is not None or any(t.needs_all_columns for t in templates)

    def check_columns(self, available: Sequence[str]) -> None:
        """
        Check that the templates' columns exist.

        Raises:
            InputError: One does not; the message names the nearest one and all there are.
        """
        check_columns(self.required_columns, available)

    def render(self, row: Mapping[str, Any]) -> list[Message]:
        """
        Return the messages for `row`.

        Raises:
            SkippedError: `skip_when` is true, or a null is used and `on_null` is ``skip``.
            PromptError: The messages cannot be made from this row.
        """
        if self._skip_when is not None and self._skip_when.evaluate(row):
            raise SkippedError("skip_when is true")
        messages: list[Message] = []
        if self._system is not None:
            messages.append({"role": "system", "content": self._system.render(row)})
        if self._user is not None:
            messages.append({"role": "user", "content": self._user.render(row)})
        if self._function is not None:
            messages += _turns_of(self._function, row)
        return messages

    def describe(self) -> dict[str, Any]:
        """Return what the messages depend on beside the row, JSON-able; equal for equal prompts."""
        return {
            "prompt": describe_callable(self._function) if self._function else self._user and self._user.source,
            "system_prompt": self._system and self._system.source,
            "on_null": self.on_null,
            "skip_when": self._skip_when and self._skip_when.source,
        }


def _template(source: str | os.PathLike[str], on_null: OnNull) -> Template:
    if isinstance(source, str):
        return Template(source, on_null=on_null)
    path = Path(source)
    try:
        return Template(path.read_text(encoding="utf-8"), on_null=on_null)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the template file {path} cannot be read: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _turns_of(function: RowFunction, row: Mapping[str, Any]) -> list[Message]:
    try:
        turns = function(row)
    except (PromptError, SkippedError):
        raise
    except Exception as error:
        raise PromptError(f"the prompt function failed: {type(error).__name__}: {error}") from error
    if isinstance(turns, str):
        return [{"role": "user", "content": turns}]
    if isinstance(turns, list) and turns and all(isinstance(turn, dict) and "role" in turn for turn in turns):
        return turns
    raise PromptError(f"the prompt function returned {turns!r:.200}; it must return a text or a list of messages.")
