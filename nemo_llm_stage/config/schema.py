"""
Every setting of a job, once: its place, type, default, words and section.

The JSON schema of job files and the options of the command line are made from this; nothing is listed by hand.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from inspect import cleandoc, get_annotations
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from nemo_llm_stage.client.llm_client import GenerationConfig
from nemo_llm_stage.config.answers import ANSWER_TYPES, Section, Settings
from nemo_llm_stage.config.clients import CLIENT_TYPES
from nemo_llm_stage.config.columns import ColumnConfig, GenerationSettings
from nemo_llm_stage.config.job import JobConfig
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.config.servers import Servers

SECTIONS = ("Input and prompt", "Server", "Generation", "Answer", "Run")
"""Headings of the settings, in the order in which people read them."""

_EXPLAINED_BY: dict[type[Any], type[Any]] = {GenerationSettings: GenerationConfig, JobConfig: JobSettings}
"""Models whose fields come from another class; that class's docstring explains them."""


@dataclass(frozen=True, slots=True)
class Setting:
    """
    One setting of a job.

    Attributes:
        path: Its keys from the top of a job file, e.g. ``("client", "timeout")``.
        kinds: Types of value that it takes, without None.
        default: Value where a job does not say; None where there is none, or where it is found at run time.
        is_required: Whether every job has it.
        words: What it means.
        section: Heading that it stands under; one of `SECTIONS`.
        others: Types of client with another default → that default.
    """

    path: tuple[str, ...]
    kinds: tuple[Any, ...]
    default: Any
    is_required: bool
    words: str
    section: str
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last key."""
        return self.path[-1]


@cache
def job_settings() -> tuple[Setting, ...]:
    """Return every setting of a job with one column, sorted by section. A client's type has the place ``client``."""
    settings = [*_settings_of(JobConfig), *_settings_of(GenerationSettings, "generation_config"), *_client_settings()]
    return tuple(sorted(settings, key=lambda setting: (SECTIONS.index(setting.section), not setting.is_required)))


@cache
def server_settings() -> tuple[Setting, ...]:
    """Return every setting of the servers that a job starts."""
    return tuple(_settings_of(Servers, "servers"))


def _client_settings() -> Iterator[Setting]:
    """Yield the settings of all types of client, each once."""
    settings = {kind: {s.name: s for s in _settings_of(model, "client")} for kind, model in CLIENT_TYPES.items()}
    for name in dict.fromkeys(name for own in settings.values() for name in own if name != "type"):
        (_, first), *others = ((kind, own[name]) for kind, own in settings.items() if name in own)
        yield replace(first, others={kind: own.default for kind, own in others if own.default != first.default})


def _settings_of(model: type[BaseModel], *place: str) -> Iterator[Setting]:
    words = words_of(model)
    for name, info in model.model_fields.items():
        path, kinds, section = (*place, info.alias or name), _kinds(info.annotation), _section(model, name, info)
        default = None if info.default is PydanticUndefined else info.default
        yield Setting(path, kinds, default, info.is_required(), words[name], section)


def _kinds(hint: Any) -> tuple[Any, ...]:
    kinds = get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)
    bare = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds]
    return tuple(kind for kind in bare if kind is not types.NoneType)


def _section(model: type[BaseModel], name: str, info: FieldInfo) -> str:
    own = [mark.heading for mark in info.metadata if isinstance(mark, Section)]
    declaring: Any = next(cls for cls in model.__mro__ if name in get_annotations(cls))
    return own[0] if own else str(declaring.section)


def words_of(model: type[Any]) -> dict[str, str]:
    """
    Return what the docstrings of a model and its bases say of each attribute, and under ``""`` of the whole model.

    Each text is one line; code in it has single backticks.
    """
    words: dict[str, str] = {}
    classes = [cls for cls in reversed(model.__mro__) if issubclass(cls, Settings)]
    for cls in (_EXPLAINED_BY.get(model, Settings), *classes):
        summary, _, attributes = cleandoc(cls.__doc__ or "").partition("\n\nAttributes:\n")
        words[""] = _line(summary)
        for name, text in re.findall(r"^ {4}(\w+): (.+?)(?=^ {4}\w|^\w|\Z)", attributes, re.MULTILINE | re.DOTALL):
            words[name] = _line(text)
    return words


def _line(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file, with every setting's description, for editors."""
    schema = JobConfig.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    models: list[type[BaseModel]] = [
        JobConfig,
        ColumnConfig,
        GenerationSettings,
        Servers,
        *CLIENT_TYPES.values(),
        *ANSWER_TYPES.values(),
    ]
    for model in models:
        part = schema if model is JobConfig else definitions[model.__name__]
        words = words_of(model)
        part["description"] = words[""]
        aliases = {info.alias or name: name for name, info in model.model_fields.items()}
        for name, property_ in part["properties"].items():
            property_["description"] = words[aliases[name]]
    for part in (schema, definitions["ColumnConfig"]):
        properties = part["properties"]
        properties["client"] = _or_word(properties["client"], ["local"])
        properties["answer"] = _or_word(properties["answer"], ["text"])
    definitions["ColumnConfig"]["required"] = ["output_column"]  # the rest may come from the job
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "nemo-llm-stage job"}


def _or_word(schema: dict[str, Any], words: list[str]) -> dict[str, Any]:
    description = schema.pop("description")
    schema.pop("default", None)
    return {"anyOf": [schema, {"enum": words}], "description": description}
