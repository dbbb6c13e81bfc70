"""
A completion becomes one value of a column: the interface, the plain text, and a function of the user's.

Pure. Knows Arrow's types; knows nothing of clients, tables or files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import ConfigError, ParseError
from nemo_llm_stage.identity import describe_callable


class Output(ABC):
    """
    How an answer's text becomes a value. Immutable, can be pickled.

    Attributes:
        arrow_type: The type of one value.
    """

    arrow_type: pa.DataType

    def request_kwargs(self) -> dict[str, Any]:
        """Return the request parameters that ask the server for this form; none where it needs no help."""
        return {}

    @abstractmethod
    def parse(self, text: str, completion: Completion, choice: int) -> Any:
        """
        Return the value, one that `arrow_type` holds.

        Args:
            text: The answer.
            completion: Where it comes from.
            choice: Its index in the completion, from 0.

        Raises:
            ParseError: The answer is not of this form; the message is fit to be sent back to the model.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the value depends on beside the answer, JSON-able; equal for equal outputs."""


class TextOutput(Output):
    """The answer's text as it is."""

    arrow_type = pa.string()

    def parse(self, text: str, completion: Completion, choice: int) -> str:
        """
        Return `text`.

        Raises:
            ParseError: It holds half a surrogate pair, which no Arrow text can.
        """
        _check_encodable(text)
        return text

    def describe(self) -> dict[str, Any]:
        """Return the kind."""
        return {"kind": "text"}


class FunctionOutput(Output):
    """
    What a function of the user's makes of the answer's text.

    Args:
        function: From the text to a value. An exception it raises fails the answer with the exception's words.
        arrow_type: What the column holds; a value of another kind fails the answer.

    Raises:
        ConfigError: `arrow_type` is an extension type: reading one may run code.
    """

    def __init__(self, function: Callable[[str], Any], arrow_type: pa.DataType | None = None) -> None:
        self._function = function
        self.arrow_type = pa.string() if arrow_type is None else arrow_type
        if "extension<" in str(self.arrow_type):
            raise ConfigError(f"arrow_type is {self.arrow_type}, an extension type; give its storage type.")

    def parse(self, text: str, completion: Completion, choice: int) -> Any:
        """
        Return ``function(text)``.

        Raises:
            ParseError: The function raised, or its value is not of `arrow_type`.
        """
        try:
            value = self._function(text)
        except ParseError:
            raise
        except Exception as error:
            raise ParseError(f"{type(error).__name__}: {error}") from error
        if type(value) is str and self.arrow_type == pa.string():
            _check_encodable(value)
            return value
        try:
            return pa.scalar(value, type=self.arrow_type).as_py()
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise ParseError(f"the parser returned {value!r:.200}, which is not {self.arrow_type}: {error}") from error

    def describe(self) -> dict[str, Any]:
        """Return the kind, the function's name and source hash, and the type."""
        return {"kind": "function", "arrow_type": str(self.arrow_type)} | describe_callable(self._function)


def _check_encodable(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ParseError(f"the text is not valid Unicode: {error.reason} at character {error.start}.") from None
