"""A limit that moved by itself is told: where it ended, how it was found, and what held the work back."""

from __future__ import annotations

from dataclasses import replace

from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.report.limits import found_limit, held_back_now

STATUS = EndpointStatus(
    "http://a/v1",
    limit=135,
    mode="metrics",
    bottleneck="input",
    moved="43 wait at the server, 7 are enough",
    held_s={"server": 80, "input": 15, "unknown": 5},
)


def test_what_was_found_is_told() -> None:
    """With the part of the time for which something held the work back."""
    found = found_limit([STATUS])
    assert found is not None
    assert found[0] == 135
    assert "by the server's metrics" in found[1]
    assert "43 wait at the server" in found[1]
    assert "the server, which is full (80% of the time), too few rows to send (15% of the time)" in found[1]


def test_several_limits_are_summed() -> None:
    """One server that has none of its own is left out."""
    other = replace(STATUS, url="http://b/v1", limit=65, mode="throughput", held_s={})
    found = found_limit([STATUS, other, replace(STATUS, url="http://c/v1", limit=None)])
    assert found is not None
    assert found[0] == 200
    assert "metrics and by the work per second" in found[1]


def test_a_number_that_was_set_is_not_told() -> None:
    """Nor a server without a limit."""
    assert found_limit([replace(STATUS, mode="fixed")]) is None
    assert found_limit([]) is None


def test_what_holds_the_work_back_now() -> None:
    """Nothing where that is not known."""
    assert held_back_now("kv cache", "it is full") == "the server's KV cache, which is full: it is full"
    assert held_back_now(None, "x") == held_back_now("unknown", "x") == ""
