"""
A JSON Schema becomes an Arrow type, and values that satisfy the schema become values of exactly that type.

| schema | Arrow |
|---|---|
| object with properties | struct of all properties in order, each nullable; other keys are dropped |
| array of one kind | list |
| integer, number, boolean, string | int64, double, bool, string |
| enum, const | the type of its values |
| anyOf, oneOf, type lists | the one kind beside null; integer or number: double |
| anything else: objects without properties, real unions, recursion | string that holds JSON |

Knows nothing of validation: that is a validator's work, before this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import orjson
import pyarrow as pa

from nemo_llm_stage.errors import ConfigError, ParseError

_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ArrowPlan:
    """
    What a schema means in Arrow.

    Attributes:
        arrow_type: The type.
        convert: From a JSON value to a value of the type; raises ParseError where it is none.
        is_json: Whether the type is a string that holds JSON.
    """

    arrow_type: pa.DataType
    convert: Callable[[Any], Any]
    is_json: bool = False


def plan_of(schema: Any) -> ArrowPlan:
    """
    Return the Arrow type and conversion for `schema`.

    Raises:
        ConfigError: A ``$ref`` points outside of the schema.
    """
    return _plan(schema, schema, ())


def _plan(schema: Any, root: Any, refs: tuple[str, ...]) -> ArrowPlan:
    if not isinstance(schema, dict):
        return _JSON
    if "$ref" in schema:
        ref = schema["$ref"]
        return _JSON if ref in refs else _plan(_resolve(root, ref), root, (*refs, ref))
    if "properties" in schema or "items" in schema or "prefixItems" in schema:
        kind = schema.get("type", "object" if "properties" in schema else "array")
    else:
        kind = schema.get("type")
    if isinstance(kind, list):
        return _union([{**schema, "type": one} for one in kind], root, refs)
    if kind == "object":
        return _struct(schema, root, refs)
    if kind == "array":
        return _list(schema, root, refs)
    if kind is not None:
        return _SCALARS.get(kind, _JSON)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return _union(schema[union], root, refs)
    if len(schema.get("allOf", ())) == 1:
        return _plan(schema["allOf"][0], root, refs)
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return _union([{"type": _KIND_OF.get(type(value))} for value in values], root, refs)


def _resolve(root: Any, ref: str) -> Any:
    target = root
    if ref != "#" and not ref.startswith("#/"):
        raise ConfigError(f"the schema refers to {ref!r}; only references within it (#/…) are followed.")
    for step in ref[1:].split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if not isinstance(target, dict) or key not in target:
            raise ConfigError(f"the schema refers to {ref!r}, which it does not have.")
        target = target[key]
    return target


def _union(members: Iterable[Any], root: Any, refs: tuple[str, ...]) -> ArrowPlan:
    not_null = [member for member in members if not (isinstance(member, dict) and _is_null(member))]
    plans = [_plan(member, root, refs) for member in not_null]
    types = {plan.arrow_type for plan in plans}
    if not plans or any(plan.is_json for plan in plans):
        return _JSON
    if types == {pa.int64(), pa.float64()}:
        return _SCALARS["number"]
    return plans[0] if len(types) == 1 else _JSON


def _is_null(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "null" or schema.get("enum") == [None] or schema.get("const", ...) is None


def _struct(schema: dict[str, Any], root: Any, refs: tuple[str, ...]) -> ArrowPlan:
    plans = [(name, _plan(member, root, refs)) for name, member in schema.get("properties", {}).items()]
    if not plans:
        return _JSON
    conversions = [(name, plan.convert) for name, plan in plans]

    def convert(value: Any) -> dict[str, Any] | None:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ParseError(f"{value!r:.200} is not an object.")
        return {name: convert_field(value.get(name)) for name, convert_field in conversions}

    return ArrowPlan(pa.struct([(name, plan.arrow_type) for name, plan in plans]), convert)


def _list(schema: dict[str, Any], root: Any, refs: tuple[str, ...]) -> ArrowPlan:
    members = [*schema.get("prefixItems", ()), *([schema["items"]] if schema.get("items") else [])]
    if not members:
        return _JSON
    item = _plan(members[0], root, refs) if len(members) == 1 else _union(members, root, refs)
    if len(members) > 1 and item.is_json:
        return _JSON

    def convert(value: Any) -> list[Any] | None:
        if value is None:
            return None
        if not isinstance(value, list):
            raise ParseError(f"{value!r:.200} is not an array.")
        return [item.convert(element) for element in value]

    return ArrowPlan(pa.list_(item.arrow_type), convert)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ParseError(f"{value!r:.200} is not a string.")


def _integer(value: Any) -> int | None:
    if value is None:
        return None
    integer = int(value)
    if not -_INT64_MAX - 1 <= integer <= _INT64_MAX:
        raise ParseError(f"{value} is out of range: integers have 64 bits.")
    return integer


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _same(value: Any) -> Any:
    return value


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


_JSON = ArrowPlan(pa.string(), _json, is_json=True)
_SCALARS = {
    "string": ArrowPlan(pa.string(), _text),
    "integer": ArrowPlan(pa.int64(), _integer),
    "number": ArrowPlan(pa.float64(), _number),
    "boolean": ArrowPlan(pa.bool_(), _same),
}
_KIND_OF = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
