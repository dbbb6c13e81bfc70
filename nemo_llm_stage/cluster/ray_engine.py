"""
The Ray engine: a job's partitions through workers in Ray actors.

The driver assigns tasks and gets small reports back; rows and answers go from file to file in the worker. Losing a
worker or a node costs the rows in flight there and no more: another worker runs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nemo_llm_stage.cluster.connect import check_room, connect, import_ray
from nemo_llm_stage.cluster.placement import actors_for, node_of, place_at
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.errors import RunError
from nemo_llm_stage.worker.drive import WorkerLostError, drive
from nemo_llm_stage.worker.engine import Monitor, RunStatus
from nemo_llm_stage.worker.handouts import handout_of
from nemo_llm_stage.worker.host import WorkerHost, WorkerStatus
from nemo_llm_stage.worker.lost_answers import lost_answers_of
from nemo_llm_stage.worker.orders import NO_CONTROL, NO_ORDERS, Control, Orders
from nemo_llm_stage.worker.spec import WorkerSpec
from nemo_llm_stage.worker.task import PartitionReport, Task

STOP_TIMEOUT_S = 30.0


class PartitionActor(WorkerHost):
    """A worker in a Ray actor."""


@dataclass(frozen=True)
class RayEngine:
    """
    Runs partitions in a number of actors.

    Args:
        num_actors: Each holds one worker, with clients and limits of its own. None is one for each server, as far as
            there are CPUs.
        num_cpus_per_actor: CPUs that Ray reserves for each.
        address: See `connect`.
    """

    num_actors: int | None = 1
    num_cpus_per_actor: float = 0.5
    address: str | None = None

    def run(
        self, spec: WorkerSpec, partitions: Sequence[Partition], monitor: Monitor, control: Control = NO_CONTROL
    ) -> Iterator[PartitionReport]:
        """See `nemo_llm_stage.worker.engine.Engine.run`."""
        import_ray()
        import ray

        if not partitions:
            return
        monitor(RunStatus(phase="starting", waits_for="Ray", num_workers=self.num_actors or 1, num_workers_up=0))
        connect(self.address)
        num_actors = self.num_actors or actors_for(spec.stage.server_urls(), self.num_cpus_per_actor)
        check_room(num_actors, self.num_cpus_per_actor)
        handout = handout_of(spec, partitions, num_actors)
        num_actors = handout.num_workers
        specs = [spec.at(index, num_actors) for index in range(num_actors)]
        nodes = [node_of(one.stage.server_urls(one.place)) for one in specs]
        slots = [
            ActorSlot(PartitionActor, one, self.num_cpus_per_actor, node)
            for one, node in zip(specs, nodes, strict=True)
        ]
        try:
            yield from drive(slots, handout, monitor, control, on_lost=lost_answers_of(spec))
        except ray.exceptions.RayError as error:
            raise RunError(f"lost Ray: {_first_lines(error)} Run the same job again to resume it.") from error
        finally:
            with suppress(ray.exceptions.RayError):  # Ray itself may be gone, which must not hide what broke it
                _stop(slots)


class ActorSlot:
    """
    See `nemo_llm_stage.worker.drive.WorkerSlot`; the worker is an actor.

    Args:
        worker_class: A `WorkerHost`, or what is called like one.
        spec: What makes the worker.
        num_cpus: That Ray reserves for it.
        node_id: Where it should be, if there is room; None for anywhere.
    """

    def __init__(self, worker_class: type[Any], spec: Any, num_cpus: float, node_id: str | None) -> None:
        import ray

        remote: Any = ray.remote
        # Two calls at once: the call to stop must not wait for the pending `collect`.
        options = {"num_cpus": num_cpus, "max_concurrency": 2, "scheduling_strategy": place_at(node_id)}
        self._actor_class = remote(**options)(worker_class)
        self._spec = spec
        self._actor: Any = None
        self._is_up = False

    def start(self) -> Future[WorkerStatus]:
        """See `WorkerSlot`."""
        self.kill()
        self._is_up = False
        self._actor = self._actor_class.remote(self._spec)
        return self.collect((), 0, 0.0)

    def collect(
        self, tasks: Sequence[Task], num_rows_ahead: int, timeout_s: float, orders: Orders = NO_ORDERS
    ) -> Future[WorkerStatus]:
        """See `WorkerSlot`."""
        status: Future[WorkerStatus] = Future()
        call: Future[WorkerStatus] = self._actor.collect.remote(tasks, num_rows_ahead, timeout_s, orders).future()
        call.add_done_callback(lambda call: self._pass_on(call, status))
        return status

    def stop(self) -> None:
        """See `WorkerSlot`."""
        _stop([self])

    def begin_stop(self) -> Any:
        """Tell the worker to abandon its tasks; return the pending call, or None if the worker is not up."""
        return self._actor.stop.remote() if self._is_up else None

    def kill(self) -> None:
        """End the actor at once."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor)

    def _pass_on(self, call: Future[WorkerStatus], status: Future[WorkerStatus]) -> None:
        import ray

        error = call.exception()
        if error is None:
            self._is_up = True
            status.set_result(call.result())
        elif isinstance(error, ray.exceptions.RayActorError) and not error.actor_init_failed:
            status.set_exception(WorkerLostError(_first_lines(error, num=1)))
        elif isinstance(error, ray.exceptions.RayActorError | ray.exceptions.RayTaskError):
            status.set_exception(RunError(f"a worker broke: {error}"))
        else:
            status.set_exception(error)


def _stop(slots: Sequence[ActorSlot]) -> None:
    import ray

    calls = [call for slot in slots if (call := slot.begin_stop()) is not None]
    if calls:
        ray.wait(calls, num_returns=len(calls), timeout=STOP_TIMEOUT_S)
    for slot in slots:
        slot.kill()


def _first_lines(error: BaseException, num: int = 3) -> str:
    return " ".join(str(error).strip().splitlines()[:num])
