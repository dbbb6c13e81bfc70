"""
Values that may be secrets: a job file says where they are, and never holds them.

Knows which headers and query parameters are harmless; reading the values is the client room's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any, TypeAlias

from pydantic import ValidationInfo

from nemo_llm_stage.client.secret import HARMLESS_HEADERS, HARMLESS_QUERY

IS_RECORD = "is_record"
"""Key of the validation's context: the settings come from an output folder, where an older version wrote them."""

NamedValue: TypeAlias = str | dict[str, str]
"""A text, or ``{env: NAME}`` or ``{file: PATH}`` for where it lies on the worker."""

NAME_IT = "name it: {env: NAME} or {file: PATH}, read where the requests are sent from"


def refuse_secrets(extra_kwargs: Mapping[str, Any], info: ValidationInfo) -> None:
    """
    Check the headers and query parameters that a job file gives to each request.

    Raises:
        ValueError: One may hold a key.
    """
    places = (("extra_headers", "headers", HARMLESS_HEADERS), ("extra_query", "query", HARMLESS_QUERY))
    for place, setting, harmless in places:
        values = extra_kwargs.get(place)
        for name in values if isinstance(values, Mapping) else ():
            if str(name).lower() not in harmless and not is_record(info):
                raise ValueError(
                    f"{place}: {name} may hold a key, which does not belong in a job file; put it into the client's "
                    f"{setting} and {NAME_IT}"
                )


def named_values(values: Any, harmless: frozenset[str], info: ValidationInfo) -> Any:
    """
    Return headers or query parameters as a client takes them.

    Raises:
        ValueError: A value is written out that may be a secret; only `harmless` names may have one.
    """
    if not isinstance(values, Mapping):
        return {} if values is None else values
    for name, value in values.items():
        if not isinstance(value, Mapping) and str(name).lower() not in harmless and not is_record(info):
            raise ValueError(f"{name} may hold a key, which does not belong in a job file; {NAME_IT}")
    return {str(name): named_value(value) for name, value in values.items()}


def named_value(value: Any) -> Any:
    """
    Return a value as text, or as the mapping that names where it is. YAML makes dates and numbers of some texts.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | date):
        return str(value)
    if isinstance(value, Mapping):
        given = {name: item for name, item in value.items() if item is not None}
        if len(given) != 1 or not {*given} <= {"env", "file"}:
            raise ValueError("a value must be a text, {env: NAME} or {file: PATH}")
        return given
    return value


def is_record(info: ValidationInfo) -> bool:
    """Whether the settings come from an output folder, where an older version may have written a literal value."""
    return bool(info.context and info.context.get(IS_RECORD))
