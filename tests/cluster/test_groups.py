"""Many partitions travel in few blocks, and the last ones alone."""

from __future__ import annotations

from nemo_llm_stage.cluster.engine import shrinking_groups
from nemo_llm_stage.dataset.plan import Partition

PARTITIONS = [Partition(index, "a.parquet", "parquet", index, index + 1, 1) for index in range(100_000)]


def test_groups_hold_every_partition_once_and_shrink_to_single_ones() -> None:
    """A hundred thousand of them in about two thousand blocks."""
    groups = list(shrinking_groups(PARTITIONS, num_calls=24))
    assert [partition for group in groups for partition in group] == PARTITIONS
    assert len(groups) < 2000
    sizes = [len(group) for group in groups]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-100:] == [1] * 100


def test_few_partitions_are_groups_of_their_own() -> None:
    """No actor gets two while another has none."""
    assert [len(group) for group in shrinking_groups(PARTITIONS[:20], num_calls=6)] == [1] * 20
