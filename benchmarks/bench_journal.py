"""
What does the journal cost a row, and how soon does a job go on whose rows are mostly finished?

The first: CPU of all that the journal adds to a row that is asked and answered: the request's key, the look whether an
earlier run has the answer, the line and its write; and what it takes to read the line back. The least of several
rounds, as other work on the machine only adds.

The second: a job of so many rows, all committed but those of the last file, is run again against a server that answers
at once. Seconds until it sends its first request and until it has checked and ended, and the bytes that it read, beside
those that the input and the output hold.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from _data import write_texts
from _report import make_parser, show

from nemo_llm_stage import AsyncHTTPClient, GenerationConfig, LLMStage, run_job
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.core import Completion, Usage
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.journal import Journal
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.job.prepare import Job, prepare_job
from nemo_llm_stage.rows.query import request_key, terms_of
from nemo_llm_stage.testing import SimulatedServerProcess

COLUMNS = ("what", "figure")
ROUNDS = 7


def journal_costs(folder: Path, num_rows: int, num_words: int) -> dict[str, float]:
    """Return µs of CPU a row: to key, look up and write; and to read back."""
    identity = terms_of("model", GenerationConfig(max_tokens=256)).identity
    prompt, answer = "word " * num_words, "answer " * (num_words // 4)
    requests = [[{"role": "user", "content": f"{number} {prompt}"}] for number in range(num_rows)]
    usage = Usage(num_words, num_words // 4, 0)
    completion = Completion(
        (answer,), ("stop",), (None,), usage, model="model", endpoint="http://localhost:8000/v1", latency_s=1.0
    )
    writes, reads = [], []
    for number in range(ROUNDS):
        place = Folder(str(folder / f"journal-{number}"))
        journal = Journal(place, flush_interval_s=2.0)
        started_s = time.process_time()
        for messages in requests:
            key = request_key(identity, messages)
            if journal.get(key) is None:
                journal.put(key, completion)
        writes.append((time.process_time() - started_s) / num_rows * 1e6)
        journal.close()
        keys = [request_key(identity, messages) for messages in requests]
        started_s = time.process_time()
        again = Journal(place, flush_interval_s=2.0)
        if any(again.get(key) is None for key in keys):
            raise SystemExit("the journal has lost an answer")
        reads.append((time.process_time() - started_s) / num_rows * 1e6)
        again.close()
        shutil.rmtree(place.path())
    return {
        "write_us_per_row": min(writes),
        "write_us_per_row_median": statistics.median(writes),
        "read_us_per_row": min(reads),
    }


def resume(folder: Path, num_rows: int, rows_per_partition: int) -> dict[str, float]:
    """Return what it takes to go on with a job of which only the last file is missing."""
    source = write_texts(folder, num_rows, num_words=200)
    output = folder / "resumed"
    shutil.rmtree(output, ignore_errors=True)
    options: dict[str, Any] = {"rows_per_partition": rows_per_partition}
    with SimulatedServerProcess(max_recorded=0) as server:
        job = prepare_job(_stage(server.base_url), source, output, JobSettings(**options))
        _commit_all_but_the_last(job)
        read_before, began_cpu_s, began_s = _num_bytes_read(), time.process_time(), time.monotonic()
        stage = _stage(server.base_url)
        result = run_job(stage=stage, input=source, output=output, engine="local", progress=False, **options)
        ended_s = time.monotonic()
        first_s = server.stats.first_start_monotonic_s
        num_requests = server.stats.num_requests
    if result.counters.num_rows != num_rows or num_requests != len(job.plan.partitions[-1:]) * rows_per_partition:
        raise SystemExit(f"{result.counters} after {num_requests} requests is not the whole job")
    assert first_s is not None
    return {
        "rows": num_rows,
        "files": result.num_partitions,
        "to_first_request_s": first_s - began_s,
        "whole_s": ended_s - began_s,
        "cpu_s": time.process_time() - began_cpu_s,
        "read_mib": (_num_bytes_read() - read_before) / 2**20,
        "held_mib": sum(path.stat().st_size for path in (source, *output.glob("part-*"))) / 2**20,
    }


def _stage(base_url: str) -> LLMStage:
    client = AsyncHTTPClient(base_url, max_concurrent_requests=64)
    return LLMStage(client=client, model="sim", prompt="Summarize: {{ text }}", output_column="summary")


def _commit_all_but_the_last(job: Job) -> None:
    """Write the files as a run would, without asking anybody."""
    schema = pa.schema([*job.plan.schema, *job.stage.fields])
    for partition in job.plan.partitions[:-1]:
        with job.output.writer(schema, job.id) as writer:
            num_rows = 0
            for table in read_partition(partition, job.plan.schema, rows_per_chunk=10_000):
                num_rows += table.num_rows
                answers = pa.array(["an answer of some words"] * table.num_rows)
                nulls = [pa.nulls(table.num_rows, field.type) for field in job.stage.fields[1:]]
                writer.write(pa.table([*table.columns, answers, *nulls], schema=schema))
            writer.commit(job.output.name_of(partition), Counters(num_rows=num_rows, num_attempts=num_rows))


def _num_bytes_read() -> int:
    """Bytes that this process has read so far, from whatever it had open."""
    words = Path("/proc/self/io").read_text().split()
    return int(words[words.index("rchar:") + 1])


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="of the journal (20000)")
    parser.add_argument("--words", type=int, default=200, help="of each prompt; an answer has a quarter (200)")
    parser.add_argument("--committed", type=int, default=1_000_000, help="rows of the job that goes on (1000000)")
    parser.add_argument("--rows-per-partition", type=int, default=1_000, help="of that job (1000)")
    options: argparse.Namespace = parser.parse_args()
    results = journal_costs(options.folder, options.rows, options.words)
    rows = [
        ("journal: µs of CPU a row, to key, look up and write", f"{results['write_us_per_row']:.1f}"),
        ("  the median of the rounds", f"{results['write_us_per_row_median']:.1f}"),
        ("journal: µs of CPU a row, to read back", f"{results['read_us_per_row']:.1f}"),
    ]
    if options.committed:
        resumed = resume(options.folder, options.committed, options.rows_per_partition)
        rows += [
            (f"a job of {resumed['rows']:,} rows in {resumed['files']:,} files goes on: s to its first request",
             f"{resumed['to_first_request_s']:.1f}"),
            ("  s to its end, the last check included", f"{resumed['whole_s']:.1f}"),
            ("  s of CPU", f"{resumed['cpu_s']:.1f}"),
            ("  MiB read, of those in input and output", f"{resumed['read_mib']:.0f} of {resumed['held_mib']:.0f}"),
        ]  # fmt: skip
        results |= {f"resume_{name}": value for name, value in resumed.items()}
    show("journal", options=options, columns=COLUMNS, rows=rows, results=results)


if __name__ == "__main__":
    main()
