"""What a user may hand over as an output, and which `Output` it means."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_origin

import pyarrow as pa

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.output.base import FunctionOutput, Output, TextOutput
from nemo_llm_stage.output.choices import ChoiceOutput
from nemo_llm_stage.output.json_output import JsonOutput
from nemo_llm_stage.output.regex import RegexOutput

OutputLike = Output | Callable[[str], Any] | type | dict[str, Any] | list[str] | tuple[str, ...] | re.Pattern[str]
"""What `output_of` takes beside None."""


def output_of(parser: OutputLike | None, arrow_type: pa.DataType | None = None) -> Output:
    """
    Return the `Output` that `parser` means.

    Args:
        parser: None is the text as it is, a list of texts the choices, a dict a JSON Schema, a class or ``list[…]``
            what pydantic makes of it, a compiled pattern its groups; a function makes the value from the text.
        arrow_type: The type of a function's or a pattern's values; string where not given.

    Raises:
        ConfigError: `parser` is none of these, or `arrow_type` is given where the parser has its own.
    """
    if isinstance(parser, re.Pattern):
        return RegexOutput(parser, arrow_type)
    is_type = isinstance(parser, type) or get_origin(parser) is not None
    if callable(parser) and not is_type:
        return FunctionOutput(parser, arrow_type)
    if arrow_type is not None:
        raise ConfigError("arrow_type belongs to a parser function or pattern; other outputs know their own type.")
    if parser is None or parser is str:
        return TextOutput()
    if isinstance(parser, Output):
        return parser
    if isinstance(parser, list | tuple):
        return ChoiceOutput(parser)
    if is_type or isinstance(parser, dict):
        return JsonOutput(parser)
    raise ConfigError(f"{parser!r:.100} is no output: give choices, a JSON Schema, a model, a pattern or a function.")
