"""Orders from another shell: followed within seconds, answered with what was done."""

from __future__ import annotations

import time
from typing import Any

import pytest
from slow_job import invoke

from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.state.orders import Answer, answer_order, give_order, open_orders, read_answer
from nemo_llm_stage.testing import Fault


@pytest.mark.slow
def test_a_job_is_paused_changed_resumed_and_drained(slow_job: Any) -> None:
    """The whole way, in one run."""
    process = slow_job.start()
    slow_job.wait_until_running()
    ordered_s = time.monotonic()
    assert "paused" in invoke("pause", slow_job.output).stdout
    assert time.monotonic() - ordered_s < 10  # about one second where the machine is not busy
    slow_job.wait_for(lambda state: state["state"] == "paused" and not state["num_in_flight"])
    num_sent = slow_job.server.stats.num_requests
    result = invoke("set", slow_job.output, "max_concurrent_requests=12", "max_failed_rows=7")
    assert "max_concurrent_requests is 12 now, max_failed_rows is 7 now." in result.stdout
    assert slow_job.server.stats.num_requests == num_sent
    assert "running" in invoke("resume", slow_job.output).stdout
    state = slow_job.wait_for(lambda state: state["num_in_flight"] > 4)
    assert state["limits"]["max_failed_rows"] == 7
    assert "draining" in invoke("drain", slow_job.output).stdout
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 4
    state = slow_job.state()
    assert state["state"] == "stopped"
    kinds = [event["kind"] for event in state["events"] if event["kind"] != "order"]  # that is of rows
    assert kinds == ["pause", "set", "resume", "drain", "stopped"]
    stats = slow_job.server.stats
    assert state["spending"]["num_answers"] == stats.num_requests  # what was in flight was waited for
    num_committed = 20 * state["num_committed"]
    num_more = stats.num_requests - num_committed
    more = f", {num_more} more rows are answered and" if num_more else ";"
    account = f"{num_committed} of 2,000 rows are committed{more}"
    assert account in output
    assert f"ordered to drain. {account}" in state["reason"]
    assert state["counters"]["num_rows"] == stats.num_requests


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("model=other", "model cannot be changed while a job runs"),
        ("max_requests=0", "max_requests is 0; it must be"),
        ("max_cost=-3", "max_cost is -3; it must be"),
        ("max_concurrent_requests=many", "max_concurrent_requests is 'many'"),
        ("max_concurrent_requests=auto", "A run that is begun anew follows the job file"),
    ],
)
def test_what_cannot_be_set_is_refused(job: Any, assignment: str, words: str) -> None:
    """Before an order is written; where no run goes on, too."""
    job.run()
    result = invoke("set", job.folder / "out", assignment)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize("kind", ["pause", "resume", "drain"])
def test_a_job_that_has_ended_takes_no_orders(job: Any, kind: str) -> None:
    """The message says how it stands."""
    job.run()
    result = invoke(kind, job.folder / "out")
    assert result.exit_code == 2
    assert "it is finished" in result.stderr


def test_what_is_set_while_no_run_goes_on_holds_for_the_next_one(job: Any) -> None:
    """And what else was ordered then is refused."""
    job.server.faults = [Fault(400, contains="row 3")]
    with pytest.raises(Exception, match="max_failed_rows = 1"):
        job.run(max_failed_rows=1)
    result = invoke("set", job.folder / "out", "max_failed_rows=50")
    assert "the next run follows this order" in result.stdout
    state = OutputFolder(str(job.folder / "out")).state
    late = give_order(state, "pause")
    assert job.run(max_failed_rows=1).counters.num_failed == 11
    answer = read_answer(state, late)
    assert answer is not None
    assert not answer.is_done
    assert open_orders(state) == []


def test_a_damaged_order_is_answered_and_harms_nobody(job: Any) -> None:
    """Whoever may write the folder may write nonsense."""
    job.run()
    state = OutputFolder(str(job.folder / "out")).state
    for name, text in (("a", b"{"), ("b", b"[]"), ("c", b'{"version": 1, "kind": "explode"}'), ("d", b"\xff")):
        state.make("orders")
        state.fs.pipe_file(state.path(f"orders/{name}.json"), text)
    assert job.run(restart=True).counters.num_rows == 40
    for name in "abcd":
        answer = read_answer(state, name)
        assert answer is not None
        assert not answer.is_done


def test_orders_are_taken_once_and_in_their_order(tmp_path: Any) -> None:
    """An answer closes an order."""
    state = OutputFolder(str(tmp_path / "out")).state
    first, second = give_order(state, "pause"), give_order(state, "resume")
    assert open_orders(state) == [first, second]
    answer_order(state, first, Answer(True, "paused"))
    assert open_orders(state) == [second]
    answer = read_answer(state, first)
    assert answer is not None
    assert answer.text == "paused"
