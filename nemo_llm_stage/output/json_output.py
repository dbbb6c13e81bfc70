"""
An answer in JSON becomes a typed value: found in the text, validated, converted to the schema's Arrow type.

Knows JSON Schema and pydantic; knows nothing of clients or tables.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn

import jsonschema_rs
import orjson
import pyarrow as pa

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import ConfigError, ParseError
from nemo_llm_stage.identity import describe_callable
from nemo_llm_stage.output.base import Output
from nemo_llm_stage.output.json_text import find_json
from nemo_llm_stage.output.reasoning import without_reasoning
from nemo_llm_stage.output.schema import plan_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_MAX_ERRORS_TOLD = 5
_MAX_CHARS_TOLD_IN_FULL = 4_096
"""A longer answer gets its first error only: finding them all takes 10 µs each, and there may be thousands."""


class JsonOutput(Output):
    """
    An answer that satisfies a JSON Schema, as the Arrow type that `schema.py` makes.

    Every answer is validated, whatever the server promised: by the schema, formats such as ``date`` included, or by
    the pydantic model with all its validators, whose values are then the ones kept. Thinking before the answer, prose
    and code fences around it, and cosmetic faults within it are put right first; nothing is completed or guessed.

    Args:
        schema: A JSON Schema; a pydantic model or any other type that pydantic can validate, e.g. ``list[Model]``.
        guided: Whether to send the schema as ``response_format``, for servers that then write nothing else. Where one
            refuses it, rows are asked without.
        strict: Whether to set ``strict`` in it. OpenAI then holds the model to the schema, and takes only some schemas.

    Raises:
        ConfigError: It is not a schema.
    """

    def __init__(self, schema: dict[str, Any] | Any, *, guided: bool = True, strict: bool = False) -> None:
        self._settings = {"schema": schema, "guided": guided, "strict": strict}
        self._guided = guided
        self._strict = strict
        self._type = None if isinstance(schema, dict) else schema
        self._adapter = None if isinstance(schema, dict) else _adapter_of(schema)
        self._schema = schema if self._adapter is None else self._adapter.json_schema()
        self._validator = _validator_of(self._schema)
        plan = plan_of(self._schema if self._adapter is None else self._adapter.json_schema(mode="serialization"))
        self.arrow_type = plan.arrow_type
        self._convert = plan.convert
        self._openers = _openers_of(plan.arrow_type, is_json=plan.is_json)

    def request_kwargs(self) -> dict[str, Any]:
        """Return the ``response_format``; nothing where the output is not guided."""
        if not self._guided:
            return {}
        name = re.sub(r"[^a-zA-Z0-9_-]", "_", str(self._schema.get("title") or "answer"))[:64]
        json_schema: dict[str, Any] = {"name": name, "schema": self._schema}
        if self._strict:
            json_schema["strict"] = True
        return {"response_format": {"type": "json_schema", "json_schema": json_schema}}

    def parse(self, text: str, completion: Completion, choice: int) -> Any:
        """
        Return the value, e.g. a dict with every property of the schema; None for those the answer left out.

        Raises:
            ParseError: There is no JSON value, or it does not satisfy the schema; says where and why.
        """
        value = find_json(without_reasoning(text, completion, choice), self._openers)
        is_short = len(text) <= _MAX_CHARS_TOLD_IN_FULL
        if self._adapter is not None:
            value = self._validated(self._adapter, value, is_short=is_short)
        elif not self._validator.is_valid(value):
            self._refuse(value, is_short=is_short)
        return self._convert(value)

    def _validated(self, adapter: TypeAdapter[Any], value: Any, *, is_short: bool) -> Any:
        from pydantic import ValidationError

        try:
            # JSON mode, also for a value already read: strict models take a date's text only there.
            return adapter.dump_python(adapter.validate_json(orjson.dumps(value)), mode="json", by_alias=True)
        except ValidationError as error:
            if not is_short and error.error_count() > _MAX_ERRORS_TOLD:
                self._refuse(value, is_short=False)
            details = error.errors(include_url=False, include_context=False)
            _raise([(detail["loc"], detail["msg"]) for detail in details])

    def _refuse(self, value: Any, *, is_short: bool) -> NoReturn:
        if is_short:
            errors = self._validator.iter_errors(value)
            _raise([(tuple(error.instance_path), error.message) for error in errors])
        try:
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            _raise([(tuple(error.instance_path), error.message)])
        raise ParseError("the JSON does not fit: many of its values are not valid.")

    def describe(self) -> dict[str, Any]:
        """Return the kind, the schema and, of a pydantic model, a hash of its source."""
        model = describe_callable(self._type) if isinstance(self._type, type) else None
        return {"kind": "json", "schema": self._schema, "model": model, "guided": self._guided, "strict": self._strict}

    def __getstate__(self) -> dict[str, Any]:
        """The settings alone: validators live in one process."""
        return self._settings

    def __setstate__(self, settings: dict[str, Any]) -> None:
        """Compile again."""
        self.__init__(**settings)  # type: ignore[misc]  # the settings are all there is


def _adapter_of(schema: Any) -> TypeAdapter[Any]:
    from pydantic import PydanticUserError, TypeAdapter  # not at the top: importing the package stays light

    try:
        adapter = TypeAdapter(schema)
        adapter.json_schema()
    except PydanticUserError as error:
        raise ConfigError(
            f"{schema!r:.100} is no JSON Schema and no type that pydantic can validate: {error}"
        ) from error
    return adapter


def _validator_of(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    try:
        return jsonschema_rs.validator_for(schema, validate_formats=True, offline=True)
    except ValueError as error:
        path, message = tuple(getattr(error, "instance_path", ())), str(getattr(error, "message", error))
        if path[-1:] == ("type",):
            message = message.partition(" is not ")[0] + f" is not a type; there are {', '.join(_TYPES)}"
        elif message.startswith("Pointer "):
            message = "a $ref leads nowhere: " + message
        raise ConfigError(f"the JSON Schema is wrong at {_path(path)}: {message}.") from error


def _openers_of(arrow_type: pa.DataType, *, is_json: bool) -> str:
    if is_json:
        return "{["
    if pa.types.is_struct(arrow_type):
        return "{"
    return "[" if pa.types.is_list(arrow_type) else ""


def _raise(errors: list[tuple[tuple[int | str, ...], str]]) -> NoReturn:
    told = [f"{_path(location)}: {message:.300}" for location, message in errors[:_MAX_ERRORS_TOLD]]
    more = len(errors) - len(told)
    raise ParseError("the JSON does not fit: " + "; ".join(told) + (f"; and {more} more" if more else ""))


def _path(location: tuple[int | str, ...]) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
