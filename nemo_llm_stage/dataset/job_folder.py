"""
A folder that one job owns: its record, where its state is, and whether the output is complete.

`layout` says where the state is. Knows the job's record; knows nothing of partitions or rows.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from nemo_llm_stage.dataset.failpoints import reach
from nemo_llm_stage.dataset.file_stat import FileStat
from nemo_llm_stage.dataset.layout import MARKS, Layout, find_layout, writable_layout
from nemo_llm_stage.dataset.owner import JOB, Owner, damaged_record, decode_record, encode_record
from nemo_llm_stage.dataset.plan_file import PREFIX as PLAN_PREFIX
from nemo_llm_stage.dataset.plan_file import join_plan, plan_files_of, split_plan
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.dataset.summary import TMP
from nemo_llm_stage.dataset.writing import writing_to
from nemo_llm_stage.errors import OutputConflictError

PREFIX = "part-"
"""Names of committed files begin with it."""


class JobFolder:
    """
    A folder for the output of one job.

    Args:
        url: Path or fsspec URL of the folder.
        format: ``parquet`` or ``jsonl``.
        layout: Where the state is; None looks for it.

    Attributes:
        folder: Has the committed files.
        format: As given.
    """

    def __init__(self, url: str, format: str = "parquet", layout: Layout | None = None) -> None:  # noqa: A002 - the word users write in a job file
        self.folder = Folder(url)
        self.format = format
        self._layout = layout
        self._state: Folder | None = None
        self._owner: Owner | None = None

    @property
    def layout(self) -> Layout:
        """
        Where the job's state is.

        Raises:
            OutputConflictError: The place cannot be read.
        """
        if self._layout is None:
            try:
                self._layout = find_layout(self.folder)
            except OSError as error:
                raise OutputConflictError(f"cannot read the output folder {self.url!r}: {error}.") from error
        return self._layout

    @property
    def state(self) -> Folder:
        """The folder with the job's state."""
        if self._state is None:
            self._state = Folder(self.layout.state_url)
        return self._state

    @property
    def owner(self) -> Owner:
        """Tells which job owns the folder."""
        if self._owner is None:
            self._owner = Owner(self.state)
        return self._owner

    @property
    def url(self) -> str:
        """Path or URL of the folder."""
        return self.folder.url

    def check_writable(self, *, has_record: bool = False) -> None:
        """
        Refuse a folder that cannot be written, before anything is asked.

        Args:
            has_record: Whether the record of a job was read from it.

        Raises:
            OutputConflictError: It cannot be written, or holds files that no job of this package wrote.
        """
        try:
            if not has_record and self.folder.fs.isfile(self.folder.path()):
                raise OutputConflictError(f"the output folder {self.url!r} is a file; choose a folder.")
            names = set() if has_record or self.state.has(JOB) else self.folder.names()
            if names:
                raise OutputConflictError(
                    f"the output folder {self.url!r} already holds {min(names)!r}, which no job of this package "
                    "wrote; choose an empty or a new folder."
                )
            self._layout, self._state, self._owner = writable_layout(self.folder, self.layout), None, None
        except OSError as error:
            raise OutputConflictError(f"cannot write the output folder {self.url!r}: {error}.") from error

    def read_job(self) -> dict[str, Any] | None:
        """
        Return what the job that owns this folder wrote of itself, or None for a new folder.

        Raises:
            OutputConflictError: The record is broken, or cannot be read.
        """
        try:
            data = self.state.read(JOB)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise OutputConflictError(f"cannot read the output folder {self.url!r}: {error}.") from error
        try:
            return join_plan(decode_record(data), self.state.read)
        except OSError as error:
            raise OutputConflictError(f"cannot read the output folder {self.url!r}: {error}.") from error
        except (ValueError, KeyError, pa.ArrowException) as error:
            raise damaged_record(self.state.url, error) from error

    def write_job(self, job: dict[str, Any]) -> bool:
        """Claim the folder for `job`; whether this call was the first to."""
        reach("record.before")
        with writing_to(self.url):
            self._mark(job)
            is_first = self.state.publish_bytes(self._encode(job), JOB, scratch_sub=TMP)
        reach("record.after")
        return is_first

    def replace_record(self, job: dict[str, Any]) -> None:
        """Put the record of `job` in the place of the one before."""
        with writing_to(self.url):
            marks = self.folder.names(MARKS) if self.layout.has_marks else set()
            self._mark(job)
            before = {name for name in self.state.names() if name.startswith(PLAN_PREFIX)}
            data = self._encode(job)
            self.state.replace_bytes(data, JOB, scratch_sub=TMP)
            self.state.remove_all(before - plan_files_of(decode_record(data)))
            for name in marks - {_mark_of(job)}:
                self.folder.remove(f"{MARKS}/{name}")

    def _encode(self, job: dict[str, Any]) -> bytes:
        """Return the record to write. A large plan is written beside it first."""
        record, files = split_plan(job)
        for name, data in files.items():
            self.state.replace_bytes(data, name, scratch_sub=TMP)
        return encode_record(record)

    def _mark(self, job: dict[str, Any]) -> None:
        """Put an empty file with the job's id into the folder: a folder that was removed since has none."""
        if self.layout.has_marks:
            self.folder.make(MARKS)
            self.folder.fs.pipe_file(self.folder.path(f"{MARKS}/{_mark_of(job)}"), b"")

    def is_gone(self, job: dict[str, Any]) -> bool:
        """Whether the folder of `job`, whose state is beside it, was removed."""
        return self.layout.has_marks and not self.folder.exists(f"{MARKS}/{_mark_of(job)}")

    def forget_job(self) -> None:
        """Remove the record of a job whose folder was removed. Its journals and raw answers stay."""
        with writing_to(self.url):
            self.state.remove(JOB)

    def data_files(self) -> set[str]:
        """Return the names of all files that a reader of the folder takes for rows of the job, of any format."""
        return {name for name in self.folder.names() if name.startswith(PREFIX)}

    def data_stats(self) -> dict[str, FileStat]:
        """Return these files with what the listing tells of them."""
        return {name: stat for name, stat in self.folder.stats().items() if name.startswith(PREFIX)}

    def write_success(self, job_id: str) -> None:
        """
        Tell readers that the output of the job `job_id` is complete.

        Raises:
            RunError: Another job has taken the folder over, and its output is not.
        """
        with writing_to(self.url):
            reach("finish.before")
            self.owner.check(job_id)
            self.folder.make(self.layout.success.rpartition("/")[0])
            self.folder.fs.pipe_file(self.folder.path(self.layout.success), b"")
        reach("finish.after")

    def remove_success(self) -> None:
        """Take back `write_success`."""
        self.folder.remove(self.layout.success)

    def is_complete(self) -> bool:
        """Whether `write_success` was called."""
        return self.folder.exists(self.layout.success)


def _mark_of(job: dict[str, Any]) -> str:
    return f"job-{job.get('id')}"
