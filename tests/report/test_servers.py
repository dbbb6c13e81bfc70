"""A server that is far worse than the others is named at the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from nemo_llm_stage.client.endpoint_status import EndpointStatus, bucket_of
from nemo_llm_stage.report.servers import note_on, servers


def status(name: str, latency_s: float = 1.0, num_answered: int = 100, num_failed: int = 0) -> EndpointStatus:
    """A server whose answers all took so long."""
    latencies = (*[0] * bucket_of(latency_s), num_answered)
    return EndpointStatus(
        f"http://{name}/v1", "healthy", num_answered=num_answered, num_failed=num_failed, latencies=latencies
    )


CASES = [
    (status("x"), ""),
    (status("x", latency_s=4.0), ""),
    (status("x", latency_s=10.0), "11 times slower than the others"),
    (status("x", latency_s=10.0, num_answered=3), ""),
    (status("x", num_failed=5), ""),
    (status("x", num_failed=100), "fails 50% of its requests, the others 1.0%"),
    (replace(status("x"), state="resting", reason="connection_failed: refused"), "resting: connection_failed: refused"),
]


@pytest.mark.parametrize(("endpoint", "note"), CASES)
def test_what_stands_out_is_told(endpoint: EndpointStatus, note: str) -> None:
    """5 times slower, 10 times as many failures, or resting at the end."""
    others = [status(str(number), num_answered=99, num_failed=1) for number in range(4)]
    assert note_on(endpoint, [endpoint, *others]) == note


def test_the_one_that_stands_out_comes_first() -> None:
    """With what each has answered."""
    table = servers([status("a"), status("b", num_answered=300), status("slow", latency_s=20.0, num_answered=20)])
    assert table is not None
    console = Console(width=150)
    with console.capture() as capture:
        console.print(table)
    text = capture.get()
    assert text.index("http://slow") < text.index("http://b") < text.index("http://a")
    assert "300" in text


def test_one_server_alone_is_not_compared() -> None:
    """It has no others."""
    assert servers([status("a")]) is None
