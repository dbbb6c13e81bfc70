from __future__ import annotations

import http.client
import json
import socket

import pytest

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer

STREAM = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "stream": True}
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("status", [401, 408, 429, 500, 503, 529])
def test_a_status_is_answered_without_work(status, http_to):
    """An HTTP status comes at once, with an error body, and the connection goes on."""
    with SimulatedServer(faults=[Fault(status)], service_time_s=10) as server:
        assert status == http_to(server).chat().json["error"]["code"]
        assert {status: 1} == server.stats.by_status
        assert server.stats.max_running == 0


def test_retry_after_is_sent_if_set(http_to):
    """A 429 with and without Retry-After."""
    with SimulatedServer(faults=[Fault(429, retry_after_s=1.5)]) as server:
        assert http_to(server).chat().headers["retry-after"] == "1.5"
        server.faults = [Fault(429)]
        assert "retry-after" not in http_to(server).chat().headers


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("drop", http.client.RemoteDisconnected),
        ("reset", ConnectionResetError),
        ("half_body", http.client.IncompleteRead),
    ],
)
def test_broken_connections(kind, error, http_to):
    """The client gets nothing, or half of it; the server counts the work as wasted."""
    with SimulatedServer(faults=[Fault(kind)]) as server:
        with pytest.raises(error):
            http_to(server).chat()
        assert server.stats.by_status == {0: 1}
        assert server.stats.wasted_tokens > 0 == server.stats.output_tokens


def test_wrong_length_gives_a_body_cut_in_half(http_to):
    """Content-Length is too small: what the client takes for the body is no JSON."""
    with SimulatedServer(faults=[Fault("wrong_length")]) as server, pytest.raises(json.JSONDecodeError):
        assert http_to(server).chat().json


def test_html_instead_of_json(http_to):
    """A proxy's sign-in page with status 200."""
    with SimulatedServer(faults=[Fault("html")]) as server:
        for more in ({}, {"stream": True}):
            reply = http_to(server).chat(**more)
            assert (reply.status, reply.headers["content-type"]) == (200, "text/html")
            assert reply.raw.startswith(b"<html>")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("abort", ("", "abort")), ("content_filter", (None, "content_filter")), ("null_content", (None, "stop"))],
)
def test_200_is_not_success(kind, expected, http_to):
    """The HTTP is right and the answer is none."""
    with SimulatedServer(faults=[Fault(kind)]) as server:
        choice = http_to(server).chat().json["choices"][0]
        assert expected == (choice["message"]["content"], choice["finish_reason"])
        streamed = http_to(server).events(CHAT, STREAM)
        assert expected[1] == streamed[-1]["choices"][0]["finish_reason"]


def test_empty_choices(http_to):
    """200 with nothing in it."""
    with SimulatedServer(faults=[Fault("empty_choices")]) as server:
        assert http_to(server).chat().json["choices"] == []


def test_broken_json_answers(http_to):
    """A text that should follow a schema and does not."""
    with SimulatedServer(faults=[Fault("broken_json")]) as server, pytest.raises(json.JSONDecodeError):
        json.loads(http_to(server).chat(response_format={"type": "json_object"}).text)


@pytest.mark.parametrize("kind", ["hang", "endless_stream"])
def test_an_answer_that_never_ends(kind, http_to):
    """The client must give up by itself; the server counts it as aborted."""
    with SimulatedServer(faults=[Fault(kind)]) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            body = json.dumps(STREAM).encode()
            client.sendall(b"POST %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
            while server.stats.in_flight == 0:
                pass
            if kind == "endless_stream":
                assert client.recv(100)
        while server.stats.in_flight:
            pass
        assert server.stats.num_aborted == 1


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_slow_drip_is_whole_in_the_end(more, http_to):
    """The answer comes in small pieces, and it is the right one."""
    with SimulatedServer(faults=[Fault("slow_drip", seconds=0.05)]) as server:
        reply = http_to(server).chat(**more)
        assert reply.status == 200
        assert server.stats.by_status[200] == 1
        assert server.stats.wasted_tokens == 0


def test_a_prompt_can_be_picked_by_its_text(http_to):
    """Only prompts that contain the text are hit."""
    with SimulatedServer(faults=[Fault(500, contains="poison")]) as server:
        assert [http_to(server).chat(content).status for content in ("a poison pill", "water")] == [500, 200]


def test_only_the_first_attempts_fail(http_to):
    """With attempts=2 the third time succeeds."""
    with SimulatedServer(faults=[Fault(500, attempts=2)]) as server:
        assert [http_to(server).chat().status for _ in range(3)] == [500, 500, 200]


def test_rates_add_up_and_repeat(http_to):
    """Who is hit follows from the seed, the prompt and the attempt; the rates of several faults add up."""
    faults = [Fault(429, rate=0.2), Fault(500, rate=0.1)]
    runs = []
    for seed in (0, 0, 1):
        with SimulatedServer(faults=faults, seed=seed) as server:
            http_connection = http_to(server)
            runs.append([http_connection.chat(str(number)).status for number in range(500)])
    assert runs[0] == runs[1] != runs[2]
    assert 70 <= runs[0].count(429) <= 130
    assert 30 <= runs[0].count(500) <= 70


def test_faults_can_begin_and_end(http_to):
    """from_s and until_s count from the moment the faults were set."""
    with SimulatedServer(faults=[Fault(503, until_s=0.3)]) as server:
        http_connection = http_to(server)
        assert http_connection.chat().status == 503
        while http_connection.chat().status == 503:
            pass
        server.faults = [Fault(503, from_s=1e6)]
        assert http_connection.chat().status == 200


def test_faults_can_be_switched_over_http(http_to):
    """POST /faults takes a list of objects, and refuses what is no fault."""
    with SimulatedServer() as server:
        http_connection = http_to(server)
        assert http_connection.ask("POST", "/faults", [{"kind": 429, "rate": 1.0}]).status == 200
        assert http_connection.chat().status == 429
        assert http_connection.ask("POST", "/faults", [{"kind": "nonsense"}]).status == 400


def test_unknown_kinds_and_rates_are_refused():
    """A typo is told at once."""
    with pytest.raises(ConfigError, match="no fault is called 'hangs'"):
        Fault("hangs")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Fault(429, rate=20)


def test_faults_can_be_written_as_text():
    """The form of the command line."""
    assert Fault.of("429:0.2") == Fault(429, rate=0.2)
    assert Fault.of("exit@a: b") == Fault("exit", contains="a: b")
    with pytest.raises(ConfigError, match="of the form"):
        Fault.of("429:often")


def test_a_dropped_row_is_answered_the_second_time(http_to):
    """After a fault the same request gets its usual answer."""
    with SimulatedServer(faults=[Fault("drop", attempts=1)]) as server:
        with pytest.raises(ConnectionError):
            http_to(server).chat()
        assert expected_answer([{"role": "user", "content": "hello"}]) == http_to(server).chat().text
        assert (server.stats.num_duplicates, server.stats.num_repaid) == (1, 0)
