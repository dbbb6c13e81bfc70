"""
The Ray engine: a job's partitions through workers in Ray actors, by Ray Data.

Only names of partitions and small reports travel through Ray; rows and answers go straight from file to file in the
worker. Losing a node costs the rows in flight there and no more.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import pyarrow as pa

from nemo_llm_stage import errors
from nemo_llm_stage.cluster.connect import check_room, connect, quiet_ray_data
from nemo_llm_stage.core import Counters, sum_counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.job.engine import TICK_S, Monitor, Status
from nemo_llm_stage.job.worker import PartitionReport, PartitionWorker, WorkerSpec

REPORT_INTERVAL_S = 1.0
STOP_TIMEOUT_S = 30.0
_STALE_S = 10.0


@dataclass(frozen=True)
class RayEngine:
    """
    Runs partitions in a fixed pool of actors.

    Args:
        num_actors: Each holds one client with a limit of its own.
        num_cpus_per_actor: Reserved in Ray; a client needs little.
        address: See `connect`.
    """

    num_actors: int = 1
    num_cpus_per_actor: float = 0.5
    address: str | None = None

    def run(self, spec: WorkerSpec, partitions: Sequence[Partition], monitor: Monitor) -> Iterator[PartitionReport]:
        """See `nemo_llm_stage.job.engine.Engine.run`."""
        import ray

        if not partitions:
            return
        connect(self.address)
        check_room(self.num_actors, self.num_cpus_per_actor)
        actor_class: Any = ray.remote(num_cpus=0, max_restarts=-1)(Coordinator)
        coordinator = actor_class.remote()
        reports: queue.Queue[bytes | BaseException | None] = queue.Queue()
        thread = threading.Thread(
            target=self._drain, args=(spec, partitions, coordinator, reports), name="ray-data", daemon=True
        )
        thread.start()
        try:
            yield from _follow(reports, coordinator, monitor)
        except ray.exceptions.RayError as error:
            raise errors.RunError(f"lost Ray: {_first_lines(error)} Run the same job again to go on.") from error
        finally:
            with suppress(ray.exceptions.RayError):  # Ray itself may be gone, which must not hide what broke it
                ray.get(coordinator.stop.remote())
                thread.join(timeout=STOP_TIMEOUT_S)
                ray.kill(coordinator)

    def _drain(
        self, spec: WorkerSpec, partitions: Sequence[Partition], coordinator: Any, reports: queue.Queue[Any]
    ) -> None:
        """Run the dataset and pass each report on, then None, or what broke it."""
        try:
            for batch in self._dataset(spec, partitions, coordinator).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for report in batch.column("report").to_pylist():
                    reports.put(report)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for the reports
            reports.put(error)
        else:
            reports.put(None)

    def _dataset(self, spec: WorkerSpec, partitions: Sequence[Partition], coordinator: Any) -> Any:
        import ray.data

        quiet_ray_data()
        num_calls = spec.num_partitions_at_once
        num_actors = min(self.num_actors, len(partitions))
        groups = [
            pa.table({"partition": [orjson.dumps(asdict(partition)) for partition in group]})
            for group in shrinking_groups(partitions, num_calls * num_actors)
        ]
        return ray.data.from_arrow(groups).map_batches(
            PartitionActor,
            fn_constructor_kwargs={"spec": spec, "coordinator": coordinator},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=self.num_cpus_per_actor,
            compute=ray.data.ActorPoolStrategy(
                size=num_actors,
                max_concurrent_calls_per_actor=num_calls,
                enable_true_multi_threading=True,
                max_tasks_in_flight_per_actor=num_calls + 1,
            ),
        )


def shrinking_groups(partitions: Sequence[Partition], num_calls: int) -> Iterator[Sequence[Partition]]:
    """
    Yield `partitions` in groups, large ones first and single ones at the end.

    A block costs Ray Data's driver about 2 ms, so 10^5 partitions must not be as many blocks; and at the end of a job
    no actor may sit on a group while others are idle. A group is an eighth of each call's share of what is left.

    Source: guided self-scheduling, Polychronopoulos and Kuck, IEEE Trans. Computers C-36 (12), 1987.
    """
    start = 0
    while start < len(partitions):
        size = max(1, (len(partitions) - start) // (8 * num_calls))
        yield partitions[start : start + size]
        start += size


def _error_report(error: BaseException) -> bytes:
    if isinstance(error, errors.LLMStageError):
        return orjson.dumps({"error": type(error).__name__, "message": str(error)})
    text = "".join(traceback.format_exception(error))
    return orjson.dumps({"error": "RunError", "message": f"a worker broke: {text}"})


class PartitionActor:
    """A worker in a Ray actor; Ray Data calls it from several threads at once."""

    def __init__(self, spec: WorkerSpec, coordinator: Any) -> None:
        self._worker = PartitionWorker(spec)
        self._coordinator = coordinator
        self._id = uuid.uuid4().hex
        self._unreported: dict[int, Counters] = {}
        threading.Thread(target=self._report_forever, name="report", daemon=True).start()

    def __call__(self, batch: Any) -> dict[str, list[bytes]]:
        """Run the partitions that `batch` names; return a report for each, up to the first that broke and its error."""
        reports: list[bytes] = []
        indexes: list[int] = []
        try:
            for text in batch.column("partition").to_pylist():
                report = self._worker.run(Partition(**orjson.loads(text)))
                reports.append(orjson.dumps(asdict(report)))
                indexes.append(report.index)
                self._unreported[report.index] = report.counters
        except BaseException as error:  # noqa: BLE001 - told to the driver, which stops the run
            reports.append(_error_report(error))
        for index in indexes:
            del self._unreported[index]
        return {"report": reports}

    def _report_forever(self) -> None:
        import ray

        while True:
            time.sleep(REPORT_INTERVAL_S)
            known = {**self._unreported, **self._worker.open}
            parts = {index: asdict(counters) for index, counters in known.items()}
            try:
                is_stopped = ray.get(
                    self._coordinator.report.remote(self._id, parts, self._worker.num_in_flight, self._worker.trouble)
                )
            except ray.exceptions.RayError:  # the coordinator is being restarted or the job is over
                continue
            if is_stopped:
                self._worker.stop()
                return


class Coordinator:
    """Where a run's workers meet its driver: counts one way, the word to stop the other."""

    def __init__(self) -> None:
        self._is_stopped = False
        self._parts: dict[int, Counters] = {}
        self._workers: dict[str, tuple[float, int, str | None]] = {}

    def report(self, worker_id: str, parts: dict[int, dict[str, Any]], num_in_flight: int, trouble: str | None) -> bool:
        """Take a worker's counts of its open partitions; whether it shall stop."""
        self._parts.update({index: Counters(**part) for index, part in parts.items()})
        self._workers[worker_id] = (time.monotonic(), num_in_flight, trouble)
        return self._is_stopped

    def snapshot(self, committed: list[int]) -> Status:
        """Forget the partitions that were just committed; return how the others stand."""
        for index in committed:
            self._parts.pop(index, None)
        oldest = time.monotonic() - _STALE_S
        alive = [worker for worker in self._workers.values() if worker[0] > oldest]
        trouble = next((trouble for _, _, trouble in alive if trouble), None)
        return Status(sum_counters(self._parts.values()), sum(num for _, num, _ in alive), trouble)

    def stop(self) -> None:
        """Tell every worker, at its next report, to abandon what it runs."""
        self._is_stopped = True


def _follow(reports: queue.Queue[Any], coordinator: Any, monitor: Monitor) -> Iterator[PartitionReport]:
    import ray

    committed: list[int] = []
    next_tick = time.monotonic() + TICK_S
    while True:
        try:
            report = reports.get(timeout=max(0.0, next_tick - time.monotonic()))
        except queue.Empty:
            monitor(ray.get(coordinator.snapshot.remote(committed)))
            committed = []
            next_tick = time.monotonic() + TICK_S
            continue
        if report is None:
            return
        if isinstance(report, BaseException):
            raise errors.RunError(f"Ray gave the job up: {_first_lines(report)}") from report
        fields = orjson.loads(report)
        if "error" in fields:
            raise getattr(errors, fields["error"])(fields["message"])
        fields["counters"] = Counters(**fields["counters"])
        committed.append(fields["index"])
        yield PartitionReport(**fields)


def _first_lines(error: BaseException, num: int = 3) -> str:
    return " ".join(str(error).strip().splitlines()[:num])
