"""How much second sends may take, and whose answers count."""

from __future__ import annotations

import pytest

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.client.throttle import Spending
from nemo_llm_stage.core import Completion, RowResult, Usage
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.worker.rowset import RowSet
from nemo_llm_stage.worker.second_sends import Allotment, Pair, SecondSends, settled
from nemo_llm_stage.worker.slowness import Slowness
from nemo_llm_stage.worker.task import OverdueRequest, PieceReport

PART = Partition(0, "a.parquet", "parquet", 0, 10, 10)


def answered(*, own_tokens: int, known_tokens: int = 0, is_failed: bool = False) -> PieceReport:
    """Return the report of a second task that had one column, and asked for another one."""
    known = RowResult("a", completion=Completion(("a",), usage=Usage(0, known_tokens)), attempts=1)
    error = "parse: no" if is_failed else None
    own = RowResult(None if is_failed else "b", error, Completion(("b",), usage=Usage(0, own_tokens)), attempts=1)
    whole, sent = Counters(), Counters()
    whole.count({"a": known, "b": own})
    sent.count({"b": own})
    return PieceReport(PART, whole, "1-second", 2, sent=sent)


def test_second_sends_take_a_fiftieth_of_the_tokens() -> None:
    """A request whose answer is not known counts as one that is usual."""
    allotment = Allotment(num_rows=1000)
    allotment.note_paid(Spending(num_requests=200, num_answers=200, input_tokens=15_000, output_tokens=5_000))
    pairs = []
    while allotment.has_room_for(1):
        pairs.append(Pair(first=1, place=len(pairs), second=2 + len(pairs)))
        allotment.begin(pairs[-1])
    assert len(pairs) == 4  # of 100 tokens each
    pairs[0].report = answered(own_tokens=10)
    allotment.end(pairs[0])
    assert not allotment.has_room_for(1)
    pairs[1].report = answered(own_tokens=90)
    allotment.end(pairs[1])
    assert allotment.has_room_for(1)  # 200 of 400 are taken


def test_a_row_that_lacks_several_answers_takes_as_many() -> None:
    allotment = Allotment(num_rows=1000)
    allotment.note_paid(Spending(num_answers=150, output_tokens=15_000))
    assert allotment.has_room_for(3)
    assert not allotment.has_room_for(4)


def test_rows_count_while_tokens_are_not_known() -> None:
    """E.g. with a client that tells none."""
    allotment = Allotment(num_rows=100)
    for place in range(2):
        assert allotment.has_room_for(1)
        allotment.begin(Pair(1, place, 2 + place))
    assert not allotment.has_room_for(1)


@pytest.mark.parametrize("paid", [Spending(), Spending(num_answers=10_000, output_tokens=10_000_000)])
def test_off_is_none_at_all(paid: Spending) -> None:
    seconds = SecondSends(0)
    seconds.note_paid(paid)
    assert not seconds.may_begin


def test_a_row_too_dear_makes_room_for_one_that_lacks_less() -> None:
    """The longest waiting first, of those that the allotment has room for."""
    seconds = SecondSends(1000)
    seconds.note_paid(Spending(num_answers=100, output_tokens=10_000))
    long, short = OverdueRequest(1, 0, "u", 9.0, num_missing=3), OverdueRequest(1, 1, "u", 5.0, num_missing=2)
    seconds.note("a", (long, short))
    assert seconds.next_overdue() == short


def test_an_answer_that_was_too_late_costs_what_it_asked_for() -> None:
    """What it was told of is the first task's own."""
    pair = Pair(1, 0, 2, report=answered(own_tokens=7, known_tokens=100))
    [late] = settled(pair, RowSet(()))
    assert (late.num_second_sends, late.num_attempts, late.num_wasted_attempts) == (1, 1, 1)
    assert (late.output_tokens, late.wasted_output_tokens, late.num_rows) == (7, 7, 0)
    first, cancelled = settled(pair, RowSet.of([0]))
    assert (first.num_rows, first.num_attempts, first.output_tokens) == (1, 2, 107)
    assert (cancelled.num_second_sends, cancelled.num_attempts) == (1, 1)


def test_a_second_task_that_failed_leaves_the_row_to_the_first() -> None:
    pair = Pair(1, 0, 2, report=answered(own_tokens=7, is_failed=True))
    assert not pair.is_answered
    assert pair.attempts == ()
    assert pair.counters_alone.num_rows == 0


def test_only_servers_that_are_asked_for_the_same_are_compared() -> None:
    """A large model is no slow server because another column's is small."""
    small = [EndpointStatus(f"http://small-{n}", num_answered=9, in_flight=1, latencies=(0,) * 20 + (9,)) for n in "ab"]
    large = [
        EndpointStatus(f"http://large-{n}", num_answered=9, in_flight=1, latencies=(0,) * at + (9,), group=1)
        for n, at in (("a", 40), ("b", 40), ("c", 60))
    ]
    slowness = Slowness()
    slowness.look([*small, *large])
    assert slowness.has_quick([*small, *large])
    assert slowness.has_quick([large[0]])
    assert not slowness.has_quick([*small, large[2]])
