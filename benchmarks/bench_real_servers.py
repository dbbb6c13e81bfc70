"""
Do real llama.cpp servers stay busy when one of them is killed and another one joins?

Starts three embedded models as `nemo-llm-stage serve` does, runs a job over the file of their addresses, ends one by
`kill -9` after a third of the rows, and adds a fourth to the file. A server idles while it is there, rows are left, and
it works on no request: its own metrics tell, several times a second. The one that joins is there from when its line is
written; rows are left until the last one is sent. Needs the [local] extra.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
from _report import make_parser, show

from nemo_llm_stage.config.load import make_config
from nemo_llm_stage.embedded.local_server import LocalServer
from nemo_llm_stage.run import run_config, verify_output

SAMPLE_S = 0.2
COLUMNS = ("server", "there for", "answers", "idle", "of that before its first request", "after its last one")


class Watch:
    """
    Samples whether one server works.

    Args:
        url: Its base URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.begun_s = time.monotonic()
        self.samples: list[tuple[float, bool]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop sampling."""
        self._is_over.set()
        self._thread.join()

    def idle(self, end_s: float) -> tuple[str, float, float, float]:
        """Return how long it was there until `end_s`, and the shares of that: idle, before and after its requests."""
        samples = [is_busy for at_s, is_busy in self.samples if at_s <= end_s]
        busy = [place for place, is_busy in enumerate(samples) if is_busy]
        shares = (len(samples) - len(busy), min(busy), len(samples) - 1 - max(busy))
        return f"{end_s - self.begun_s:.0f} s", *(share / len(samples) for share in shares)

    def _run(self) -> None:
        while not self._is_over.wait(SAMPLE_S):
            try:
                with urlopen(self.url.removesuffix("/v1") + "/metrics", timeout=30) as answer:
                    text = answer.read().decode()
            except (URLError, OSError):
                continue
            value = next(
                line.split()[1] for line in text.splitlines() if line.startswith("llamacpp:requests_processing")
            )
            if self._is_over.is_set():
                return
            self.samples.append((time.monotonic(), float(value) > 0.0))


def run(num_rows: int, num_slots: int) -> list[list[object]]:
    """Run the job; return a row for each server."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    endpoints, output = folder / "endpoints.txt", folder / "out"
    rows = pa.table({"n": [f"number {number}" for number in range(num_rows)]})
    pq.write_table(rows, folder / "in.parquet")
    servers = [LocalServer(num_slots=num_slots, num_threads=1) for _ in range(4)]
    for server in servers:
        server.start()
    stays, other, dies, joins = servers
    listed = [server.base_url for server in (stays, other, dies)]
    endpoints.write_text("\n".join(listed))
    config = make_config(
        {
            "input": str(folder / "in.parquet"),
            "output": str(output),
            "client": {"base_url": str(endpoints), "max_concurrent_requests": num_slots},
            "model": stays.model,
            "prompt": "Say a word about {{ n }}.",
            "output_column": "x",
            "generation_config": {"max_tokens": 12, "temperature": 0.0},
            "engine": "local",
            "rows_per_partition": max(20, num_rows // 4),
            "keep_raw": True,
        }
    )
    watches: list[Watch] = []
    ends_s: list[float] = []

    def disturb() -> None:
        _until(lambda: _num_answers(output) > 0)
        watches.extend(Watch(url) for url in (stays.base_url, other.base_url))
        _until(lambda: _num_answers(output) >= num_rows // 3)
        assert dies.pid is not None
        os.kill(dies.pid, signal.SIGKILL)
        endpoints.write_text("\n".join([*listed, joins.base_url]))
        watches.append(Watch(joins.base_url))
        _until(lambda: not _num_unsent(output, num_rows))
        ends_s.append(time.monotonic())

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    result = run_config(config, progress=False)
    for watch in watches:
        watch.end()
    disturbing.join()
    for server in servers:
        server.close()
    assert (result.counters.num_answered, result.counters.num_failed) == (num_rows, 0), result.counters
    assert verify_output(str(output)).is_complete
    answered = {status.url: status.num_answered for status in result.endpoints}
    assert sum(answered.values()) == num_rows, answered
    told: list[list[object]] = []
    for name, watch in zip(("stays", "stays", "joins"), watches, strict=True):
        there, *shares = watch.idle(ends_s[0])
        told.append([name, there, answered[watch.url], *(f"{share:.1%}" for share in shares)])
    return [*told, ["killed", "", answered[dies.base_url], "", "", ""]]


def _num_answers(output: Path) -> int:
    """Rows that the job's status tells as done; it is written every 2 s."""
    num_rows: int = _status(output).get("counters", {}).get("num_rows", 0)
    return num_rows


def _num_unsent(output: Path, num_rows: int) -> int:
    """Rows that are neither done nor in flight, as the status tells."""
    status = _status(output)
    return num_rows - _num_answers(output) - int(status.get("num_in_flight", 0)) if status else num_rows


def _status(output: Path) -> dict[str, Any]:
    try:
        text = (output.with_name(f".{output.name}.nemo_llm_stage") / "status.json").read_text()
        status: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return {}
    return status


def _until(is_true: Callable[[], bool]) -> None:
    while not is_true():
        time.sleep(0.1)


def main() -> None:
    """Run and report."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=300, help="(%(default)s)")
    parser.add_argument("--slots", type=int, default=4, help="of each server (%(default)s)")
    options = parser.parse_args()
    rows = run(options.rows, options.slots)
    show(
        "real_servers",
        options=options,
        columns=COLUMNS,
        rows=rows,
        results=[{"rows": [[str(cell) for cell in row] for row in rows]}],
    )


if __name__ == "__main__":
    sys.exit(main())
