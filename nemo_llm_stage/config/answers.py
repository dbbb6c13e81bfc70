"""
The `answer` section of a job file: what an answer must be, and the `Output` that it stands for.

Knows the settings' names; parsing is the output room's.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from nemo_llm_stage.config.arrow_type import arrow_type_of
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.output import ChoiceOutput, FunctionOutput, JsonOutput, Output, RegexOutput, TextOutput


class Settings(BaseModel):
    """A section of a job file: refuses unknown keys, and does not change after."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class Section:
    """Marks a setting that stands under another heading than the others of its class."""

    heading: str


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of a function's or a class's parameters, so that settings need not repeat them."""
    return {name: parameter.default for name, parameter in signature(function).parameters.items()}


class TextAnswer(Settings):
    """
    The answer's text as it is.

    Attributes:
        type: ``text``.
    """

    type: Literal["text"] = "text"

    def make(self) -> Output:
        """Return the output."""
        return TextOutput()


def _labels(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    if any(isinstance(label, bool) for label in value):
        raise ValueError('YAML takes yes, no, on, off, true and false for truth values; quote them: "yes", "no"')
    return [str(label) if isinstance(label, int | float) else label for label in value]


class ChoicesAnswer(Settings):
    """
    One of some labels.

    Attributes:
        type: ``choices``.
        choices: The labels.
        guided: Whether the server must write one of the labels: ``true`` uses vLLM's guided choice, which other
            servers ignore; ``json`` uses a JSON Schema, which vLLM, SGLang and llama.cpp take.
        logprobs: Whether to keep the model's certainty: the value is then a struct of choice and logprob.
    """

    type: Literal["choices"] = "choices"
    choices: Annotated[tuple[str, ...], BeforeValidator(_labels)]
    guided: bool | Literal["json"] = True
    logprobs: bool = False

    def make(self) -> Output:
        """Return the output."""
        return ChoiceOutput(self.choices, guided=self.guided, logprobs=self.logprobs)


class RegexAnswer(Settings):
    """
    The text that the groups of a regular expression match.

    Attributes:
        type: ``regex``.
        pattern: Python regular expression; named groups make a struct.
        arrow_type: Type of the matched text, e.g. ``int64``; for named groups a type for each name.
    """

    type: Literal["regex"] = "regex"
    pattern: str
    arrow_type: str | dict[str, str] = "string"

    def make(self) -> Output:
        """Return the output."""
        if isinstance(self.arrow_type, str):
            return RegexOutput(self.pattern, arrow_type_of(self.arrow_type))
        return RegexOutput(self.pattern, {name: arrow_type_of(text) for name, text in self.arrow_type.items()})


class JsonAnswer(Settings):
    """
    JSON that satisfies a schema; give one of `schema`, `schema_file` and `python`.

    Attributes:
        type: ``json``.
        json_schema: A JSON Schema.
        schema_file: Path of a file that holds one.
        python: A pydantic model, as ``module:Class``.
        guided: Whether to send the schema, so that the server writes only JSON of it.
        strict: Whether to set ``strict`` with the schema, for OpenAI.
    """

    type: Literal["json"] = "json"
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    schema_file: str | None = None
    python: str | None = None
    guided: bool = True
    strict: bool = False

    @model_validator(mode="after")
    def _has_one_schema(self) -> JsonAnswer:
        if sum(value is not None for value in (self.json_schema, self.schema_file, self.python)) != 1:
            raise ValueError("give one of schema, schema_file and python")
        return self

    def make(self) -> Output:
        """Return the output."""
        schema: Any = self.json_schema
        if self.schema_file is not None:
            schema = _read_schema(Path(self.schema_file))
        elif self.python is not None:
            schema = load_object(self.python)
        try:
            return JsonOutput(schema, guided=self.guided, strict=self.strict)
        except ConfigError as error:
            place = self.schema_file or self.python or "answer.schema"
            raise ConfigError(f"{place}: {error}") from error


class ParserAnswer(Settings):
    """
    The value that a Python function returns for the text.

    Attributes:
        type: ``parser``.
        parser: The function, as ``module:function``; the working directory is searched too.
        arrow_type: Type of the function's value, e.g. ``int64`` or ``list<string>``.
    """

    type: Literal["parser"] = "parser"
    parser: str
    arrow_type: str = "string"

    def make(self) -> Output:
        """Return the output."""
        return FunctionOutput(load_object(self.parser), arrow_type_of(self.arrow_type))


AnswerConfig = Annotated[
    TextAnswer | ChoicesAnswer | RegexAnswer | JsonAnswer | ParserAnswer, Field(discriminator="type")
]

ANSWER_TYPES: dict[str, type[Settings]] = {
    "text": TextAnswer,
    "choices": ChoicesAnswer,
    "regex": RegexAnswer,
    "json": JsonAnswer,
    "parser": ParserAnswer,
}
_TYPE_OF_KEY = {"choices": "choices", "pattern": "regex", "parser": "parser"} | dict.fromkeys(
    ("schema", "json_schema", "schema_file", "python"), "json"
)


def with_type(answer: Any) -> Any:
    """Return the section with its `type`: a word alone is the type, and a key that only one type has tells it."""
    if isinstance(answer, str):
        return {"type": answer}
    if not isinstance(answer, Mapping) or "type" in answer:
        return answer
    types = {_TYPE_OF_KEY[key] for key in answer if key in _TYPE_OF_KEY}
    return {"type": types.pop() if len(types) == 1 else "text", **answer}


def load_object(path: str) -> Any:
    """
    Return what ``module:name`` names. Modules in the working directory are found as well.

    Raises:
        ConfigError: There is no such module or name, or the module cannot be imported.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"{path!r} must be module:name, e.g. my_parsers:score.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        target = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(f"{path!r}: the module cannot be imported: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(target, part):
            raise ConfigError(f"{path!r}: the module {module_name!r} has no {name!r}.")
        target = getattr(target, part)
    return target


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the JSON Schema {str(path)!r} cannot be read: {error}") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"{str(path)!r} holds no JSON Schema: it is not an object.")
    return schema
