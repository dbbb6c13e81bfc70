"""
A JSON text that a schema accepts: what constrained decoding would give, without a model.

The same schema and key give the same text. Knows nothing of requests.
"""

from __future__ import annotations

import math
from typing import Any

import orjson

from nemo_llm_stage.testing.simulator.answers import uniform

_MAX_DEPTH = 24
_OPTIONAL_DEPTH = 6  # below this depth optional properties and extra items are left out, so that recursion ends
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


class SchemaError(Exception):
    """No value follows this schema, or it is no schema."""


def json_answer(schema: Any, key: str) -> str:
    """
    Return a JSON text that follows `schema`, chosen by `key`.

    Raises:
        SchemaError: It is no schema, or one that this module does not know how to follow.
    """
    return orjson.dumps(_Writer(schema, key).value(schema, "$", 0)).decode()


class _Writer:
    """Walks one schema; every choice depends on the key and the place in the value."""

    def __init__(self, root: Any, key: str) -> None:
        self._root = root
        self._key = key

    def value(self, schema: Any, place: str, depth: int) -> Any:
        """Return a value for `schema`, which stands at `place` of the answer."""
        if depth > _MAX_DEPTH:
            raise SchemaError(f"the schema at {place} never ends")
        if schema is True:
            return self._text(place)
        if not isinstance(schema, dict):
            raise SchemaError(f"Invalid schema at {place}: {schema!r}")
        if "$ref" in schema:
            return self.value(self._resolve(schema["$ref"]), place, depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._one_of(schema["enum"], place)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._any_of(schema[word], place, depth)
        if "allOf" in schema:
            return self.value(self._merged(schema), place, depth + 1)
        return self._typed(schema, place, depth)

    def _typed(self, schema: dict[str, Any], place: str, depth: int) -> Any:
        kind = schema.get("type") or ("object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = self._one_of([name for name in kind if name != "null"] or ["null"], place)
        if kind not in _TYPES:
            raise SchemaError(f"Invalid type: {kind}")
        if kind == "object":
            return self._object(schema, place, depth)
        if kind == "array":
            return self._array(schema, place, depth)
        if kind == "string":
            return self._string(schema, place)
        if kind == "integer":
            return self._multiple(schema, place)
        if kind == "number":
            return self._number(schema, place)
        return None if kind == "null" else self._share(place) < 0.5

    def _object(self, schema: dict[str, Any], place: str, depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or []
        names = [name for name in properties if name in required or depth < _OPTIONAL_DEPTH]
        names += [name for name in required if name not in properties]
        return {name: self.value(properties.get(name, True), f"{place}.{name}", depth + 1) for name in names}

    def _array(self, schema: dict[str, Any], place: str, depth: int) -> list[Any]:
        fixed = schema.get("prefixItems") or []
        low = max(schema.get("minItems", 0), len(fixed))
        high = max(low, schema.get("maxItems", max(low, 2)))
        size = low if depth >= _OPTIONAL_DEPTH else low + int(self._share(place) * (min(high, low + 2) - low + 1))
        items = [*fixed, *[schema.get("items", True)] * (size - len(fixed))]
        return [self.value(item, f"{place}[{index}]", depth + 1) for index, item in enumerate(items)]

    def _string(self, schema: dict[str, Any], place: str) -> str:
        formats = {"date": "2026-01-31", "date-time": "2026-01-31T12:00:00Z", "time": "12:00:00Z"}
        formats |= {"uuid": "00000000-0000-4000-8000-000000000000", "email": "a@example.com"}
        if schema.get("format") in formats:
            return formats[schema["format"]]
        if "pattern" in schema:
            raise SchemaError(f"pattern is not supported: {schema['pattern']}")
        text = self._text(place).ljust(schema.get("minLength", 0), ".")
        return text[: schema.get("maxLength", len(text))]

    def _number(self, schema: dict[str, Any], place: str) -> float:
        if "multipleOf" in schema:
            return float(self._multiple(schema, place))
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        if low is None:
            low = 0 if high is None else high - 10
        if high is None:
            high = low + 10
        if high < low:
            raise SchemaError(f"no number between {low} and {high} at {place}")
        number = low + self._share(place) * (high - low)
        short = round(number, 2)
        return float(short if low < short < high else number)

    def _multiple(self, schema: dict[str, Any], place: str) -> Any:
        """Return an integer, or a multiple of `multipleOf`."""
        step = schema.get("multipleOf", 1)
        first, last = None, None
        if "exclusiveMinimum" in schema:
            first = math.floor(schema["exclusiveMinimum"] / step) + 1
        if "minimum" in schema:
            first = math.ceil(schema["minimum"] / step)
        if "exclusiveMaximum" in schema:
            last = math.ceil(schema["exclusiveMaximum"] / step) - 1
        if "maximum" in schema:
            last = math.floor(schema["maximum"] / step)
        if first is None:
            first = 0 if last is None else last - 10
        if last is None:
            last = first + 10
        if last < first:
            raise SchemaError(f"no integer between {first * step} and {last * step} at {place}")
        return (first + int(self._share(place) * (last - first + 1))) * step

    def _any_of(self, options: list[Any], place: str, depth: int) -> Any:
        nulls = [option for option in options if option == {"type": "null"}]
        others = [option for option in options if option != {"type": "null"}]
        first = int(self._share(place) * len(others))
        others = others[first:] + others[:first]
        error = SchemaError(f"nothing fits at {place}")
        for option in others + nulls if depth < _OPTIONAL_DEPTH else nulls + others:
            try:
                return self.value(option, place, depth + 1)
            except SchemaError as failure:
                error = failure
        raise error

    def _merged(self, schema: dict[str, Any]) -> dict[str, Any]:
        merged = {name: value for name, value in schema.items() if name != "allOf"}
        for part in schema["allOf"]:
            resolved = self._resolve(part["$ref"]) if "$ref" in part else part
            properties = {**merged.get("properties", {}), **resolved.get("properties", {})}
            required = [*merged.get("required", []), *resolved.get("required", [])]
            merged = {**merged, **resolved}
            if properties:
                merged |= {"properties": properties, "required": required}
        return merged

    def _resolve(self, ref: str) -> Any:
        node = self._root
        for part in ref.removeprefix("#").split("/")[1:]:
            node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
        if node is None or not ref.startswith("#"):
            raise SchemaError(f"nothing at {ref}")
        return node

    def _one_of(self, options: list[Any], place: str) -> Any:
        if not options:
            raise SchemaError(f"nothing to choose from at {place}")
        return options[int(self._share(place) * len(options))]

    def _text(self, place: str) -> str:
        return f"{self._key} {place}"

    def _share(self, place: str) -> float:
        return uniform(0, self._key, place)
