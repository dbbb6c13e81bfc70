"""
One run of a job's partitions through an engine: shown while it goes on, stopped by too many failures or by a signal.

Knows the order of things within a run; what comes before and after it is `run`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.counters import Counters, sum_counters
from nemo_llm_stage.dataset.ledger import Entry, LedgerWriter, take_back
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.writing import writing_to
from nemo_llm_stage.job.prepare import Job
from nemo_llm_stage.report.progress.progress import Progress
from nemo_llm_stage.report.progress.view import JobTitle, View
from nemo_llm_stage.serving import StartedServers
from nemo_llm_stage.worker.control.keeper import RunKeeper
from nemo_llm_stage.worker.control.standing import Pace, Standing
from nemo_llm_stage.worker.engine import Engine, RunStatus
from nemo_llm_stage.worker.in_process import LocalEngine
from nemo_llm_stage.worker.interrupts import Interrupts, RunInterrupted
from nemo_llm_stage.worker.samples import words_of
from nemo_llm_stage.worker.spec import WorkerSpec, spec_of
from nemo_llm_stage.worker.task import PartitionReport


class WatchedRun:
    """
    Runs a job's pending partitions.

    Args:
        job: Ready to run.
        shown: Told how the run stands.
        keeper: Told likewise, for those who look from outside; brings orders and limits.
        servers: Those that the job starts.
    """

    def __init__(self, job: Job, shown: Progress, keeper: RunKeeper, servers: StartedServers) -> None:
        self._job = job
        self._shown = shown
        self._keeper = keeper
        self._servers = servers
        self._done = Counters()
        self._run = Counters()
        self._status = RunStatus()
        self._num_committed = 0
        self._awaits_row = True
        self._interrupts = Interrupts(job.settings.grace_period, servers.put_into(keeper.control, keeper.control.note))

    @property
    def num_rows(self) -> int:
        """Rows of the whole job."""
        return self._job.plan.num_rows

    @property
    def before(self) -> Counters:
        """What earlier runs have committed."""
        return self._job.before

    @property
    def partitions(self) -> Sequence[Partition]:
        """To run."""
        return self._job.pending

    @property
    def spec(self) -> WorkerSpec:
        """What makes the workers."""
        return spec_of(self._job)

    def run(self) -> Counters:
        """
        Run the partitions and return what that counts.

        Raises:
            RunInterrupted: A signal came before all of them were committed.
            RunStoppedError: An order or a limit ended it before.
            RunError: The run broke; also what the workers raise.
        """
        self._shown.begin(self._title(), self.before)
        for notice in self._job.notices:
            self._shown.note(notice)
        partitions = self.partitions
        with self._interrupts as interrupts, self._ledger() as ledger:
            for report in _engine(self._job.settings).run(self.spec, partitions, self._monitor, interrupts):
                self._num_committed += 1
                ledger.add(self._entries(report))
                self._shown.note_commit(report)
                self._done.add(self._count(report))
                if self._keeper.control.failure_limit.is_over(self._done):  # the status ends with what ended the run
                    self._keeper.update(self._last_standing())
                self._keeper.control.failure_limit.check(self._done)
        if self._num_committed < len(partitions):
            if interrupts.signum is not None:
                raise RunInterrupted(f"stopped: {self._how_far()}", interrupts.signum)
            self._keeper.control.raise_end(self._how_far())
        last = self._last_standing()
        self._keeper.update(last)
        self._shown.update(RunStatus(stage=last.stage), self._done)
        return self._done

    @property
    def _replaced(self) -> Collection[str]:
        """Names of the committed files that the run may replace."""
        return ()

    def _ledger(self) -> LedgerWriter:
        """Open the ledger: it gets what the files alone have told, and tells nothing of those to be replaced."""
        state = self._job.output.state
        with writing_to(self._job.output.url):
            take_back(state, self._replaced)
            ledger = LedgerWriter(state)
        ledger.add([entry for entry in self._job.account.new_entries if entry.name not in self._replaced])
        return ledger

    def _entries(self, report: PartitionReport) -> list[Entry]:
        """Return the entry of a file that was committed in this run; none where another worker's stands."""
        return [] if report.stat is None else [Entry(report.name, self._job.id, report.stat, report.counters)]

    def _last_standing(self) -> Standing:
        """Return how the run stands with what is committed, and what its servers did."""
        stage = replace(self._status.stage, num_in_flight=0, num_retrying=0, outage=None)
        return Standing("running", sum_counters([self.before, self._done]), stage, moves=self._status.moves)

    def _count(self, report: PartitionReport) -> Counters:
        """Return what the run has done for a partition that is committed now."""
        return report.counters if report.is_first else self._job.output.read_counters(report.name)

    def _monitor(self, status: RunStatus) -> None:
        self._interrupts.check()
        self._servers.look(self._job.stage)
        self._status = status
        self._run = sum_counters([self._done, status.open])
        control = self._keeper.control
        shown = replace(status, phase=control.phase) if status.phase == "running" else status
        view = self._shown.update(shown, self._run, self._interrupts.seconds_left, control.newest_rows())
        is_start = status.num_workers_up < status.num_workers
        self._keeper.update(Standing(status.phase, view.counters, status.stage, _pace_of(view), is_start, status.moves))
        first = next((row for row in view.rows if row["values"]), None) if self._awaits_row else None
        if first is not None:
            self._awaits_row = False
            self._shown.remark(_first_row_words(first, view.elapsed_s))
        control.check(self._run)

    def _how_far(self) -> str:
        num_committed, more = self._done.num_rows, self._run.since(self._done)
        num_kept = more.num_rows - more.num_failed - more.num_skipped
        kept = f", {num_kept:,} more rows are answered and kept" if num_kept > 0 else ""
        return (
            f"{self.before.num_rows + num_committed:,} of {self.num_rows:,} rows are committed{kept};\n"
            "run the same command again to resume."
        )

    def _title(self) -> JobTitle:
        stage, settings = self._job.stage, self._job.settings
        return JobTitle(
            columns=stage.output_columns,
            models=tuple(dict.fromkeys(column.model for column in stage.columns)),
            num_rows=self.num_rows,
            is_exact=self._job.plan.is_exact,
            price_input=settings.price_input,
            price_output=settings.price_output,
        )


def _first_row_words(row: Mapping[str, Any], elapsed_s: float) -> str:
    """Return what the first answered row holds, so that a prompt that goes wrong is seen at once."""
    return f"first row after {elapsed_s:.1f} s   {'   '.join(words_of(row))}"


@dataclass(frozen=True)
class FailedBefore:
    """
    The failed rows that a retry sends again.

    Attributes:
        partitions: That have such rows.
        kinds: Kinds of failure to retry; empty for all.
        counters: What each partition's file counted before, by the file's name.
    """

    partitions: Sequence[Partition]
    kinds: frozenset[str]
    counters: Mapping[str, Counters]

    @classmethod
    def of(cls, job: Job, partitions: Sequence[Partition], kinds: Collection[str]) -> FailedBefore:
        """Return the failed rows of these kinds, none for all, in committed partitions of `job`."""
        names = map(job.output.name_of, partitions)
        return cls(partitions, frozenset(kinds), {name: job.account.counters_of(name) for name in names})

    @property
    def num_rows(self) -> int:
        """How many they are."""
        return sum(map(self.num_of, self.counters.values()))

    def num_of(self, counters: Counters) -> int:
        """Return how many `counters` has."""
        return sum(num for kind, num in counters.errors.items() if self.has(kind))

    def has(self, kind: str) -> bool:
        """Whether failures of this kind are retried."""
        return not self.kinds or kind in self.kinds


class WatchedRetry(WatchedRun):
    """
    Retries failed rows of a finished job; only these rows are counted.

    Args:
        job: The finished job.
        shown: Told how the run stands.
        keeper: Likewise.
        servers: Likewise.
        failed: What to retry.
    """

    def __init__(
        self, job: Job, shown: Progress, keeper: RunKeeper, servers: StartedServers, failed: FailedBefore
    ) -> None:
        super().__init__(job, shown, keeper, servers)
        self._failed = failed

    @property
    def num_rows(self) -> int:
        """Rows to retry."""
        return self._failed.num_rows

    @property
    def before(self) -> Counters:
        """Nothing: none of the rows is retried yet."""
        return Counters()

    @property
    def partitions(self) -> Sequence[Partition]:
        """To run."""
        return self._failed.partitions

    @property
    def spec(self) -> WorkerSpec:
        """What makes the workers."""
        return replace(spec_of(self._job), retry_kinds=self._failed.kinds)

    @property
    def _replaced(self) -> Collection[str]:
        """Names of the files with rows to retry."""
        return self._failed.counters.keys()

    def _count(self, report: PartitionReport) -> Counters:
        """Return what was done with the file's failed rows; the file itself counts all of its rows."""
        before = self._failed.counters[report.name]
        num_retried = self._failed.num_of(before)
        counters = report.counters.since(before)
        counters.num_rows, counters.num_failed = num_retried, counters.num_failed + num_retried
        counters.errors = {kind: num for kind, num in report.counters.errors.items() if self._failed.has(kind)}
        return counters


def _pace_of(view: View) -> Pace:
    left_s = None if view.left_s is None else sum(view.left_s) / 2
    return Pace(
        rows_per_s=round(view.rows_per_s or 0.0, 3),
        input_tokens_per_s=round(view.input_per_s, 3),
        output_tokens_per_s=round(view.output_per_s, 3),
        eta_s=None if left_s is None else round(left_s, 1),
    )


def _engine(settings: JobSettings) -> Engine:
    if settings.engine == "local":
        return LocalEngine(settings.planned_actors)
    from nemo_llm_stage.cluster.ray_engine import RayEngine

    return RayEngine(
        None if settings.actors == "auto" else settings.actors, settings.num_cpus_per_actor, settings.address
    )
