"""
Attempts at one partition, of one job after the other, that die and overlap in any order.

No answer that was journaled is lost before its rows are committed, none is handed out twice, and the file that stands
is of the job that owns the folder.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nemo_llm_stage.core import Completion
from nemo_llm_stage.counters import Counters as RowCounters
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.journal import Journal
from nemo_llm_stage.dataset.journal_format import encode_line
from nemo_llm_stage.errors import RunError

NUM_ROWS = 2
MAX_ALIVE = 3
SCHEMA = pa.schema([("text", pa.string()), ("x", pa.string()), ("x_error", pa.string())])
PLACES = (
    "commit.before_publish",
    "commit.after_publish",
    "commit.before_replace",
    "commit.between_replace",
    "retire.before",
    "retire.between",
)
EVENTS = ("nothing", "death", "another commits", "restart", "restart, answers", "restart, commit")
"""At one place of a commit: a death, a commit of the same job, or another job that takes the folder over."""


class Death(BaseException):
    """As good as a kill: nothing after it is done."""


@dataclass
class Attempt:
    """A worker at the partition, for the job `job_id`."""

    job_id: str
    journal: Journal
    answers: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Of its next row."""
        return f"{self.job_id} {len(self.answers)}"


class JournalMachine(RuleBasedStateMachine):
    """Knows which answers are on the disk: `journaled` counts them by their text, which tells the job and the row."""

    @initialize(output_format=st.sampled_from(["parquet", "jsonl"]))
    def begin(self, output_format: str) -> None:
        logging.disable(logging.WARNING)
        self.folder = Path(tempfile.mkdtemp())
        self.output = OutputFolder(str(self.folder / "out"), output_format)
        self.output.check_writable()
        self.name = f"part-00000000.{output_format}"
        self.numbers = itertools.count()
        self.job_id = "job-0"
        self.output.write_job(self.record())
        self.alive: list[Attempt] = []
        self.journaled: Counter[str] = Counter()
        self.is_committed = False

    def record(self) -> dict[str, object]:
        return {"id": self.job_id, "stage": {"output_column": "x"}, "partitions": []}

    def open_journal(self) -> Journal:
        return Journal(self.output.journal_folder(self.name), flush_interval_s=1.0)

    @precondition(lambda self: len(self.alive) < MAX_ALIVE)
    @rule(num_rows=st.sampled_from([NUM_ROWS, NUM_ROWS, 0]))
    def start(self, num_rows: int) -> None:
        """A worker of the job that owns the folder begins, and answers the first rows."""
        attempt = Attempt(self.job_id, self.open_journal())
        self.alive.append(attempt)
        self.answer_next(attempt, num_rows)

    @precondition(lambda self: any(len(attempt.answers) < NUM_ROWS for attempt in self.alive))
    @rule(data=st.data(), num_rows=st.integers(1, NUM_ROWS))
    def answer_rows(self, data: st.DataObject, num_rows: int) -> None:
        """From the journal, or anew."""
        busy = [attempt for attempt in self.alive if len(attempt.answers) < NUM_ROWS]
        attempt = data.draw(st.sampled_from(busy))
        self.answer_next(attempt, num_rows)

    def answer_next(self, attempt: Attempt, num_rows: int) -> None:
        for _ in range(min(num_rows, NUM_ROWS - len(attempt.answers))):
            completion = attempt.journal.get(attempt.key)
            if completion is None:
                completion = Completion(texts=(f"{attempt.key} answer {next(self.numbers)}",))
                attempt.journal.put(attempt.key, completion)
                self.journaled[completion.texts[0]] += 1
            assert completion.texts[0].startswith(f"{attempt.key} ")
            attempt.answers.append(completion.texts[0])

    @precondition(lambda self: len(self.alive) == MAX_ALIVE)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """Anywhere in the middle of a line, or between two."""
        attempt = data.draw(st.sampled_from(self.alive))
        self.alive.remove(attempt)
        line = encode_line("torn", Completion(texts=("torn",)))
        path = Path(self.output.journal_folder(self.name).path(f"{attempt.journal.attempt}.jsonl"))
        attempt.journal.close()
        if path.exists():
            with path.open("ab") as file:
                file.write(line[: data.draw(st.integers(0, len(line) - 2))])

    @precondition(lambda self: len(self.alive) == MAX_ALIVE)
    @rule()
    def restart(self) -> None:
        """Another job takes the folder over; workers of the one before sleep on."""
        self.job_id = f"job-{next(self.numbers)}"
        self.output.replace_job(self.record())
        self.is_committed = False

    @precondition(lambda self: any(len(attempt.answers) == NUM_ROWS for attempt in self.alive))
    @rule(data=st.data(), place=st.sampled_from(PLACES), event=st.sampled_from(EVENTS))
    def commit(self, data: st.DataObject, place: str, event: str) -> None:
        """And put the journal away; at one place in between something happens."""
        ready = [attempt for attempt in self.alive if len(attempt.answers) == NUM_ROWS]
        attempt = data.draw(st.sampled_from(ready))
        others = [other for other in ready if other is not attempt]
        self.alive.remove(attempt)

        def happen() -> None:
            if event == "death":
                raise Death
            if event == "another commits" and others:
                self.alive.remove(others[0])
                self.finish(others[0])
            if event.startswith("restart"):
                self.restart()
            if event in ("restart, answers", "restart, commit"):
                self.start(num_rows=NUM_ROWS)
            if event == "restart, commit":
                self.finish(self.alive.pop())

        failpoints.listen(_once(place, happen))
        try:
            self.finish(attempt)
        except Death:
            pass
        finally:
            failpoints.listen(None)
        slept_before_replacing = place == "commit.before_replace" and attempt.job_id != self.job_id
        if self.is_committed and slept_before_replacing and not self.output.has(self.name, self.job_id):
            self.is_committed = False  # its file is gone, so that the rows are asked again; the journal was put away
            self.journaled.clear()

    def finish(self, attempt: Attempt) -> None:
        """Commit as a worker does."""
        table = pa.table([[*map(str, range(NUM_ROWS))], attempt.answers, [None] * NUM_ROWS], schema=SCHEMA)
        try:
            with self.output.writer(SCHEMA, attempt.job_id) as writer:
                writer.write(table)
                writer.commit(self.name, RowCounters(num_rows=NUM_ROWS))
        except RunError:
            assert attempt.job_id != self.job_id
            attempt.journal.close()
            return
        self.is_committed = self.is_committed or attempt.job_id == self.job_id
        attempt.journal.retire(keep=False)

    @invariant()
    def no_answer_is_lost(self) -> None:
        """Before the job's rows are committed, each of its answers is there for the next worker, once."""
        if not self.is_committed and not self.output.has(self.name, self.job_id):
            journal = self.open_journal()
            found: Counter[str] = Counter()
            for row in range(NUM_ROWS):
                while (completion := journal.get(f"{self.job_id} {row}")) is not None:
                    found[completion.texts[0]] += 1
            assert found == Counter({text: num for text, num in self.journaled.items() if self.is_own(text)})

    @invariant()
    def the_file_is_of_the_job_that_owns_the_folder(self) -> None:
        """From its commit on: whole, each row once, each with an answer of its own."""
        if self.is_committed:
            rows = list(self.output.rows(self.name))
            assert [row["text"] for row in rows] == [*map(str, range(NUM_ROWS))]
            assert all(self.is_own(row["x"]) for row in rows)
            assert self.output.has(self.name, self.job_id)

    def is_own(self, text: str) -> bool:
        return text.startswith(f"{self.job_id} ")

    def teardown(self) -> None:
        failpoints.listen(None)
        logging.disable(logging.NOTSET)
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


def _once(place: str, happen: Callable[[], None]) -> failpoints.Hook:
    is_over = False

    def hook(name: str) -> None:
        nonlocal is_over
        if name == place and not is_over:
            is_over = True
            happen()

    return hook


@pytest.mark.parametrize("max_examples", [15, pytest.param(120, marks=pytest.mark.slow)])
def test_no_answer_is_lost_or_handed_out_twice(max_examples: int) -> None:
    """Whatever dies, and whatever overlaps."""
    limits = settings(
        max_examples=max_examples, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(JournalMachine, settings=limits)
