"""
Jobs that are killed again and again until they are done, and the check that nothing was lost, doubled or mixed up.

Knows the in-process engine, by the nursery; Ray is `bench_crash`'s.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from _folder_store import register
from _nursery import CrashJob, Nursery

from nemo_llm_stage.dataset.account import read_account
from nemo_llm_stage.job.record import open_output, read_record
from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import Fault, SimulatedServerProcess, expected_answer

NUM_ROWS = 60
TEAR_RATE = 0.2
"""Share of the deaths after which a journal is damaged too."""

BAD = "bad"
"""Rows with this word in them are the ones that a server is told to refuse."""

_OFTEN = ("time", "journal.before_write", "journal.after_write")
_ALWAYS = (*_OFTEN, *_OFTEN, "read.before", "write.before", "retire.before")
_COMMIT = ("commit.before_publish", "commit.after_publish")
_REPLACE = ("commit.before_replace", "commit.between_replace", "commit.after_replace")
_RETIRE = ("retire.between", "retire.after", "finish.before", "finish.after")
_LEDGER = ("ledger.before_write", "ledger.after_write")
_REWRITE = ("ledger.before_rewrite", "ledger.between_rewrite", "ledger.after_rewrite")
PLACES = {
    "run": (*_ALWAYS, "record.before", "record.after", *_COMMIT, *_RETIRE, *_LEDGER, *_REWRITE),
    "retry": (*_ALWAYS, *_REPLACE, *_RETIRE[:2], *_LEDGER, *_REWRITE),
}
PLACES["restart"] = ("restart.before", "restart.between", "restart.after", *PLACES["run"])
"""Where an attempt can die, by action: at a failpoint, or after a time."""

PLACES_OF_PIECES = ("piece.before", "piece.after") * 2
"""Where it can die too if it has several workers."""

PLACES_OF_STREAMS = (
    *("stream.before_put", "stream.after_put") * 2,
    *("stream.before_remove", "stream.after_remove", "stream.before_merge", "stream.after_merge"),
)
"""Where it can die too if it writes to an object store."""


@dataclass
class Tally:
    """
    What crashes did.

    Attributes:
        num_rows: Rows in, over all jobs.
        num_lost: Rows that did not come out.
        num_doubled: Rows that came out more than once.
        num_wrong: Rows with another row's answer, or none, or out of order.
        num_torn: Partial files seen in the output folder.
        num_crashes: Deaths.
        num_extra: Requests that had been sent before.
        num_repaid: Of these, the ones that had been answered in full before.
        num_in_flight: Requests in flight at the deaths, summed; the bound for `num_extra`.
        num_second_sends: Rows that were sent a second time, as far as committed files count them.
        places: Deaths by failpoint.
        problems: What was off, in words.
    """

    num_rows: int = 0
    num_lost: int = 0
    num_doubled: int = 0
    num_wrong: int = 0
    num_torn: int = 0
    num_crashes: int = 0
    num_extra: int = 0
    num_repaid: int = 0
    num_in_flight: int = 0
    num_second_sends: int = 0
    places: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Nothing lost, doubled, wrong or torn, and no more asked again than was in flight."""
        bad = self.num_lost or self.num_doubled or self.num_wrong or self.num_torn or self.problems
        return not bad and self.num_extra <= self.num_in_flight


def crash_a_job(
    nursery: Nursery,
    server: SimulatedServerProcess,
    folder: Path,
    rng: random.Random,
    tally: Tally,
    *,
    max_crashes: int = 40,
    **settings: Any,
) -> None:
    """
    Run a job of 60 rows, killed again and again, and check it in the end.

    Args:
        nursery: Forks the attempts.
        server: Answers; its counts and faults are set.
        folder: For the job, not yet there.
        rng: Chooses.
        tally: Gets what is seen.
        max_crashes: Then it is let live.
        settings: Of the `CrashJob`. For a restart or a retry, the run before it is not killed.
    """
    register()
    job = CrashJob(server.base_url, str(folder), **settings)
    write_input(folder, NUM_ROWS, job.num_documents)
    if job.action != "run":
        server.faults = [Fault(400, contains=BAD)] if job.action == "retry" else []
        before = replace(job, action="run", prompt="Ask" if job.action == "restart" else job.prompt)
        if nursery.attempt(before)["code"]:
            raise RuntimeError(f"{before} failed")
        server.faults = []
    server.reset()
    run_until_done(nursery, job, rng, tally, max_crashes=max_crashes, tear_rate=TEAR_RATE)
    check_output(job, NUM_ROWS, tally)
    stats = server.stats
    tally.num_extra += stats.num_duplicates
    tally.num_repaid += stats.num_repaid


def run_until_done(
    nursery: Nursery,
    job: CrashJob,
    rng: random.Random,
    tally: Tally,
    *,
    places: Sequence[str] = (),
    max_crashes: int = 40,
    tear_rate: float = 0.0,
) -> None:
    """
    Kill `job` at one place after the other, and check what it leaves each time, until an attempt lives.

    Args:
        nursery: Forks the attempts.
        job: What to run.
        rng: Chooses.
        tally: Gets what is seen.
        places: Out of `PLACES`; all of the job's action if not given.
        max_crashes: Then it is let live.
        tear_rate: Share of the deaths after which a journal is damaged too.

    Raises:
        RuntimeError: An attempt ended by itself with an error; it is on stderr.
    """
    num_crashes = 0
    while True:
        pieces = PLACES_OF_PIECES if job.actors > 1 else ()
        usual = (*PLACES[job.action], *pieces, *(PLACES_OF_STREAMS if job.is_bucket else ()))
        place = _choose_place(job, rng, places or usual) if num_crashes < max_crashes else ""
        nth = rng.uniform(0.01, 0.2) if place == "time" else rng.randint(1, 8 if place.startswith("journal") else 1)
        ended = nursery.attempt(job, place, nth)
        if ended["code"] == 0:
            return
        if ended["code"] != -9:
            raise RuntimeError(f"an attempt at {job} ended with {ended['code']}")
        num_crashes += 1
        tally.num_crashes += 1
        tally.num_in_flight += ended["in_flight"]
        tally.places[place] += 1
        if rng.random() < tear_rate:
            tally.num_in_flight += tear_a_journal(job, rng)
            tear_the_ledger(job, rng)
        try:
            read_output(job)
        except Exception as error:  # noqa: BLE001 - whatever a reader stumbles over is what is looked for
            tally.num_torn += 1
            tally.problems.append(f"after a death at {place}: {type(error).__name__}: {error}")


def _choose_place(job: CrashJob, rng: random.Random, places: Sequence[str]) -> str:
    """Return a place that an attempt has a chance to come to: a record is written only once."""
    is_begun = (Path(job.folder) / ".out.nemo_llm_stage" / "job.json").exists()
    return rng.choice([place for place in places if not (is_begun and place.startswith("record."))])


def tear_a_journal(job: CrashJob, rng: random.Random) -> int:
    """Cut a journal's end off or spoil a byte of it, as a power loss may; return how many answers that can cost."""
    journals = Path(job.folder).glob(".out.nemo_llm_stage/journal/*/*.jsonl")
    files = sorted(path for path in journals if path.stat().st_size)
    if not files:
        return 0
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        path.write_bytes(data[: -rng.randint(1, 40)])
        return 1
    data[rng.randrange(len(data))] ^= rng.randint(1, 255)
    path.write_bytes(data)
    return 2  # a newline spoiled joins two lines


def tear_the_ledger(job: CrashJob, rng: random.Random) -> None:
    """Spoil a byte of the ledger, as a power loss may: that costs no answer."""
    for path in sorted(Path(job.folder).glob(".out.nemo_llm_stage/ledger/*.jsonl")):
        data = bytearray(path.read_bytes())
        if data:
            data[rng.randrange(len(data))] ^= rng.randint(1, 255)
            path.write_bytes(data)


def write_input(folder: Path, num_rows: int, num_documents: int = 0) -> None:
    """Write the rows of a job; every third is `BAD`. Their texts begin with one of so many documents, in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = [f"Document {number} says so. " * 8 for number in range(num_documents)] or [""]
    texts = [
        f"{documents[number % len(documents)]}{'good' if number % 3 else BAD} row {number} of {folder.name}"
        for number in range(num_rows)
    ]
    pq.write_table(pa.table({"id": range(num_rows), "text": texts}), folder / "in.parquet")


def read_output(job: CrashJob) -> list[dict[str, Any]]:
    """Return the rows of all committed files in the order of their names, as any reader of the folder does."""
    rows: list[dict[str, Any]] = []
    for path in sorted((Path(job.folder) / "out").glob("part-*")):
        if job.output_format == "jsonl":
            rows.extend(json.loads(line) for line in path.read_text().splitlines())
        else:
            rows.extend(pq.read_table(path).to_pylist())
    return rows


def check_output(job: CrashJob, num_rows: int, tally: Tally) -> None:
    """Compare what came out with what went in and with what the server answers to it."""
    rows = read_output(job)
    times = Counter(row["id"] for row in rows)
    tally.num_rows += num_rows
    tally.num_lost += sum(number not in times for number in range(num_rows))
    tally.num_doubled += sum(num - 1 for num in times.values())
    for place, row in enumerate(rows):
        answer = expected_answer([{"role": "user", "content": f"{job.prompt} {row['text']}"}])
        is_wrong = row["x"] != answer or row["x_error"] is not None or row["id"] != place
        if job.num_columns > 1:
            is_wrong |= row["y"] != expected_answer([{"role": "user", "content": f"Then {row['x']}"}])
        tally.num_wrong += is_wrong
    verification = verify_output(job.output)
    counters = verification.counters
    tally.num_second_sends += counters.num_second_sends
    if not verification.is_complete or (counters.num_rows, counters.num_failed) != (num_rows, 0):
        tally.problems.append(f"the account is off: {verification}")
    output, _ = open_output(job.output)
    account = read_account(output, read_record(output.url)["id"])
    if account.opened or account.counters() != counters:
        tally.problems.append(f"the ledger is off: {account}")
    state = Path(job.folder) / ".out.nemo_llm_stage"
    left = [path for name in ("journal", "streams", "tmp") for path in (state / name).rglob("*")]
    if job.is_bucket:  # which has no folders
        left = [path for path in left if path.is_file()]
    if left:
        tally.problems.append(f"left behind: {list(map(str, left))}")
    if not (Path(job.folder) / "out" / ".nemo_llm_stage" / "_SUCCESS").exists():
        tally.problems.append("no _SUCCESS")
