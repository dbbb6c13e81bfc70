"""
Does one driver keep a thousand servers full to the end of a job, whatever some of them do?

A discrete-event simulation: the real hand-out and the real loop of a run, with workers and servers in simulated time.
One server is slow, one dies at half-time, one fails and comes back again and again, one joins. The bound is that of the
capacity that was there. `greedy` is one queue for all slots, which no client can beat without knowing how long each row
takes. The driver's CPU is measured; the simulation's own is not part of it. A call to a real Ray actor comes on top.
"""

from __future__ import annotations

import gc
import heapq
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from _report import add_plot_option, make_parser, new_figure, save_figure, show
from _scale import SimulatedCalls, SimulatedWorker, World

from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.worker.dispatch import Handout
from nemo_llm_stage.worker.drive import drive
from nemo_llm_stage.worker.engine import RunStatus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_POINTS = 500
"""Of the requests in flight over time."""

MEAN_S = 10.0
SIGMA = 0.3
SLOW = 0.1
FLAP_UP_S, FLAP_DOWN_S = 60.0, 20.0
COLUMNS = (
    "servers x slots",
    "load",
    "rows",
    "makespan ÷ bound",
    "÷ greedy",
    "sent twice",
    "driver CPU",
    "calls/s",
    "CPU in all",
)


@dataclass(frozen=True)
class Scene:
    """
    What some servers do.

    Attributes:
        name: For people.
        is_slow: Whether the first one is ten times slower.
        is_odd: Whether one dies at half-time and one joins after a quarter.
        flaps: Whether one fails and comes back again and again.
    """

    name: str
    is_slow: bool = False
    is_odd: bool = False
    flaps: bool = False


SCENES = (
    Scene("all alike"),
    Scene("one 10 times slower", is_slow=True),
    Scene("slow, dead, joining", is_slow=True, is_odd=True),
    Scene("slow, dead, flapping, joining", is_slow=True, is_odd=True, flaps=True),
)


def simulate(scene: Scene, num_servers: int, num_slots: int, num_rows: int, *, hedges: bool) -> dict[str, Any]:
    """Return what came of one job."""
    rng = random.Random(1)
    times_s = [MEAN_S * rng.lognormvariate(-SIGMA * SIGMA / 2, SIGMA) for _ in range(1 << 16)]
    mean_s = sum(times_s) / len(times_s)
    ideal_s = num_rows * mean_s / (num_servers * num_slots)
    calls = SimulatedCalls(world := World())
    speeds = [SLOW if scene.is_slow and number == 0 else 1.0 for number in range(num_servers)]
    workers = [SimulatedWorker(calls, number, num_slots, times_s, speed) for number, speed in enumerate(speeds)]
    ups = [_Up(speed * num_slots) for speed in speeds]
    if scene.is_odd:
        ups[1].stop_s = ideal_s / 2
        world.at(ups[1].stop_s, workers[1].go_down)
        world.at(ideal_s / 4, workers[3].grow, num_slots)
        ups.append(_Up(num_slots, start_s=ideal_s / 4))
    if scene.flaps:
        ups[2].flaps = True
        _flap(world, workers[2])
    rows = max(1_000, min(10_000, num_rows // (4 * num_servers)))
    partitions = [
        Partition(index, "in.parquet", "parquet", start, min(start + rows, num_rows), min(rows, num_rows - start))
        for index, start in enumerate(range(0, num_rows, rows))
    ]
    handout = Handout(
        partitions,
        num_workers=num_servers,
        max_concurrent_requests=num_slots,
        rows_per_partition=rows,
        hedges=hedges,
    )
    track: list[tuple[float, int]] = []

    def monitor(status: RunStatus) -> None:
        track.append((world.now_s, status.stage.num_in_flight))

    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    reports = list(drive(workers, handout, monitor, pending=calls))
    wall_s, all_cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    cpu_s = all_cpu_s * (1.0 - calls.world_s / wall_s)  # by wall time: the clock of the CPU costs more than a row
    counters = [report.counters for report in reports]
    assert len(reports) == len(partitions)
    num_answered = sum(counter.num_rows for counter in counters)
    assert num_answered == num_rows, num_answered
    makespan_s = world.now_s
    return {
        "scene": scene.name,
        "num_servers": num_servers,
        "num_slots": num_slots,
        "num_rows": num_rows,
        "makespan_s": makespan_s,
        "bound_s": _bound_s(num_rows * mean_s, ups),
        "greedy_s": _greedy_s(times_s, ups, num_rows),
        "num_second_sends": sum(counter.num_second_sends for counter in counters),
        "driver_cpu_s": cpu_s,
        "num_calls": sum(worker.num_calls for worker in workers),
        "cpu_s": all_cpu_s,
        "wall_s": wall_s,
        "in_flight": track[:: 1 + len(track) // MAX_POINTS],
    }


@dataclass
class _Up:
    """When a server is there, and how many slots of full speed it has."""

    capacity: float
    start_s: float = 0.0
    stop_s: float = float("inf")
    flaps: bool = False

    @property
    def num_slots(self) -> int:
        """Return how many slots of full speed it is worth over a long time."""
        return int(self.capacity * (FLAP_UP_S / (FLAP_UP_S + FLAP_DOWN_S) if self.flaps else 1.0))

    def work_s(self, until_s: float) -> float:
        """Return the seconds of work that it can have done until then."""
        span_s = max(0.0, min(until_s, self.stop_s) - self.start_s)
        if self.flaps:
            period_s = FLAP_UP_S + FLAP_DOWN_S
            span_s = span_s // period_s * FLAP_UP_S + min(span_s % period_s, FLAP_UP_S)
        return span_s * self.capacity


def _bound_s(work_s: float, ups: Sequence[_Up]) -> float:
    """Return the time by which the servers that were there can have done so much work, by bisection."""
    low_s, high_s = 0.0, 1e9
    for _ in range(100):
        middle_s = (low_s + high_s) / 2
        low_s, high_s = (low_s, middle_s) if sum(up.work_s(middle_s) for up in ups) >= work_s else (middle_s, high_s)
    return high_s


def _greedy_s(times_s: Sequence[float], ups: Sequence[_Up], num_rows: int) -> float:
    """
    Return the makespan of one queue over all slots.

    A slow or flapping server is as many fewer slots of full speed. Rows at one that dies begin anew elsewhere.
    """
    free = [up.start_s for up in ups for _ in range(up.num_slots) if up.stop_s == float("inf")]
    dying = [(0.0, up.stop_s) for up in ups for _ in range(up.num_slots) if up.stop_s < float("inf")]
    heapq.heapify(free)
    for time_s in islice(cycle(times_s), num_rows):
        while dying and dying[0][0] < free[0]:
            at_s, stop_s = dying[0]
            if at_s + time_s <= stop_s:
                heapq.heapreplace(dying, (at_s + time_s, stop_s))
                break
            heapq.heappop(dying)
        else:
            heapq.heapreplace(free, free[0] + time_s)
    return max(free)


def _flap(world: World, worker: SimulatedWorker) -> None:
    def down() -> None:
        worker.go_down()
        world.at(world.now_s + FLAP_DOWN_S, up)

    def up() -> None:
        worker.come_back()
        world.at(world.now_s + FLAP_UP_S, down)

    world.at(FLAP_UP_S, down)


def _row(result: dict[str, Any]) -> list[object]:
    makespan_s = result["makespan_s"]
    return [
        f"{result['num_servers']:,} x {result['num_slots']}",
        result["scene"],
        f"{result['num_rows']:,}",
        f"{makespan_s / result['bound_s']:.3f}",
        f"{makespan_s / result['greedy_s']:.3f}",
        f"{result['num_second_sends']:,}",
        f"{result['driver_cpu_s'] / makespan_s:.3f} cores",
        f"{result['num_calls'] / makespan_s:,.0f}",
        f"{result['cpu_s']:.0f} s",
    ]


def plot(results: Sequence[dict[str, Any]]) -> Figure:
    """Return a figure of the requests in flight over time, as the driver sees them; the bound is a dotted line."""
    figure, panels = new_figure(len(results), height=2.0)
    for panel, result in zip(panels, results, strict=True):
        times_s, in_flight = zip(*result["in_flight"], strict=True)
        panel.fill_between(times_s, in_flight, step="post", linewidth=0, alpha=0.6)
        panel.axvline(result["bound_s"], color="black", linestyle=":", linewidth=1)
        panel.set_title(f"{result['num_servers']:,} servers, {result['scene']}", loc="left", fontsize=9)
        panel.set_ylabel("in flight")
        panel.set_ylim(bottom=0)
        panel.margins(x=0)
    panels[-1].set_xlabel("seconds of the simulation")
    return figure


def main() -> None:
    """Simulate and report."""
    parser = make_parser(__doc__)
    parser.add_argument("--servers", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--slots", type=int, default=256, help="of each server (%(default)s)")
    parser.add_argument("--rows-per-slot", type=int, default=12, help="rows for each slot (%(default)s)")
    parser.add_argument("--scenes", type=int, nargs="+", default=[*range(len(SCENES))], help="which, from 0 (all)")
    parser.add_argument("--no-hedge", action="store_true", help="send no row a second time")
    add_plot_option(parser, "the requests in flight over time, a panel for each scene")
    options = parser.parse_args()
    gc.disable()  # to look for cycles among millions of events takes a tenth of the time, and there are none
    num_rows = options.servers * options.slots * options.rows_per_slot
    hedges = not options.no_hedge
    chosen = [SCENES[number] for number in options.scenes]
    results = [simulate(scene, options.servers, options.slots, num_rows, hedges=hedges) for scene in chosen]
    if options.plot is not None:
        save_figure(plot(results), options.plot)
    show("scale", options=options, columns=COLUMNS, rows=map(_row, results), results=results)


if __name__ == "__main__":
    main()
