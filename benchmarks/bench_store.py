"""
What does an object store cost a job: calls a partition, seconds to resume and to verify?

A real S3 server in a process of its own (moto's, or one that runs: ``--endpoint``) answers each call 50 ms later. A
job of many small partitions runs from and to it; then it is run again with one file removed, and again as it is, and
verified. The calls that read the input are counted apart. ``--committed N`` resumes a job of N committed partitions
and one more in a local folder, with the ledger and without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from _report import ROOT, make_parser, show

from nemo_llm_stage import AsyncHTTPClient, LLMStage, run_job
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.ledger import LEDGER, Entry, LedgerWriter
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.job.prepare import prepare_job
from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import SimulatedServerProcess

COLUMNS = ("step", "s", "CPU s", "calls", "reading", "others a partition", "MiB sent", "received")
INPUT = "in"
MAX_LINKS = 50_000
"""To one file; ext4 takes 65,000."""


@contextlib.contextmanager
def store(latency_s: float, *, is_light: bool, endpoint: str | None) -> Iterator[str]:
    """Start the S3 server, or a proxy to one that runs, and set the environment to it; yields its URL."""
    if endpoint is None:
        words = ["s3_server.py", str(latency_s), *(["light"] if is_light else [])]
    else:
        words = ["s3_proxy.py", endpoint, str(latency_s)]
    program = [sys.executable, str(ROOT / "tests" / words[0]), *words[1:]]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
            os.environ |= {**keys, **os.environ, "AWS_ENDPOINT_URL": url}
            yield url
        finally:
            process.kill()


class Steps:
    """
    Times steps, and counts the calls of each.

    Args:
        calls: Returns the calls since the last look, by kind.
        num_bytes: Returns the bytes since the last look, sent and received; nothing where they are not known.
        num_partitions: Of the job.
    """

    def __init__(
        self, calls: Callable[[], Counter[str]], num_bytes: Callable[[], Counter[str]], num_partitions: int
    ) -> None:
        self._calls = calls
        self._num_bytes = num_bytes
        self._num_partitions = num_partitions
        self.results: dict[str, dict[str, Any]] = {}

    def take(self, name: str, step: Callable[[], Any]) -> Any:
        """Do `step`, and note what it took."""
        self._calls()
        self._num_bytes()
        started_s, started_cpu_s = time.monotonic(), time.process_time()
        result = step()
        seconds, cpu_s, calls = time.monotonic() - started_s, time.process_time() - started_cpu_s, self._calls()
        counts = {"calls": dict(calls.most_common()), "bytes": dict(self._num_bytes())}
        self.results[name] = {"seconds": seconds, "cpu_s": cpu_s, **counts}
        print(
            f"{name}: {seconds:.2f} s",
            *(f"{num:>8} {kind}" for kind, num in calls.most_common(20)),
            sep="\n  ",
            file=sys.stderr,
        )
        return result

    def rows(self) -> Iterator[list[object]]:
        """Yield the rows of the table."""
        for name, values in self.results.items():
            calls = Counter(values["calls"])
            reading = sum(num for kind, num in calls.items() if kind.split(" ")[1] == INPUT)
            others = (calls.total() - reading) / self._num_partitions
            row = [name, f"{values['seconds']:.2f}", f"{values['cpu_s']:.2f}", calls.total(), reading, f"{others:.3f}"]
            sizes = [values["bytes"].get(kind) for kind in ("sent", "received")]
            yield [*row, *("" if size is None else f"{size / 2**20:.1f}" for size in sizes)]


def read_plainly(urls: Sequence[SplitResult]) -> None:
    """Read all files at `urls`, 64 at once, and do nothing with them: what the store itself takes."""
    thread = threading.local()

    def read(url: SplitResult) -> int:
        connection = getattr(thread, "connection", None)
        if connection is None:
            connection = thread.connection = HTTPConnection(url.netloc)
        connection.request("GET", f"{url.path}?{url.query}")
        return len(connection.getresponse().read())

    with ThreadPoolExecutor(64) as pool:
        assert min(pool.map(read, urls)) > 0


def measure(folder: str, options: Any, steps: Steps, server: SimulatedServerProcess) -> None:
    """Run a job in `folder`, resume it, run it again, and verify it."""
    place = Folder(f"{folder}/{INPUT}")
    place.make()
    num_rows = options.partitions * options.rows
    with place.fs.open(place.path("a.parquet"), "wb") as file:
        table = pa.table({"id": range(num_rows), "text": [f"row {number}" for number in range(num_rows)]})
        pq.write_table(table, file, row_group_size=1000)

    def run() -> Any:
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests=64)
        stage = LLMStage(client=client, model="sim", prompt="Say {{ text }}", output_column="x")
        return run_job(
            stage=stage,
            input=f"{folder}/{INPUT}",
            output=f"{folder}/out",
            rows_per_partition=options.rows,
            engine="local",
            progress=False,
            flush_interval=options.flush_interval,
        )

    steps.take("run", run)
    output = Folder(f"{folder}/out")
    output.remove(f"part-{options.partitions - 1:08}.parquet")
    output.remove(".nemo_llm_stage/_SUCCESS")
    server.reset()
    started_s = time.monotonic()
    steps.take("resume, one file missing", run)
    first_s = server.stats.first_start_monotonic_s
    assert first_s is not None
    print(f"first request after {first_s - started_s:.2f} s", file=sys.stderr)
    steps.results["resume, one file missing"]["first_request_s"] = first_s - started_s
    steps.take("run again", run)
    if not output.is_local:
        urls = [urlsplit(output.fs.sign(output.path(name))) for name in sorted(output.names())]
        steps.take("the files, read plainly", lambda: read_plainly(urls))
    verification = steps.take("verify", lambda: verify_output(f"{folder}/out"))
    assert verification.is_complete, verification.problems
    assert verification.counters.num_rows == num_rows


def resume_many(folder: Path, num_committed: int, base_url: str, steps: Steps) -> None:
    """Resume a job of one-row partitions, all but one of them committed; the committed files are links to one."""
    num = num_committed + 1
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(num)]}), folder / "in.parquet")
    settings = JobSettings(rows_per_partition=1, engine="local")

    def stage() -> LLMStage:
        return LLMStage(client=AsyncHTTPClient(base_url), model="sim", prompt="{{ text }}", output_column="x")

    job = steps.take(f"plan {num:,}", lambda: prepare_job(stage(), folder / "in.parquet", folder / "out", settings))
    schema = pa.schema([*job.plan.schema, *job.stage.fields])
    row = dict.fromkeys(schema.names) | {"text": "row", "x": "answer"}
    with LedgerWriter(job.output.state) as ledger:
        for number in range(num_committed):
            path = folder / "out" / f"part-{number:08}.parquet"
            if number % MAX_LINKS == 0:
                first, counters = path, Counters(num_rows=1)
                with job.output.writer(schema, job.id) as writer:
                    writer.write(pa.Table.from_pylist([row], schema))
                    writer.commit(path.name, counters)
                stat = writer.stat
            else:
                os.link(first, path)
            ledger.add([Entry(path.name, job.id, stat, counters)])

    def resume() -> Any:
        source, output = folder / "in.parquet", folder / "out"
        return run_job(stage=stage(), input=source, output=output, progress=False, engine="local")

    result = steps.take(f"resume {num_committed:,}", resume)
    assert result.counters.num_rows == num
    shutil.rmtree(folder / ".out.nemo_llm_stage" / LEDGER)
    (folder / "out" / f"part-{num_committed:08}.parquet").unlink()
    (folder / "out" / ".nemo_llm_stage" / "_SUCCESS").unlink()
    assert steps.take(f"resume {num_committed:,}, no ledger", resume).counters.num_rows == num


def main() -> None:
    """Run and report."""
    parser = make_parser(__doc__)
    parser.add_argument("--partitions", type=int, default=1000, help="of the job (%(default)s)")
    parser.add_argument("--rows", type=int, default=5, help="a partition (%(default)s)")
    parser.add_argument("--service-s", type=float, default=0.2, help="a request takes the server (%(default)s s)")
    parser.add_argument("--flush-interval", type=float, default=2.0, help="of the journal (%(default)s s)")
    parser.add_argument("--latency-s", type=float, default=0.05, help="added to each call (%(default)s s)")
    parser.add_argument("--light-store", action="store_true", help="one that gives whole objects without moto's code")
    parser.add_argument("--endpoint", metavar="URL", help="of an S3 server that runs; keys from the environment")
    parser.add_argument("--on-disk", action="store_true", help="a local folder in place of the store")
    parser.add_argument("--committed", type=int, metavar="N", help="instead: resume a local job of N partitions")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(SimulatedServerProcess(service_time_s=options.service_s))
        if options.on_disk or options.committed:
            folder, calls, num_bytes = str(options.folder / f"store-{os.getpid()}"), Counter[str], Counter[str]
            stack.callback(shutil.rmtree, Path(folder), ignore_errors=True)
        else:
            url = stack.enter_context(store(options.latency_s, is_light=options.light_store, endpoint=options.endpoint))
            bucket = f"bench-{os.getpid()}"
            folder = f"s3://{bucket}"
            Folder(folder).fs.mkdir(bucket)

            def counts(what: str) -> Counter[str]:
                with urllib.request.urlopen(f"{url}/{what}") as response:
                    return Counter(json.load(response))

            calls = partial(counts, "calls")
            num_bytes = partial(counts, "bytes") if options.endpoint else Counter[str]

        steps = Steps(calls, num_bytes, options.partitions)
        if options.committed:
            resume_many(Path(folder), options.committed, server.base_url, steps)
        else:
            measure(folder, options, steps, server)
    show("store", options=options, columns=COLUMNS, rows=steps.rows(), results=steps.results)


if __name__ == "__main__":
    main()
