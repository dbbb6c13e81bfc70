from __future__ import annotations

import json
import socket

import pytest

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.testing import ServerConfig, SimulatedServer
from nemo_llm_stage.testing.simulator.generation import check_request, service_time_for


def send_chat(server: SimulatedServer, content: str, **more: object) -> socket.socket:
    """Send one request on a connection of its own and return it unread."""
    body = json.dumps({"model": "sim", "messages": [{"role": "user", "content": content}], **more}).encode()
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    return client


def read_status(client: socket.socket) -> int:
    """Read one answer and close the connection."""
    with client:
        return int(client.recv(65_536).split(b" ", 2)[1])


def wait_for(condition) -> None:
    while not condition():
        pass


def test_no_more_run_than_there_are_slots():
    """Of ten requests three run at a time; the others wait and all are answered."""
    with SimulatedServer(max_num_seqs=3, service_time_s=0.02) as server:
        clients = [send_chat(server, str(number)) for number in range(10)]
        assert [read_status(client) for client in clients] == [200] * 10
        stats = server.stats
    assert stats.max_running == 3
    assert stats.max_in_flight == 10
    assert stats.busy_slot_s >= 10 * 0.018


def test_waiting_requests_are_served_in_the_order_they_came():
    """First come, first served."""
    with SimulatedServer(max_num_seqs=1, service_time_s=0.01) as server:
        clients = []
        for number in range(5):
            clients.append(send_chat(server, str(number)))
            wait_for(lambda: server.stats.num_requests == len(clients))
        for client in clients:
            read_status(client)
        starts = [request.started_monotonic_s for request in server.requests]
    assert sorted(starts) == starts


def test_a_full_queue_refuses_with_503():
    """With max_queue=1 and one slot, the third request is refused at once."""
    with SimulatedServer(max_num_seqs=1, max_queue=1, service_time_s=0.2) as server:
        clients = []
        for number in range(3):
            clients.append(send_chat(server, str(number)))
            wait_for(lambda: server.stats.num_requests == len(clients))
        assert read_status(clients.pop()) == 503
        assert [read_status(client) for client in clients] == [200, 200]
        assert server.stats.by_status == {503: 1, 200: 2}


@pytest.mark.parametrize("scheduler", ["slots", "batching"])
def test_a_client_that_leaves_frees_its_slot(scheduler):
    """The next request starts at once; what was generated is wasted."""
    with SimulatedServer(
        scheduler=scheduler, max_num_seqs=1, service_time_s=60, answer_tokens=10_000, step_base_s=0.001
    ) as server:
        with send_chat(server, "first"):
            wait_for(lambda: server.stats.running == 1)
            waiting = send_chat(server, "second")
            wait_for(lambda: server.stats.waiting == 1)
        wait_for(lambda: server.stats.num_aborted == 1)
        wait_for(lambda: (server.stats.running, server.stats.waiting) == (1, 0))
        waiting.close()
        wait_for(lambda: server.stats.in_flight == 0)
        assert server.stats.running == 0


def test_service_times_vary_by_prompt_and_repeat():
    """Lognormal times follow from the seed and the prompt alone; half of them lie below the median."""
    config = ServerConfig(service_time_s=0.02, service_time_sigma=1.0)
    requests = [check_request({"prompt": str(number)}, is_chat=False, config=config) for number in range(200)]
    times = [service_time_for(request, config) for request in requests]
    assert times == [service_time_for(request, config) for request in requests]
    assert 80 <= sum(time_s < 0.02 for time_s in times) <= 120
    assert max(times) > 10 * min(times)


def test_service_time_can_be_a_function_of_the_body():
    """In this process the time may be anything."""
    with SimulatedServer(
        service_time_s=lambda body: 0.05 if body["messages"][0]["content"] == "long" else 0.0
    ) as server:
        clients = [send_chat(server, "long"), send_chat(server, "short")]
        assert [read_status(client) for client in clients] == [200, 200]
        assert server.stats.busy_slot_s > 0.04


def test_occupancy_tells_how_busy_the_slots_were():
    """A queue that is never empty keeps every slot busy up to the last start."""
    with SimulatedServer(max_num_seqs=4, service_time_s=0.01) as server:
        for client in [send_chat(server, str(number)) for number in range(100)]:
            read_status(client)
        stats = server.stats
    assert stats.occupancy_before_tail > 0.8
    assert 0 < stats.occupancy <= 1
    assert stats.timeline == sorted(stats.timeline)
    assert max(running for _, _, running in stats.timeline) == 4


def test_one_slot_alone_is_a_quarter_of_four():
    """Requests one after another use one slot of four."""
    with SimulatedServer(max_num_seqs=4, service_time_s=0.02) as server:
        for number in range(10):
            read_status(send_chat(server, str(number)))
        assert 0 < server.stats.occupancy <= 0.25


@pytest.mark.parametrize(
    "settings",
    [{"max_num_seqs": 0}, {"scheduler": "fifo"}, {"speedup": 0}, {"scheduler": "batching", "num_kv_blocks": 10}],
)
def test_settings_that_cannot_work_are_refused(settings):
    """Before anything is opened, with the reason."""
    with pytest.raises(ConfigError):
        SimulatedServer(**settings)
