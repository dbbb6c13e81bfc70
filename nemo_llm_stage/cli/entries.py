"""
The entries of the reference: every setting and every kind of error, in words. Made from the code.

Knows what an entry says; the reference and `nemo-llm-stage explain` show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from nemo_llm_stage.advice import ADVICE, error_classes
from nemo_llm_stage.cli.options import shown_default
from nemo_llm_stage.config.answers import ANSWER_TYPES
from nemo_llm_stage.config.schema import Setting, job_settings, server_settings, words_of

_TYPE_WORDS: dict[Any, str] = {int: "integer", float: "number", str: "text", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One entry.

    Attributes:
        name: As in a job file with dots between the keys, or the kind of an error.
        heading: What it is, e.g. ``a setting of a job``.
        facts: Label → text, in the order shown.
    """

    name: str
    heading: str
    facts: Mapping[str, str]


def setting_entries() -> Iterator[Entry]:
    """Yield every setting of a job, by section; then those of each type of answer."""
    for setting in (*job_settings(), *server_settings()):
        facts = {"meaning": setting.words, "type": type_words(setting.kinds), "default": default_words(setting)}
        yield Entry(".".join(setting.path), f"setting, {setting.section}", facts)
    for kind, model in ANSWER_TYPES.items():
        words = words_of(model)
        for name, info in model.model_fields.items():
            if name != "type":
                default = "required" if info.is_required() else _coded(info.default)
                facts = {"meaning": words[name], "type": type_words(_alternatives(info.annotation)), "default": default}
                yield Entry(f"answer.{info.alias or name}", f"setting, Answer of type {kind}", facts)


def error_entries() -> Iterator[Entry]:
    """Yield every kind of error, parents first."""
    for error in error_classes():
        advice = ADVICE[error.kind]
        facts = {"cause": advice.cause, "what to do": advice.next_step}
        yield Entry(error.kind, f"kind of error, {error.__name__}", facts)


def find_entries(word: str) -> list[Entry]:
    """Return the entries named `word`: a setting's path, its last key, its option, an error's kind or its class."""
    wanted = word.removeprefix("--").replace("-", "_").lower()
    entries = [*setting_entries(), *error_entries()]
    return [entry for entry in entries if wanted in {name.lower() for name in names_of(entry)}]


def names_of(entry: Entry) -> set[str]:
    """Return the words by which an entry is found."""
    own = {entry.name, entry.name.rpartition(".")[2]}
    return own | {entry.heading.rpartition(" ")[2]} if entry.heading.startswith("kind of error") else own


def type_words(kinds: tuple[Any, ...]) -> str:
    """Return the types of a value in words."""
    return ", or ".join(dict.fromkeys(_type_word(kind) for kind in kinds))


def _type_word(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " / ".join(f"`{_shown(value)}`" for value in inner)
    if origin in {tuple, list}:
        return f"list of {_type_word(inner[0])}"
    if kind in _TYPE_WORDS:
        return _TYPE_WORDS[kind]
    if isinstance(kind, type) and issubclass(kind, BaseModel) and "type" in kind.model_fields:
        return _type_word(kind.model_fields["type"].annotation)
    return "mapping"


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_one = get_origin(hint) in {Literal, tuple, list, dict} or not get_args(hint)
    kinds = (hint,) if is_one else get_args(hint)
    return tuple(kind for kind in kinds if kind is not type(None))


def default_words(setting: Setting) -> str:
    """Return a setting's default in words, with other types of client that have another."""
    if setting.path == ("answer",):
        return "`text`"
    if setting.is_required:
        return "required"
    if setting.default is None or setting.default in ((), ""):
        return "none"
    others = (f", with client `{kind}` `{shown_default(value)}`" for kind, value in setting.others.items())
    return f"{_coded(setting.default)}{''.join(others)}"


def _coded(value: Any) -> str:
    return "none" if value is None else f"`{_shown(value)}`"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return shown_default(value)
