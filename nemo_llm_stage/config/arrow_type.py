"""
Names of Arrow types, as users write them.

Without pydantic, which a job that is run from Python does not need.
"""

from __future__ import annotations

import re

import pyarrow as pa

from nemo_llm_stage.errors import ConfigError


def arrow_type_of(text: str) -> pa.DataType:
    """
    Return the Arrow type that `text` names, e.g. ``int64``, ``double``, ``timestamp[us]`` or ``list<string>``.

    Raises:
        ConfigError: No type has this name.
    """
    items = re.fullmatch(r"\s*list\s*<(.+)>\s*", text)
    if items:
        return pa.list_(arrow_type_of(items[1]))
    try:
        return pa.type_for_alias(text.strip())
    except ValueError:
        raise ConfigError(
            f"there is no Arrow type {text!r}; there are string, int64, double, bool, date32, list<string> and others."
        ) from None
