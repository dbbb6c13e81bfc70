"""What a user may hand over as an output, and which `Output` it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.output.base import FunctionOutput, Output, TextOutput


def output_of(parser: Output | Callable[[str], Any] | None, arrow_type: pa.DataType | None = None) -> Output:
    """
    Return the `Output` that `parser` means.

    Args:
        parser: None is the text as it is; a function of the text makes the value.
        arrow_type: The type of a function's values; string where not given.

    Raises:
        ConfigError: `parser` is none of these, or `arrow_type` is given where the parser has its own.
    """
    if callable(parser) and not isinstance(parser, type):
        return FunctionOutput(parser, arrow_type)
    if arrow_type is not None:
        raise ConfigError("arrow_type belongs to a parser function; other outputs know their own type.")
    if parser is None:
        return TextOutput()
    if isinstance(parser, Output):
        return parser
    raise ConfigError(f"{parser!r:.100} is no output: give an Output or a function of the answer's text.")
