"""
The stage as a Ray Data transform: Dataset in, Dataset out.

Knows Ray Data's blocks and actors; the rest is the stage's.

What of ray.data.llm maps to what here: README, "Coming from …".
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nemo_llm_stage.stage.stage import Stage

if TYPE_CHECKING:
    import ray.data

CALLS_PER_ACTOR = 8
"""Blocks that an actor works on at once, so that no block's last rows leave permits unused."""

ROWS_PER_PERMIT = 8
"""Fewer rows at hand than this for each permit leave permits unused when a block has a few slow rows."""

NUM_CPUS_PER_ACTOR = 0.5

_logger = logging.getLogger("nemo_llm_stage")


def map_dataset(
    stage: Stage,
    dataset: ray.data.Dataset,
    *,
    num_actors: int = 1,
    num_cpus_per_actor: float | None = None,
    rows_per_block: int | None = None,
    verbose: bool = False,
) -> ray.data.Dataset:
    """
    Return `dataset` with the stage's columns: the same rows, each with its own answer.

    Only `keep_if` drops rows, and only `explode` makes more of them. Blocks are cut for the actors first
    (``repartition``), which also keeps Ray Data from fusing them with a read. They are small, and so would be the
    files: write with ``min_rows_per_file``. Settings that cannot keep the limit full, or that leave no CPU to read
    with, are told in one line on the logger ``nemo_llm_stage``.

    Args:
        stage: What to ask; each actor holds one copy with a client and a limit of its own.
        dataset: With the columns that the prompt uses.
        num_actors: Each keeps up to the client's ``max_concurrent_requests`` in flight at each server.
        num_cpus_per_actor: Reserved in Ray. None reserves 0.5, and nothing on a cluster with fewer than 4 CPUs for each
            actor: reads and writes need whole CPUs, and would wait for ever for one.
        rows_per_block: None takes twice the limit, at least 64: with 8 blocks at once an actor has 16 rows for each
            permit at hand.
        verbose: Whether Ray Data shows its plans and its progress, which take dozens of lines. False quiets them for
            this dataset, and the logger ``ray.data`` below a warning.

    Raises:
        InputError: The dataset's schema is known and lacks a column that the prompt needs.
    """
    import ray.data

    if not verbose:
        quiet(dataset)
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None:
        stage.check_columns(schema.names)
    limit = stage.max_concurrent_requests
    num_rows = rows_per_block or max(64, 2 * limit)
    total_cpus = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    if num_cpus_per_actor is None:
        num_cpus_per_actor = NUM_CPUS_PER_ACTOR if total_cpus >= 4 * num_actors else 0.0
    _advise(num_rows, limit, num_actors * num_cpus_per_actor, total_cpus)
    return dataset.repartition(target_num_rows_per_block=num_rows).map_batches(
        StageActor,
        fn_constructor_kwargs={"stage": stage},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        udf_modifying_row_count=stage.changes_num_rows,
        num_cpus=num_cpus_per_actor,
        compute=ray.data.ActorPoolStrategy(
            size=num_actors,
            max_concurrent_calls_per_actor=CALLS_PER_ACTOR,
            enable_true_multi_threading=True,
            max_tasks_in_flight_per_actor=CALLS_PER_ACTOR + 1,
        ),
    )


def quiet(dataset: ray.data.Dataset) -> None:
    """Have Ray Data show neither plans nor progress of `dataset` and of what is made from it."""
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    logger = logging.getLogger("ray.data")
    logger.setLevel(max(logger.level, logging.WARNING))


def _advise(num_rows: int, limit: int, num_cpus: float, total_cpus: float) -> None:
    if num_rows * CALLS_PER_ACTOR < ROWS_PER_PERMIT * limit:
        _logger.warning(
            "%d rows per block, %d blocks at once, cannot keep %d requests in flight; rows_per_block=%d can.",
            num_rows,
            CALLS_PER_ACTOR,
            limit,
            2 * limit,
        )
    if num_cpus > total_cpus - 1:
        _logger.warning(
            "the actors reserve %g of the cluster's %g CPUs, and a read needs a whole one: it would wait for ever; "
            "lower num_actors or num_cpus_per_actor (a client needs little).",
            num_cpus,
            total_cpus,
        )


class StageActor:
    """A stage in a Ray actor; Ray Data calls it from several threads at once."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __call__(self, batch: pa.Table) -> Any:
        """Return the block with the stage's columns."""
        return self._stage.process_block(batch)
