"""
Job files and command lines become a checked `JobConfig`.

Reads YAML, fills in environment variables, lays options over it, and says what is wrong in terms of the file: the key,
and the nearest known one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from nemo_llm_stage.config.answers import ANSWER_TYPES
from nemo_llm_stage.config.clients import CLIENT_TYPES
from nemo_llm_stage.config.columns import ColumnConfig
from nemo_llm_stage.config.job import JobConfig
from nemo_llm_stage.config.named_values import IS_RECORD
from nemo_llm_stage.config.schema import job_settings
from nemo_llm_stage.config.servers import Servers
from nemo_llm_stage.config.yaml_text import parse_yaml
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.suggest import did_you_mean
from nemo_llm_stage.text import names_a_secret

__all__ = ["JobConfig", "make_config", "override", "read_job_file"]

_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}")
_TEXT_KEYS = frozenset({"prompt", "system_prompt", "messages", "skip_when", "keep_if", "answer"})
"""Settings that go to the model or are a language of their own: a ``${…}`` in them is theirs."""


def read_job_file(path: str | Path) -> dict[str, Any]:
    """
    Return the mapping that a YAML job file holds, with environment variables filled in.

    ``${NAME}`` and ``${NAME:-default}`` are replaced in every setting but texts for the model; ``$${`` is a plain
    ``${``. A variable whose name says that it holds a secret is refused: a job file names such variables
    (``api_key_env``), so that what is pickled, shown and written down holds the name alone.

    Raises:
        ConfigError: It cannot be read, is not a YAML mapping, or names a variable that is not set or is a secret.
    """
    source = f"the job file {str(path)!r}"
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not UTF-8 text: {error}.") from error
    settings = parse_yaml(text, source)
    if not isinstance(settings, dict):
        raise ConfigError(f"{source} is not a mapping of settings, e.g. `output: out`.")
    return _with_variables(settings, "")


def _with_variables(settings: dict[Any, Any], place: str) -> dict[str, Any]:
    result = {}
    for key, value in settings.items():
        if key == "columns" and isinstance(value, list):
            columns = enumerate(value)
            value = [_with_variables(c, f"columns.{i}.") if isinstance(c, dict) else c for i, c in columns]
        elif key not in _TEXT_KEYS:
            value = _filled_in(value, f"{place}{key}")
        result[key] = value
    return result


def _filled_in(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled_in(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_filled_in(item, place) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    text = _VARIABLE.sub(lambda match: _variable(match, place), value)
    # A variable that is all of a value may be a number or a truth value, as if it had been written there.
    return yaml.safe_load(text) if _VARIABLE.fullmatch(value) and value[1] == "{" else text


def _variable(match: re.Match[str], place: str) -> str:
    name, default = match[1], match[2]
    if name is None:
        return "${"
    if names_a_secret(name):
        raise ConfigError(
            f"{place}: ${{{name}}} looks like a secret, and a job file must not hold one: name the variable with "
            f"api_key_env, or in headers and query with {{env: {name}}}."
        )
    value = os.environ.get(name, default)
    if value is None:
        raise ConfigError(f"{place}: the environment variable {name} is not set; ${{{name}:-…}} gives it a default.")
    return value


def override(settings: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """
    Return `settings` with assignments such as ``generation_config.max_tokens=64`` put over them; modifies nothing.

    Args:
        settings: As a job file has them.
        assignments: ``key.key=value``, the value in YAML.

    Raises:
        ConfigError: One is no assignment, or goes through something that is no mapping.
    """
    result = dict(settings)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"--set {assignment!r}: it must be key=value, e.g. generation_config.max_tokens=64.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment!r}: the value is not YAML: {error}") from error
        _put(result, path.split("."), value, assignment)
    return result


def _put(settings: dict[str, Any], path: list[str], value: Any, assignment: str) -> None:
    first, *rest = path
    if not rest:
        settings[first] = value
        return
    inner = settings.get(first)
    if isinstance(inner, list | tuple) and rest[0].isdigit() and int(rest[0]) < len(inner) and len(rest) > 1:
        items = {str(place): item for place, item in enumerate(inner)}
        _put(items, rest, value, assignment)
        settings[first] = list(items.values())
        return
    if first in {"client", "answer"} and isinstance(inner, str):
        inner = {"type": inner}
    if inner is not None and not isinstance(inner, dict):
        raise ConfigError(f"--set {assignment!r}: {first} is {inner!r:.100}, which has no {rest[0]!r}.")
    settings[first] = dict(inner or {})
    _put(settings[first], rest, value, assignment)


def make_config(settings: Mapping[str, Any], source: str = "the job", *, is_record: bool = False) -> JobConfig:
    """
    Return the checked configuration.

    Args:
        settings: As a job file has them.
        source: What to call them in a message.
        is_record: Whether a job wrote them into its output folder; older versions wrote there what a job file may no
            longer hold.

    Raises:
        ConfigError: One line for each thing that is wrong: the key, what is wrong with it, and the nearest known key.
    """
    _refuse_secrets(settings)
    try:
        return JobConfig.model_validate(settings, context={IS_RECORD: is_record})
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A mistake in a job's own setting is one in each column that inherits it; it is reported once.
        told = {(detail["loc"], detail["msg"]) for detail in details}
        lines = [_explain(d) for d in details if d["loc"][:1] != ("columns",) or (d["loc"][2:], d["msg"]) not in told]
        raise ConfigError(f"{source} cannot run:\n  " + "\n  ".join(lines)) from error


def _refuse_secrets(settings: Mapping[str, Any]) -> None:
    columns = settings.get("columns")
    own = [column for column in columns if isinstance(column, Mapping)] if isinstance(columns, list | tuple) else []
    for place in (settings, *own):
        client = place.get("client")
        if "api_key" in place or (isinstance(client, Mapping) and "api_key" in client):
            raise ConfigError(
                "a key does not belong into a job file or onto a command line: name the environment variable that "
                "holds it with api_key_env, or a file with api_key_file."
            )


def _explain(detail: Any) -> str:
    path = [
        str(part)
        for part in detail["loc"]
        if not re.match(r"(str|int|float|dict|tuple|list|constrained-int|literal)\b", str(part))
    ]
    known = list(_names(JobConfig))
    start = 0
    if path[:1] == ["columns"]:
        known, start = list(_names(ColumnConfig)), 2
    if path[start : start + 1] == ["client"] and len(path) > start + 1:
        known = list(_names(CLIENT_TYPES[path.pop(start + 1)]))
    elif path[start : start + 1] == ["answer"] and len(path) > start + 1:
        known = list(_names(ANSWER_TYPES[path.pop(start + 1)]))
    elif path[:1] == ["servers"]:
        known = list(_names(Servers))
    name = ".".join(path)
    if detail["type"] == "extra_forbidden":
        hint = _right_place(path[start:]) or _nearest(path[start:], known) or f"known are {', '.join(known)}"
        return f"unknown key {name!r}; {hint}"
    if detail["type"] == "missing":
        return f"{name} is missing"
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        words = re.findall(r"'([^']+)'", str(detail["ctx"]["expected"]))
        hint = did_you_mean(detail["input"], words) or _one_of(words)
        return f"{name} is {detail['input']!r}; {hint}"
    if detail["type"] == "union_tag_invalid":
        tag = str(detail["ctx"]["tag"])
        tags = CLIENT_TYPES if path[-1] == "client" else ANSWER_TYPES
        return f"{name}.type is {tag!r}; {did_you_mean(tag, tags) or _one_of(tags)}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def _right_place(path: Sequence[str]) -> str | None:
    """Return where the setting that is the last key belongs, if it stands in another place; see `_explain`."""
    places = [setting.path for setting in job_settings() if setting.name == path[-1]]
    places += [("answer", name) for answer in ANSWER_TYPES.values() for name in _names(answer) if name == path[-1]]
    right = [".".join(place) for place in places if [*place[:-1]] != [*path[:-1]]]
    return f"write {right[0]}" if right and path[-1] != "type" else None


def _nearest(path: Sequence[str], known: Sequence[str]) -> str | None:
    """Return a question that names the setting with the nearest name; at the top level of a job in any section."""
    hint = did_you_mean(path[-1], known)
    if len(path) > 1:
        return hint
    places = {setting.name: ".".join(setting.path) for setting in job_settings()}
    anywhere = did_you_mean(path[-1], [*known, *places])
    name = "" if anywhere is None else anywhere.split("'")[1]
    return hint if name in known or not name else f"did you mean {places[name]!r}?"


def _one_of(words: Iterable[str]) -> str:
    return f"it must be one of {', '.join(words)}"


def _names(model: type[BaseModel]) -> Iterable[str]:
    return (field.alias or name for name, field in model.model_fields.items())
