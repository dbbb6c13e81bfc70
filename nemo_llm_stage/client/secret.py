"""
Values that must not show: API keys, headers, query parameters, a proxy's password.

A value is a literal or the name of where it lies. A named one is read on the worker, so what is pickled and written
down holds the name. A literal travels with the client, since that is what giving it literally means; only its repr and
str are closed. Finding secrets in texts is `hide`'s. Knows nothing of HTTP connections.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from nemo_llm_stage.errors import ConfigError

HIDDEN = "***"
"""What stands in a text where a secret was."""

Value: TypeAlias = str | Mapping[str, str]
"""A text, or ``{"env": NAME}`` or ``{"file": PATH}`` for where it lies on the worker."""

HARMLESS_HEADERS = frozenset(
    {"accept", "accept-encoding", "accept-language", "cache-control", "content-type", "user-agent"}
    | {"http-referer", "referer", "x-title", "x-openrouter-title", "x-openrouter-categories"}  # OpenRouter
    | {"anthropic-version", "anthropic-beta", "openai-beta", "openai-organization", "openai-project"}
    | {"nvcf-poll-seconds"}  # NVIDIA's API catalog
)
"""Headers whose values may be shown and written down; the value of any other one may be a secret."""

HARMLESS_QUERY = frozenset({"api-version", "api_version", "version", "region", "alt", "beta"})
"""Query parameters, likewise."""


_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


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


class ValueSource:
    """
    Where one value comes from: a literal, an environment variable or a file.

    Args:
        value: A text, or ``{"env": NAME}`` or ``{"file": PATH}``.
        setting: What the value is for, e.g. ``headers: x-team``; named in errors.
        is_harmless: Whether a literal may be shown.

    Raises:
        ConfigError: `value` is neither.
    """

    def __init__(self, value: Value, setting: str, *, is_harmless: bool = False) -> None:
        self._setting = setting
        self._is_harmless = is_harmless
        self._literal: Secret | None = None
        self._env: str | None = None
        self._file: str | None = None
        if isinstance(value, str):
            self._literal = Secret(value)
            return
        if not isinstance(value, Mapping) or len(value) != 1 or not {*value} <= {"env", "file"}:
            raise ConfigError(f"{setting} must be a text, {{env: NAME}} or {{file: PATH}}.")
        self._env, file = value.get("env"), value.get("file")
        if self._env is not None:
            check_variable(self._env, setting)
        self._file = None if file is None else os.fspath(file)

    @property
    def is_secret(self) -> bool:
        """Whether the value must not show: it is named, or is not known to be harmless."""
        return self._literal is None or not self._is_harmless

    def read(self) -> str:
        """
        Return the value; white space around it is dropped.

        Raises:
            ConfigError: The variable or file is missing or empty, or the value cannot stand in an HTTP header.
        """
        if self._literal is not None:
            return self._checked(self._literal.reveal(), self._setting)
        if self._env is not None:
            name = self._env if self._env.isupper() else "that is named"  # some keys could be names: hf_…, gsk_…
            if self._env not in os.environ:
                raise ConfigError(f"The environment variable {name} ({self._setting}) is not set on this machine.")
            return self._checked(os.environ[self._env], f"the environment variable {name} ({self._setting})")
        try:
            text = Path(self._file or "").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"The file {self._file} ({self._setting}) cannot be read: {reason}.") from None
        return self._checked(text, f"the file {self._file} ({self._setting})")

    def _checked(self, value: str, source: str) -> str:
        value = value.strip()
        if self._literal is None and not value:
            raise ConfigError(f"The value in {source} is empty.")
        if not value.isprintable() or (self.is_secret and not value.isascii()):
            raise ConfigError(f"The value in {source} holds a character that cannot stand in an HTTP header.")
        return value

    def __repr__(self) -> str:
        if self._literal is not None:
            return repr(self._literal.reveal()) if self._is_harmless else repr(HIDDEN)
        return repr({"env": self._env} if self._env is not None else {"file": self._file})


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
        named = {"api_key_env": api_key_env, "api_key_file": api_key_file, "api_key": api_key}
        given = {name: value for name, value in named.items() if value is not None}
        if len(given) > 1:
            raise ConfigError("Give one of api_key, api_key_env and api_key_file, not several.")
        self._source: ValueSource | None = None
        self._shown = "no key"
        for name, value in given.items():
            key = os.fspath(value)
            place = {"api_key_env": {"env": key}, "api_key_file": {"file": key}}
            self._source = ValueSource(place.get(name, key), name)
            self._shown = f"{name}={(key if name in place else HIDDEN)!r}"

    def read(self) -> str | None:
        """
        Return the key; None where none is given.

        Raises:
            ConfigError: The variable or file is missing or empty, or the key cannot stand in an HTTP header.
        """
        key = None if self._source is None else self._source.read()
        if key == "":
            raise ConfigError("The key in api_key is empty.")
        return key

    def __repr__(self) -> str:
        return self._shown


def check_variable(name: object, setting: str) -> None:
    """
    Refuse what cannot be a variable's name: it may be the key itself, which is not told.

    Raises:
        ConfigError: It cannot be one.
    """
    if not isinstance(name, str) or _VARIABLE.fullmatch(name) is None:
        raise ConfigError(f"{setting} must name an environment variable, e.g. MY_KEY; it never holds the key itself.")


def sources_of(values: Mapping[str, Value] | None, setting: str, harmless: frozenset[str]) -> dict[str, ValueSource]:
    """
    Return where each of a client's headers or query parameters comes from.

    Raises:
        ConfigError: A value is of another type.
    """
    return {
        str(name): ValueSource(value, f"{setting}: {name}", is_harmless=str(name).lower() in harmless)
        for name, value in (values or {}).items()
    }


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with every one of `secrets` blanked out."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text
