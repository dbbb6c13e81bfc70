"""
Does `max_concurrent_requests: auto` find what a server can take, how long does it need, and what does it cost?

Simulated servers with continuous batching, on several loads; a client sends rows for a fixed time with `auto` and with
each of several fixed numbers. Client and servers share one event loop in virtual time, so a busy
machine changes nothing. The best fixed number is that with the most rows per second after its start. Rows per second
are tokens per second over the tokens of a mean answer: which answers fell into a window is chance. `small` jobs are of
so few rows that they end before a limit has been found; they are compared with the fixed number 64. Beside another
client the best number is the one with the most rows per second that leaves the other one half of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from _loads import LOADS, MEAN_TOKENS, SMALL, Load, servers_of
from _report import make_parser, show

from nemo_llm_stage import AsyncHTTPClient, GenerationConfig
from nemo_llm_stage.stage.scheduler import Scheduler
from nemo_llm_stage.testing.virtual_time import run_in_virtual_time

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
    "the best's",
    "mode",
    "bottleneck",
)
SMALL_COLUMNS = ("load", "rows", "64 takes", "auto takes", "64 ÷ auto")
FIXED = (32, 64, 96, 128, 192, 320)
START_S = 60.0
SETTLED_S = 20.0
WINDOW_S = 10.0
SAMPLE_S = 0.25
TIE = 0.99
"""Of several numbers with as many rows per second, or nearly, the smallest is the best."""
MAX_SHARE = 0.51
"""Half of the server, and what is chance."""

Limit = int | Literal["auto"]


@dataclass
class Run:
    """What one run came to. Times are seconds since its start."""

    answers: list[tuple[float, int]] = field(default_factory=list)
    other_answers: list[tuple[float, int]] = field(default_factory=list)
    limits: list[tuple[float, int, int]] = field(default_factory=list)
    status: Any = None
    num_failed: int = 0
    num_preemptions: int = 0
    num_refused: int = 0
    ended_s: float = 0.0

    def rate(self, from_s: float, to_s: float, *, all_clients: bool = False) -> float:
        """Rows per second between two times."""
        answers = self.answers + self.other_answers if all_clients else self.answers
        return sum(tokens for at, tokens in answers if from_s <= at < to_s) / MEAN_TOKENS / (to_s - from_s)

    def reached(self, rate: float, from_s: float, until_s: float) -> float | None:
        """How long after `from_s` the rows per second of a window were first so many; None for never."""
        for second in range(int(from_s), int(until_s - WINDOW_S) + 1):
            if self.rate(second, second + WINDOW_S) >= rate:
                return second + WINDOW_S / 2 - from_s
        return None

    @property
    def most_in_flight(self) -> int:
        """Requests in flight at one time."""
        return max(in_flight for _, _, in_flight in self.limits)

    @property
    def refused_share(self) -> float:
        """Of all sends."""
        return self.num_refused / max(1, self.num_refused + len(self.answers))


async def send_rows(client: AsyncHTTPClient, numbers: range, words: int, note: Any) -> None:
    """Send a row for each number, as many at once as the limit allows; `note` gets its answer's tokens, or None."""
    config = GenerationConfig(max_tokens=1500, seed=None, temperature=1.0)
    text = "word " * words

    async def run_row(number: int) -> None:
        try:
            messages = [{"role": "user", "content": f"Row {number}: {text}"}]
            answer = await client.complete(messages=messages, model="sim", generation_config=config)
        except Exception:  # noqa: BLE001 - counted
            note(None)
        else:
            note(answer.usage.output_tokens)

    await Scheduler(client.limit).run(numbers, run_row)


def client_of(base_url: str, limit: Limit) -> AsyncHTTPClient:
    """Return a client that gives no row up."""
    return AsyncHTTPClient(base_url, max_concurrent_requests=limit, max_retries=10_000)


async def run_once(load: Load, limit: Limit, seconds: float, num_rows: int | None = None, seed: int = 0) -> Run:
    """Send rows for so long, or until all of so many are answered, and return what came of it."""
    run = Run()
    async with servers_of(load, seed) as (base_url, services):
        client = client_of(base_url, limit)
        began_s = time.monotonic()

        def note(tokens: int | None) -> None:
            if tokens is not None:
                run.answers.append((time.monotonic() - began_s, tokens))
            else:
                run.num_failed += 1

        async def look() -> None:
            while True:
                seen = client.limit.statistics()
                run.limits.append((time.monotonic() - began_s, seen.max_concurrent_requests, seen.in_flight))
                await asyncio.sleep(SAMPLE_S)

        helpers = [asyncio.create_task(look())]
        if load.others is not None:
            helpers.append(asyncio.create_task(another_client(run, load, base_url, began_s)))
        with suppress(TimeoutError):
            numbers = range(num_rows or int(seconds * 120))
            await asyncio.wait_for(send_rows(client, numbers, load.words, note), seconds)
        run.ended_s = time.monotonic() - began_s
        run.status = client.endpoint_statuses()[0]
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        await client.aclose()
        for stats in (service.stats() for service in services):
            run.num_preemptions += stats.num_preemptions
            run.num_refused += stats.by_status.get(429, 0) + stats.by_status.get(503, 0)
    return run


async def another_client(run: Run, load: Load, base_url: str, began_s: float) -> None:
    """Let another client keep requests in flight for its time."""
    assert load.others is not None
    from_s, to_s, num = load.others
    client = client_of(base_url, num)

    def note(tokens: int | None) -> None:
        if tokens is not None:
            run.other_answers.append((time.monotonic() - began_s, tokens))

    await asyncio.sleep(from_s)
    with suppress(TimeoutError):
        await asyncio.wait_for(send_rows(client, range(10**6, 2 * 10**6), load.words, note), to_s - from_s)
    await client.aclose()


def in_virtual_time(load: Load, limit: Limit, seconds: float, seed: int, num_rows: int | None = None) -> Run:
    """Run once."""
    return run_in_virtual_time(lambda: run_once(load, limit, seconds, num_rows, seed), seed)


def compare(name: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Run a load with each fixed number and with `auto`."""
    load = LOADS[name]
    alone = replace(load, others=None)
    up_s, seconds = load.starts_after_s, options.seconds + load.starts_after_s
    fixed: dict[int, Run] = {n: in_virtual_time(alone, n, options.fixed_seconds + up_s, seed) for n in options.fixed}
    rates = {number: run.rate(up_s + SETTLED_S, options.fixed_seconds + up_s) for number, run in fixed.items()}
    best = min(number for number, rate in rates.items() if rate >= TIE * max(rates.values()))
    auto = in_virtual_time(load, "auto", seconds, seed)
    rate, best_rate, rate_of_64 = auto.rate(up_s + START_S, seconds), rates[best], rates[64]
    result: dict[str, Any] = {}
    alone_rate = best_rate
    if load.others is not None:
        from_s, to_s, _ = load.others
        beside = {number: in_virtual_time(load, number, seconds, seed) for number in options.fixed}
        from_s += SETTLED_S
        best, pinned = best_that_leaves_half(beside, from_s, to_s)
        rate = auto.rate(from_s, to_s)
        best_rate, rate_of_64 = pinned.rate(from_s, to_s), beside[64].rate(from_s, to_s)
        result = {
            "server_ratio": auto.rate(from_s, to_s, all_clients=True) / pinned.rate(from_s, to_s, all_clients=True),
            "back_after_s": auto.reached(0.9 * alone_rate, to_s, seconds),
        }
    return result | {
        "load": name,
        "seed": seed,
        "fixed": rates,
        "best": best,
        "best_rows_per_s": best_rate,
        "auto_rows_per_s": rate,
        "ratio": rate / best_rate,
        "ratio_to_64": rate / rate_of_64,
        "reached_s": auto.reached(0.9 * alone_rate, up_s, seconds),
        "most_in_flight": auto.most_in_flight,
        "overshoot": auto.most_in_flight / best,
        "num_preemptions": auto.num_preemptions,
        "refused_share": auto.refused_share,
        "best_refused_share": fixed[best].refused_share,
        "best_num_preemptions": fixed[best].num_preemptions * seconds / options.fixed_seconds,
        "num_answers": len(auto.answers),
        "num_failed": auto.num_failed,
        "limit": auto.status.limit,
        "mode": auto.status.mode,
        "bottleneck": auto.status.bottleneck,
        "reason": auto.status.reason,
        "limits": [limit for at, limit, _ in auto.limits[:: int(5 / SAMPLE_S)]],
    }


def best_that_leaves_half(runs: dict[int, Run], from_s: float, to_s: float) -> tuple[int, Run]:
    """Return the number with the most rows per second beside which the other client has half of all, and its run."""
    fair = {
        number: run
        for number, run in runs.items()
        if run.rate(from_s, to_s) <= MAX_SHARE * run.rate(from_s, to_s, all_clients=True)
    }
    return max(fair.items(), key=lambda item: item[1].rate(from_s, to_s))


def compare_small(name: str, num_rows: int, seed: int) -> dict[str, Any]:
    """Run a job of few rows with 64 and with `auto`."""
    pinned, auto = (in_virtual_time(LOADS[name], limit, 3600.0, seed, num_rows) for limit in (64, "auto"))
    assert len(pinned.answers) == len(auto.answers) == num_rows
    ratio = pinned.ended_s / auto.ended_s
    times = {"pinned_s": pinned.ended_s, "auto_s": auto.ended_s, "ratio": ratio}
    return {"load": name, "seed": seed, "rows": num_rows, **times}


def cells_of(result: dict[str, Any]) -> list[str]:
    """Return one line of the table."""
    return [
        result["load"],
        str(result["best"]),
        f"{result['best_rows_per_s']:,.1f}",
        f"{result['auto_rows_per_s']:,.1f}",
        f"{result['ratio']:.2f}",
        f"{result['ratio_to_64']:.2f}",
        "never" if result["reached_s"] is None else f"{result['reached_s']:.0f} s",
        f"{result['most_in_flight']} ({result['overshoot']:.1f} of best)",
        str(result["num_preemptions"]),
        f"{result['refused_share']:.0%}",
        f"{result['best_num_preemptions']:.0f}, {result['best_refused_share']:.0%}",
        str(result["mode"]),
        str(result["bottleneck"]),
    ]


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--loads", nargs="*", choices=tuple(LOADS), help="(all)")
    small = [20, 50, 100, 400]
    parser.add_argument("--small", nargs="*", type=int, default=small, help=f"rows of small jobs {small}")
    parser.add_argument("--fixed", nargs="+", type=int, default=list(FIXED), help=f"numbers, 64 among them {FIXED}")
    parser.add_argument("--seconds", type=float, default=150.0, help="of a run with auto, virtual (150)")
    parser.add_argument("--fixed-seconds", type=float, default=80.0, help="of a run with a fixed number (80)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of lengths and pauses; a run for each (0)")
    options = parser.parse_args()
    names = list(LOADS) if options.loads is None else options.loads
    results = [compare(name, options, seed) for name in names for seed in options.seeds]
    notes = [
        f"auto: rows per second from {START_S:.0f} s on",
        f"90 % after: since the server was up, in windows of {WINDOW_S:.0f} s",
        "the best's: preempted in the same time and refused, with the best number",
    ]
    notes += [
        f"another client: both together get {result['server_ratio']:.2f} of what they get with {result['best']}, the "
        f"most that leaves it half of the server; auto has {result['auto_rows_per_s']:.1f} rows/s beside it, "
        f"{result['best']} has {result['best_rows_per_s']:.1f}; auto is back at 90 % {result['back_after_s']} s later"
        for result in results
        if "server_ratio" in result
    ]
    cells = [cells_of(result) for result in results]
    if results:
        show("auto", options=options, columns=COLUMNS, rows=cells, results=results, notes=notes)
    small_results = [
        compare_small(name, rows, seed) for name in SMALL for rows in options.small for seed in options.seeds
    ]
    if small_results:
        shown = [
            [s["load"], str(s["rows"]), f"{s['pinned_s']:.1f} s", f"{s['auto_s']:.1f} s", f"{s['ratio']:.2f}"]
            for s in small_results
        ]
        show("auto_small", options=options, columns=SMALL_COLUMNS, rows=shown, results=small_results)


if __name__ == "__main__":
    main()
