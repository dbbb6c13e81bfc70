"""
Does `max_concurrent_requests: auto` find what a server can take, and how long does it need?

Simulated servers with continuous batching, in processes of their own, on several loads; a stage sends rows for a fixed
time with `auto` and with each of several fixed numbers. All times are simulated seconds: server and client run faster
than real time by `--speedup`. The best fixed number is that with the most rows per second after its start.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from _report import make_parser, show
from _round_robin import one_address

from nemo_llm_stage import AsyncHTTPClient, LLMStage
from nemo_llm_stage.testing import ServerConfig, SimulatedServerProcess

COLUMNS = (
    "load",
    "best number",
    "rows/s",
    "auto rows/s",
    "auto ÷ best",
    "auto ÷ 64",
    "90 % after",
    "most in flight",
    "preempted",
    "refused",
    "mode",
    "bottleneck",
)
ANSWER_TOKENS, ANSWER_SIGMA = 200, 0.5
START_S = 60.0
WINDOW_S = 10.0
Limit = int | Literal["auto"]


class FastClock:
    """A clock that runs faster, so that the client's seconds are those of the simulated servers."""

    def __init__(self, speedup: float) -> None:
        self._speedup = speedup

    def monotonic(self) -> float:
        """Return simulated seconds."""
        return time.monotonic() * self._speedup

    async def sleep(self, seconds: float) -> None:
        """Sleep so many simulated seconds."""
        await asyncio.sleep(seconds / self._speedup)


@dataclass(frozen=True)
class Load:
    """
    A server, and who else uses it.

    Attributes:
        settings: Of the server.
        num_servers: Behind one address.
        others: From and to which second another client has how many requests in flight.
        fixed: The numbers that `auto` is compared with.
        starts_after_s: Seconds until the server is up.
    """

    settings: dict[str, Any]
    num_servers: int = 1
    others: tuple[float, float, int] | None = None
    fixed: tuple[int, ...] = (32, 64, 128, 192, 320)
    starts_after_s: float = 0.0


LOADS = {
    "slots": Load({"max_num_seqs": 128}),
    "kv cache": Load({"max_num_seqs": 512, "num_kv_blocks": 1600}),
    "two replicas": Load({"max_num_seqs": 64}, num_servers=2),
    "no metrics": Load({"max_num_seqs": 128, "has_metrics": False}),
    "rate limit": Load(
        {"max_num_seqs": 128, "requests_per_minute": 360, "has_metrics": False}, fixed=(16, 32, 64, 128)
    ),
    "rate headers": Load(
        {"max_num_seqs": 128, "requests_per_minute": 360, "has_metrics": False, "rate_limit_headers": True},
        fixed=(16, 32, 64, 128),
    ),
    "full queue": Load({"max_num_seqs": 64, "max_queue": 16}),
    "another client": Load({"max_num_seqs": 128}, others=(60.0, 110.0, 96)),
    "slow start": Load({"max_num_seqs": 128}, starts_after_s=20.0),
    "few slots": Load({"max_num_seqs": 8}, fixed=(8, 16, 64)),
}


@dataclass
class Run:
    """What one run came to: the times of answers, and what was seen of the limit and the server."""

    answers: list[float] = field(default_factory=list)
    most_in_flight: int = 0
    status: Any = None
    num_failed: int = 0
    num_preemptions: int = 0
    num_refused: int = 0
    server_tokens: int = 0

    def rate(self, from_s: float, to_s: float) -> float:
        """Rows per second between two times."""
        return sum(from_s <= at < to_s for at in self.answers) / (to_s - from_s)

    def reached(self, rate: float, until_s: float) -> float | None:
        """When the rows per second of a window were first so many; None for never."""
        for second in range(int(until_s - WINDOW_S)):
            if self.rate(second, second + WINDOW_S) >= rate:
                return second + WINDOW_S / 2
        return None


@contextmanager
def servers_of(load: Load, speedup: float) -> Iterator[tuple[str, list[SimulatedServerProcess]]]:
    """Start the load's servers; yield their one address and them."""
    config = ServerConfig(
        scheduler="batching",
        max_model_len=2048,
        answer_tokens=ANSWER_TOKENS,
        answer_tokens_sigma=ANSWER_SIGMA,
        prefix_caching=False,
        startup_delay_s=load.starts_after_s / speedup,
        speedup=speedup,
        max_recorded=0,
        **load.settings,
    )
    with ExitStack() as stack:
        servers = [stack.enter_context(SimulatedServerProcess(config)) for _ in range(load.num_servers)]
        if len(servers) == 1:
            yield servers[0].base_url, servers
        else:
            yield stack.enter_context(one_address([server.port for server in servers])), servers


def make_stage(base_url: str, limit: Limit, speedup: float) -> tuple[LLMStage, AsyncHTTPClient]:
    """Return a stage that runs in simulated time."""
    client = AsyncHTTPClient(base_url, max_concurrent_requests=limit)
    client.clock = FastClock(speedup)
    config = {"max_tokens": 1500, "seed": None, "temperature": 1.0}
    prompt = "Row {{ number }}: {{ text }}"
    stage = LLMStage(client=client, model="sim", prompt=prompt, output_column="x", generation_config=config)
    return stage, client


def run_once(load: Load, limit: Limit, seconds: float, speedup: float) -> Run:
    """Send rows for so long, and return what came of it."""
    run = Run()
    with servers_of(load, speedup) as (base_url, servers):
        stage, client = make_stage(base_url, limit, speedup)
        began_s = time.monotonic()

        def now_s() -> float:
            return (time.monotonic() - began_s) * speedup

        rows = [{"number": number, "text": "word " * 60} for number in range(int(seconds * 80))]

        def note(outcome: Any) -> None:
            if outcome["x"].error is None:
                run.answers.append(now_s())
            else:
                run.num_failed += 1

        future = stage.submit(rows, on_done=note, order="input")
        with another_client(load, base_url, speedup, now_s):
            while now_s() < seconds and not future.done():
                time.sleep(0.05)
                statuses = client.endpoint_statuses()
                run.most_in_flight = max(run.most_in_flight, *(status.in_flight for status in statuses))
        run.status = client.endpoint_statuses()[0]
        stats = [server.stats for server in servers]
        future.cancel()
        stage.close()
    run.num_preemptions = sum(s.num_preemptions for s in stats)
    run.num_refused = sum(s.by_status.get(429, 0) + s.by_status.get(503, 0) for s in stats)
    run.server_tokens = sum(s.output_tokens for s in stats)
    return run


@contextmanager
def another_client(load: Load, base_url: str, speedup: float, now_s: Any) -> Iterator[None]:
    """Let another client keep requests in flight for its time."""
    if load.others is None:
        yield
        return
    from_s, to_s, num = load.others
    is_over = threading.Event()

    def work() -> None:
        while now_s() < from_s and not is_over.is_set():
            time.sleep(0.02)
        if is_over.is_set():
            return
        stage, _ = make_stage(base_url, num, speedup)
        rows = [{"number": -number, "text": "word " * 60} for number in range(100_000)]
        future: concurrent.futures.Future[Any] = stage.submit(rows, order="input")
        while now_s() < to_s and not is_over.is_set():
            time.sleep(0.02)
        future.cancel()
        stage.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a load with each fixed number and with `auto`."""
    load, speedup = LOADS[name], options.speedup
    fixed: dict[int, float] = {}
    for number in load.fixed:
        run = run_once(load, number, options.fixed_seconds if load.others is None else options.seconds, speedup)
        until_s = options.fixed_seconds if load.others is None else options.seconds
        from_s = START_S if load.others is not None else load.starts_after_s + 20.0
        fixed[number] = run.rate(from_s, until_s)
    best = max(fixed, key=lambda number: fixed[number])
    auto = run_once(load, "auto", options.seconds, speedup)
    rate = auto.rate(START_S, options.seconds)
    reached = auto.reached(0.9 * fixed[best], options.seconds)
    return {
        "load": name,
        "fixed": fixed,
        "best": best,
        "best_rows_per_s": fixed[best],
        "auto_rows_per_s": rate,
        "ratio": rate / fixed[best],
        "ratio_to_64": rate / fixed[64],
        "reached_s": None if reached is None else reached - load.starts_after_s,
        "most_in_flight": auto.most_in_flight,
        "overshoot": auto.most_in_flight / best,
        "num_preemptions": auto.num_preemptions,
        "num_refused": auto.num_refused,
        "num_answers": len(auto.answers),
        "num_failed": auto.num_failed,
        "limit": auto.status.limit,
        "mode": auto.status.mode,
        "bottleneck": auto.status.bottleneck,
        "reason": auto.status.reason,
    }


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--loads", nargs="+", choices=tuple(LOADS), help="(all)")
    parser.add_argument("--seconds", type=float, default=150.0, help="of a run with auto, simulated (150)")
    parser.add_argument("--fixed-seconds", type=float, default=70.0, help="of a run with a fixed number (70)")
    parser.add_argument("--speedup", type=float, default=8.0, help="simulated seconds a real second (8)")
    options = parser.parse_args()
    results = [compare(name, options) for name in options.loads or LOADS]
    cells = [
        [
            result["load"],
            str(result["best"]),
            f"{result['best_rows_per_s']:,.1f}",
            f"{result['auto_rows_per_s']:,.1f}",
            f"{result['ratio']:.2f}",
            f"{result['ratio_to_64']:.2f}",
            "never" if result["reached_s"] is None else f"{result['reached_s']:.0f} s",
            f"{result['most_in_flight']} ({result['overshoot']:.1f} of best)",
            str(result["num_preemptions"]),
            f"{result['num_refused']} of {result['num_refused'] + result['num_answers']}",
            str(result["mode"]),
            str(result["bottleneck"]),
        ]
        for result in results
    ]
    notes = [
        f"auto: rows per second from {START_S:.0f} s on",
        f"90 % after: since the server was up, in windows of {WINDOW_S:.0f} s",
        "another client: it shares the server's queue by what it has in flight; auto keeps that queue short",
    ]
    show("auto", options=options, columns=COLUMNS, rows=cells, results=results, notes=notes)


if __name__ == "__main__":
    main()
