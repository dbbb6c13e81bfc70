"""
A row becomes the messages of one request.

Pure, but for reading template files when made and image files that rows name. Knows nothing of clients or tables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_llm_stage.core import Message
from nemo_llm_stage.errors import ConfigError, PromptError, RowError, SkippedError
from nemo_llm_stage.identity import describe_callable
from nemo_llm_stage.prompt.conversation import messages_of_column
from nemo_llm_stage.prompt.images import MAX_IMAGE_BYTES, ImageRules, attach_images, image_parts
from nemo_llm_stage.prompt.nulls import is_null
from nemo_llm_stage.prompt.template import Expression, OnNull, Template, check_columns, null_error
from nemo_llm_stage.suggest import did_you_mean

RowFunction = Callable[[Mapping[str, Any]], "str | list[Message]"]

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of the chat protocol. Source: OpenAI chat completions."""

_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_SINGLE_BRACES = re.compile(r"\{([^\W\d]\w*)\}")


class Prompt:
    """
    How a row becomes messages. Immutable, can be pickled; templates are compiled once per process.

    The conversation is, in this order, each where given: the system turn, the turns of `messages_column`, those of
    `messages`, the user's turn.

    Args:
        prompt: The user's turn: a template's text, a path of a file holding one, or a function from the row to a text
            or to messages. A function gets the row as it is, nulls included.
        system_prompt: The system turn: a template's text or a path. It replaces system turns of `messages_column` and
            of a function's messages.
        messages: Turns as ``{"role": …, "content": template or path}``, e.g. examples.
        messages_column: A column holding chat turns as ``list<struct<role, content>>`` or as JSON text.
        images: Columns whose images go before the text of the last user turn: bytes, local paths, URLs, Hugging Face
            image structs, or lists of these.
        images_root: The folder that images may be read from, after symbolic links are followed; relative paths start
            there. None: a row that names a local file fails.
        allow_remote_urls: Whether image URLs are passed on for the server to fetch.
        max_image_bytes: The largest image sent.
        on_null: What a null column that is used leads to: ``skip`` leaves the row unasked, ``error`` fails it,
            ``empty`` takes it for an empty text. None, NaN, pandas' NA and NaT are null.
        skip_when: An expression; rows for which it is true are left unasked.

    Attributes:
        required_columns: The columns that are mentioned.
        reads_files: Whether `render` may read image files, so that it belongs in a thread: disks can be slow.
        needs_all_columns: Whether a function or ``{{ row }}`` may look at any column.

    Raises:
        ConfigError: A template is wrong or empty, or there is nothing to ask; or no column is mentioned but in single
            braces, as for ``str.format``, so that every row would be asked the same.
    """

    def __init__(
        self,
        prompt: str | os.PathLike[str] | RowFunction | None = None,
        *,
        system_prompt: str | os.PathLike[str] | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        messages_column: str | None = None,
        images: str | Sequence[str] = (),
        images_root: str | os.PathLike[str] | None = None,
        allow_remote_urls: bool = False,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        on_null: OnNull = "skip",
        skip_when: str | None = None,
    ) -> None:
        if on_null not in {"skip", "error", "empty"}:
            raise ConfigError(f"on_null is {on_null!r}; it must be skip, error or empty.")
        if prompt is None and not messages and messages_column is None:
            raise ConfigError("there is nothing to ask: give prompt, messages or messages_column.")
        self.on_null: OnNull = on_null
        self._function = prompt if callable(prompt) else None
        self._turns = [_turn_template(turn, on_null) for turn in messages or ()]
        if prompt is not None and not callable(prompt):
            self._turns.append(("user", _template(prompt, on_null)))
        self._system = None if system_prompt is None else _template(system_prompt, on_null)
        self._skip_when = None if skip_when is None else Expression(skip_when, on_null=on_null)
        self._messages_column = messages_column
        self._images = (images,) if isinstance(images, str) else tuple(images)
        root = None if images_root is None else str(Path(images_root).absolute())
        self._rules = ImageRules(allow_remote_urls, root, max_image_bytes)
        self.reads_files = bool(self._images) and root is not None
        templates = [t for t in (self._system, self._skip_when, *(t for _, t in self._turns)) if t is not None]
        named = {*self._images, *([messages_column] if messages_column is not None else [])}
        self.required_columns = frozenset(named).union(*(template.required_columns for template in templates))
        self.needs_all_columns = self._function is not None or any(t.needs_all_columns for t in templates)
        if not self.required_columns and not self.needs_all_columns:
            _refuse_single_braces(templates)
            if not any(template.source.strip() for template in templates):
                raise ConfigError("the prompt is empty.")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **settings: Any) -> Prompt:
        """Return the prompt whose user's turn is the template in the file at `path`; `settings` as for the class."""
        return cls(Path(path), **settings)

    @property
    def is_pure(self) -> bool:
        """Whether rendering calls no user function and reads no file, so that doing it twice costs only time."""
        return self._function is None and not self._images

    def check_columns(self, available: Sequence[str]) -> None:
        """
        Check that the mentioned columns exist.

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
        messages = [] if self._messages_column is None else self._column_messages(row, self._messages_column)
        messages += [{"role": role, "content": template.render(row)} for role, template in self._turns]
        if self._function is not None:
            messages += _messages_of_function(self._function, row)
        if self._system is not None:
            others = [message for message in messages if message["role"] != "system"]
            messages = [{"role": "system", "content": self._system.render(row)}, *others]
        if not messages:
            raise PromptError("there are no messages to send.")
        if parts := [part for column in self._images for part in self._image_parts(row, column)]:
            attach_images(messages, parts)
        return messages

    def describe(self) -> dict[str, Any]:
        """
        Return what the messages depend on beside the row, JSON-able; equal for equal prompts.

        `images_root` is left out: the same images may lie elsewhere on another machine.
        """
        return {
            "function": self._function and describe_callable(self._function),
            "system_prompt": self._system and self._system.source,
            "messages": [{"role": role, "content": template.source} for role, template in self._turns],
            "messages_column": self._messages_column,
            "images": list(self._images),
            "allow_remote_urls": self._rules.allow_remote_urls,
            "max_image_bytes": self._rules.max_image_bytes,
            "on_null": self.on_null,
            "skip_when": self._skip_when and self._skip_when.source,
        }

    def _column_messages(self, row: Mapping[str, Any], column: str) -> list[Message]:
        value = self._value(row, column)
        if value is None:
            return []
        return messages_of_column(column, value, allow_remote_urls=self._rules.allow_remote_urls)

    def _image_parts(self, row: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
        value = self._value(row, column)
        if value is None:
            return []
        return image_parts(column, value, self._rules)

    def _value(self, row: Mapping[str, Any], column: str) -> Any:
        value = row.get(column)
        if not is_null(value):
            return value
        if self.on_null == "empty":
            return None
        raise null_error(column, self.on_null)


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


def _refuse_single_braces(templates: Sequence[Template | Expression]) -> None:
    for template in templates:
        if found := _SINGLE_BRACES.search(_JINJA.sub("", template.source)):
            raise ConfigError(
                f"the prompt uses no column: {found[0]} is plain text, write {{{{ {found[1]} }}}} for the column."
            )


def _turn_template(turn: Mapping[str, Any], on_null: OnNull) -> tuple[str, Template]:
    if set(turn) != {"role", "content"}:
        raise ConfigError(f"messages: a turn has role and content, not {', '.join(map(str, turn)) or 'nothing'}.")
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        hint = did_you_mean(str(role), ROLES) or f"known are {', '.join(ROLES)}"
        raise ConfigError(f"messages: there is no role {role!r}; {hint}.")
    if not isinstance(content, str | os.PathLike):
        raise ConfigError(f"messages: the content of a turn is a template's text or a path, not {content!r:.100}.")
    return role, _template(content, on_null)


def _messages_of_function(function: RowFunction, row: Mapping[str, Any]) -> list[Message]:
    try:
        messages = function(row)
    except RowError:
        raise
    except Exception as error:
        raise PromptError(f"the prompt function failed: {type(error).__name__}: {error}") from error
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if isinstance(messages, list) and all(isinstance(m, dict) and "role" in m and "content" in m for m in messages):
        return [dict(message) for message in messages]
    raise PromptError(f"the prompt function returned {messages!r:.200}; it must return a text or a list of messages.")
