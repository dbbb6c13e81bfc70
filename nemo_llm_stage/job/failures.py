"""
The failed rows of a job's committed files, grouped by kind and by what the server said.

Reads the error columns of files that have failed rows; knows nothing of runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nemo_llm_stage.dataset.account import read_account
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.recount import output_columns_of
from nemo_llm_stage.job.record import read_record
from nemo_llm_stage.text import one_line

MAX_GROUPS = 30
MAX_EXAMPLES = 3
MAX_ROWS = 100_000
"""Failed rows that are looked at."""

_VARYING = re.compile(r"[0-9a-fA-F-]{8,}|[0-9]+|'[^']*'|\"[^\"]*\"")
"""Request ids, numbers and quoted words within an error message."""


@dataclass(slots=True)
class FailureGroup:
    """
    Failures that differ only in ids, numbers and quoted words.

    Attributes:
        kind: The word before the colon.
        words: The message of the first.
        num: How many.
        examples: Where the first ones are: file, row and column.
    """

    kind: str
    words: str
    num: int
    examples: list[str]


def group_failures(url: str) -> list[FailureGroup]:
    """
    Return the failures in the committed files of the job in `url`, most frequent first; skipped rows are none.

    Raises:
        OutputConflictError: No job has written there.
        RunError: A file is damaged.
    """
    record = read_record(url)
    output = OutputFolder(url, record["output_format"])
    groups: dict[str, FailureGroup] = {}
    account = read_account(output, record["id"])
    account.raise_damage()
    failed = sorted(name for name, entry in account.entries.items() if entry.counters.num_failed)
    for num, (place, error) in enumerate(_errors(output, failed, list(output_columns_of(record)))):
        if num == MAX_ROWS:
            break
        kind, _, words = error.partition(": ")
        group = groups.setdefault(f"{kind} {_VARYING.sub('#', words)}", FailureGroup(kind, one_line(words, 300), 0, []))
        group.num += 1
        if len(group.examples) < MAX_EXAMPLES:
            group.examples.append(place)
    return sorted(groups.values(), key=lambda group: -group.num)[:MAX_GROUPS]


def _errors(output: OutputFolder, names: Sequence[str], columns: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each error in these files."""
    for name in names:
        for number, row in enumerate(output.rows(name), 1):
            for column in columns:
                error = row.get(f"{column}_error")
                if error is not None and not error.startswith("skipped:"):
                    yield f"{name}, row {number}, column {column}", error
