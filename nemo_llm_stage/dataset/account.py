"""
What the committed files of a job count: by the ledger where it holds for a file, and else by the file itself.

Costs one listing of the folder and a few reads. Knows files and counts; knows nothing of plans.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from nemo_llm_stage.counters import Counters, sum_counters
from nemo_llm_stage.dataset.file_stat import FileStat
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.ledger import Entry, Ledger, read_ledger, rewrite_ledger
from nemo_llm_stage.errors import RunError

_NUM_THREADS = 64


@dataclass(frozen=True)
class Account:
    """
    The committed files of a job.

    Attributes:
        entries: What they count, by name.
        names: Of all files that a reader takes for rows, also those of other jobs.
        damaged: Files that cannot be read → why.
        opened: Names of files that had to be opened: the ledger did not tell of them.
        ledger: As it was read.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    damaged: Mapping[str, RunError] = field(default_factory=dict)
    opened: frozenset[str] = frozenset()
    ledger: Ledger = field(default_factory=lambda: Ledger({}, ()))

    def counters(self) -> Counters:
        """Return what the files count together."""
        return sum_counters(entry.counters for entry in self.entries.values())

    def counters_of(self, name: str) -> Counters:
        """
        Return what one file counts.

        Raises:
            RunError: It is damaged.
            KeyError: There is no such file of the job.
        """
        if name in self.damaged:
            raise self.damaged[name]
        return self.entries[name].counters

    def raise_damage(self) -> None:
        """Raise the RunError of the first file that cannot be read."""
        for name in sorted(self.damaged):
            raise self.damaged[name]

    @property
    def new_entries(self) -> list[Entry]:
        """Of files that had to be opened; the ledger should have them."""
        return [self.entries[name] for name in sorted(self.opened & self.entries.keys())]


def read_account(output: OutputFolder, job_id: str, *, has_predecessor: bool = False) -> Account:
    """
    Return the committed files of a job. Files of an earlier job, by workers that woke up late, are left out.

    Args:
        output: The folder.
        job_id: The job.
        has_predecessor: Whether another job had the folder before. Whose a JSONL file without a summary is cannot be
            told then; it is left out, and made again from the journal.

    Raises:
        OSError: The folder cannot be read.
    """
    with ThreadPoolExecutor(1) as pool:  # in a store, side by side
        reading = pool.submit(_read_ledger, output)
        stats = output.data_stats()
    ledger = reading.result()
    entries = {
        name: entry
        for name, stat in stats.items()
        if (entry := ledger.entries.get(name)) is not None and entry.job_id == job_id and entry.holds_for(stat)
    }
    unknown = sorted(name for name in stats.keys() - entries.keys() if name.endswith(f".{output.format}"))
    damaged: dict[str, RunError] = {}

    def read(name: str) -> Entry | None:
        try:
            return _read_entry(output, name, stats[name], job_id, has_predecessor)
        except RunError as error:
            damaged[name] = error
            return None

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for found in pool.map(read, unknown):
            if found is not None:
                entries[found.name] = found
    return Account(entries, frozenset(stats), damaged, frozenset(unknown), ledger)


def _read_ledger(output: OutputFolder) -> Ledger:
    with contextlib.suppress(OSError):  # else the files tell
        return read_ledger(output.state)
    return Ledger({}, ())


def _read_entry(output: OutputFolder, name: str, stat: FileStat, job_id: str, has_predecessor: bool) -> Entry | None:
    summary = output.read_summary(name)
    if summary is None:
        return None if has_predecessor else Entry(name, job_id, stat, output.read_counters(name))
    return Entry(name, job_id, stat, summary.counters) if summary.job_id == job_id else None


def tidy_ledger(output: OutputFolder, account: Account) -> None:
    """
    Put the ledger into one file, if it is in several or does not tell of all files in `account`.

    Raises:
        OSError: It cannot be written.
    """
    if len(account.ledger.files) > 1 or account.new_entries:
        rewrite_ledger(output.state, account.ledger, account.entries.values())
