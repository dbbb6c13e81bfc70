"""
Rows that are kept and rows that are dropped, by an expression over the row's columns and its answers.

Pure. Knows values and expressions; knows nothing of requests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from nemo_llm_stage.core import Outcome
from nemo_llm_stage.errors import ConfigError, RowError, SkippedError
from nemo_llm_stage.prompt import Expression

logger = logging.getLogger(__name__)


class KeepIf:
    """
    An expression that decides whether a row is kept. Can be pickled.

    Only a row for which the expression is false is dropped. A row is kept where the expression has no value: a column
    that it uses is null, failed or was skipped, or the expression fails on the row's values.

    Args:
        source: Jinja2, e.g. ``quality >= 3 and lang == 'en'``.

    Attributes:
        source: The expression as it was given.
        required_columns: The columns and answers that it mentions.

    Raises:
        ConfigError: It is no expression, or uses the row as a whole.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._expression = Expression(source)
        if self._expression.needs_all_columns:
            raise ConfigError(f"keep_if {source!r} uses the row as a whole; name the columns, e.g. row['my column'].")
        self.required_columns = self._expression.required_columns
        self._is_warned = False

    def check_types(self, fields: Iterable[pa.Field]) -> None:
        """
        Try the expression on example values of the answers' types, if it uses answers alone.

        Raises:
            ConfigError: The expression does not fit the types, e.g. it uses text as a number.
        """
        types = {field.name: field.type for field in fields}
        if not self.required_columns <= types.keys():
            return
        try:
            self._expression.evaluate({name: _example(types[name]) for name in self.required_columns})
        except SkippedError:
            return
        except RowError as error:
            shown = ", ".join(f"{name} is {types[name]}" for name in sorted(self.required_columns))
            raise ConfigError(f"keep_if {self.source!r} cannot be evaluated: {error} ({shown}).") from error

    def keeps(self, row: Mapping[str, Any], outcome: Outcome, sources: Mapping[str, str]) -> bool:
        """
        Return whether the row is kept.

        Args:
            row: The values that the expression may use.
            outcome: The row's results.
            sources: Written column that the expression may use → its output column.
        """
        used = (sources[name] for name in self.required_columns if name in sources)
        if any(outcome[column].error is not None for column in used):
            return True
        try:
            value = self._expression.evaluate(row)
        except SkippedError:
            return True
        except RowError as error:
            if not self._is_warned:
                self._is_warned = True
                logger.warning("keep_if %r cannot be evaluated for a row, which is kept: %s", self.source, error)
            return True
        return value is None or bool(value)


def _example(kind: pa.DataType) -> Any:
    """Return a value of an Arrow type."""
    if pa.types.is_struct(kind):
        return {field.name: _example(field.type) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_example(kind.value_type)]
    if pa.types.is_boolean(kind):
        return True
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return 1
    if pa.types.is_timestamp(kind):
        return datetime(2000, 1, 1, tzinfo=UTC if kind.tz else None)
    if pa.types.is_date(kind):
        return datetime(2000, 1, 1, tzinfo=UTC).date()
    return "1"
