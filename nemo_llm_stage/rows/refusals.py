"""
Tells a column whose settings are wrong from rows that fail.

Knows errors; knows nothing of requests.
"""

from __future__ import annotations

from nemo_llm_stage.errors import BadRequestError, FatalError, RequestError, RunError

NUM_REFUSED_TO_STOP = 20
"""The run stops when the server has refused this many rows of a column and answered none: the settings are wrong."""

NUM_FATAL_TO_STOP = 3
"""A run that had answers stops at this many fatal errors in a row: a gateway may refuse a single text with a 403."""


class Refusals:
    """What the server has made of one column's requests so far."""

    def __init__(self) -> None:
        self._has_answered = False
        self._num_refused = 0
        self._num_fatal_in_a_row = 0

    def note_answer(self) -> None:
        """Remember that the server answered a row of this column."""
        self._has_answered = True
        self._num_fatal_in_a_row = 0

    def check(self, error: RequestError) -> None:
        """
        Remember a failed row; return where only that row has failed. A shared error counts with the row that sent it.

        Raises:
            FatalError: `error`, where no row can succeed: a wrong key or model before any answer, or again and again.
            RunError: The server refused the first `NUM_REFUSED_TO_STOP` rows and answered none.
        """
        if error.is_shared:
            return
        if isinstance(error, FatalError):
            self._num_fatal_in_a_row += 1
            if not self._has_answered or self._num_fatal_in_a_row >= NUM_FATAL_TO_STOP:
                raise error
        if isinstance(error, BadRequestError) and not self._has_answered:
            self._num_refused += 1
            if self._num_refused >= NUM_REFUSED_TO_STOP:
                raise RunError(
                    f"the server refused the first {self._num_refused} rows and answered none; the last with: {error}"
                )
