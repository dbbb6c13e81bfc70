"""
Keys that do not show: a literal wrapped so that no repr tells it, or the name of where it lies.

A key given by name is read on the worker, so what is pickled holds the name. A literal travels with the client, since
that is what giving it literally means; only its repr and str are closed. Knows nothing of HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from nemo_llm_stage.errors import ConfigError

HIDDEN = "***"
"""What stands in a text where a secret was."""

_MIN_SECRET_CHARS = 6
"""Shorter values are not hidden in messages: they would blank ordinary words."""


class Secret:
    """A text whose repr and str say nothing. It is pickled as it is."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the text."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({HIDDEN!r})"

    def __str__(self) -> str:
        return HIDDEN


class KeySource:
    """
    Where the API key comes from: a literal, an environment variable or a file; at most one of them.

    Args:
        api_key: The key itself.
        api_key_env: Name of the environment variable that holds it on the worker.
        api_key_file: Path of the file that holds it on the worker; white space around the key is dropped.

    Raises:
        ConfigError: More than one is given.
    """

    def __init__(
        self, api_key: str | None, api_key_env: str | None, api_key_file: str | os.PathLike[str] | None
    ) -> None:
        if sum(source is not None for source in (api_key, api_key_env, api_key_file)) > 1:
            raise ConfigError("Give one of api_key, api_key_env and api_key_file, not several.")
        self._literal = None if api_key is None else Secret(api_key)
        self._env = api_key_env
        self._file = None if api_key_file is None else os.fspath(api_key_file)

    def read(self) -> str | None:
        """
        Return the key; None where none is given.

        Raises:
            ConfigError: The variable or file is missing or empty, or the key cannot stand in an HTTP header.
        """
        if self._literal is not None:
            return _checked(self._literal.reveal(), "api_key")
        if self._env is not None:
            if self._env not in os.environ:
                raise ConfigError(f"The environment variable {self._env} (api_key_env) is not set on this machine.")
            return _checked(os.environ[self._env], f"the environment variable {self._env}")
        if self._file is not None:
            try:
                text = Path(self._file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"The key file {self._file} (api_key_file) cannot be read: {error}.") from error
            return _checked(text, f"the key file {self._file}")
        return None

    def __repr__(self) -> str:
        if self._literal is not None:
            return f"api_key={HIDDEN!r}"
        if self._env is not None:
            return f"api_key_env={self._env!r}"
        return "no key" if self._file is None else f"api_key_file={self._file!r}"


def _checked(key: str, source: str) -> str:
    key = key.strip()
    if not key:
        raise ConfigError(f"The key in {source} is empty.")
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"The key in {source} holds a character that cannot stand in an HTTP header.")
    return key


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with every one of `secrets` blanked out."""
    for secret in secrets:
        if len(secret) >= _MIN_SECRET_CHARS:
            text = text.replace(secret, HIDDEN)
    return text
