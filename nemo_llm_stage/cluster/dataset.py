"""
The stage as a Ray Data transform: Dataset in, Dataset out.

Knows Ray Data's blocks and actors; the rest is the stage's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nemo_llm_stage.stage.stage import LLMStage

if TYPE_CHECKING:
    import ray.data

CALLS_PER_ACTOR = 8
"""Blocks that an actor works on at once, so that no block's last rows leave permits unused."""


def map_dataset(
    stage: LLMStage,
    dataset: ray.data.Dataset,
    *,
    num_actors: int = 1,
    num_cpus_per_actor: float = 0.5,
    rows_per_block: int | None = None,
) -> ray.data.Dataset:
    """
    Return `dataset` with the stage's columns: the same rows, each with its own answer.

    Blocks are cut for the actors first (``repartition``), which also keeps Ray Data from fusing them with a read.

    Args:
        stage: What to ask; each actor holds one copy with a client and a limit of its own.
        dataset: With the columns that the prompt uses.
        num_actors: Each keeps up to the client's ``max_concurrent_requests`` in flight.
        num_cpus_per_actor: Reserved in Ray.
        rows_per_block: None takes twice the limit, at least 64: with 8 blocks at once an actor has 16 rows for each
            permit at hand.

    Raises:
        InputError: The dataset's schema is known and lacks a column that the prompt needs.
    """
    import ray.data

    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None:
        stage.check_columns(schema.names)
    limit = int(getattr(stage.client, "max_concurrent_requests", 1))
    return dataset.repartition(target_num_rows_per_block=rows_per_block or max(64, 2 * limit)).map_batches(
        StageActor,
        fn_constructor_kwargs={"stage": stage},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        udf_modifying_row_count=False,
        num_cpus=num_cpus_per_actor,
        compute=ray.data.ActorPoolStrategy(
            size=num_actors,
            max_concurrent_calls_per_actor=CALLS_PER_ACTOR,
            enable_true_multi_threading=True,
            max_tasks_in_flight_per_actor=CALLS_PER_ACTOR + 1,
        ),
    )


class StageActor:
    """A stage in a Ray actor; Ray Data calls it from several threads at once."""

    def __init__(self, stage: LLMStage) -> None:
        self._stage = stage

    def __call__(self, batch: pa.Table) -> Any:
        """Return the block with the stage's columns."""
        return self._stage.process(batch)
