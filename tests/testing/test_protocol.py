from __future__ import annotations

import http.client
import socket

import pytest

from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer

BODY = b'{"model":"sim","messages":[{"role":"user","content":"%d"}]}'


def raw_request(number: int) -> bytes:
    body = BODY % number
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def read_until(connection: socket.socket, num_answers: int) -> bytes:
    received = b""
    while received.count(b'"usage"') < num_answers:
        received += connection.recv(65_536)
    return received


def test_many_requests_share_one_connection(http_to):
    """A connection stays open for the next request."""
    with SimulatedServer() as server:
        http_connection = http_to(server)
        for number in range(5):
            assert http_connection.chat(str(number)).status == 200
        assert server.stats.num_connections == 1


def test_pipelined_requests_are_answered_in_order():
    """Requests sent without waiting get their own answers, one after another."""
    with (
        SimulatedServer(service_time_s=0.001) as server,
        socket.create_connection(("127.0.0.1", server.port)) as client,
    ):
        client.sendall(b"".join(raw_request(number) for number in range(20)))
        received = read_until(client, 20).decode()
    answers = [expected_answer([{"role": "user", "content": str(number)}]) for number in range(20)]
    places = [received.find(answer) for answer in answers]
    assert sorted(places) == places
    assert -1 not in places
    assert server.stats.max_in_flight == 1


def test_a_request_may_come_byte_by_byte():
    """It does not matter how TCP cuts a request."""
    with SimulatedServer() as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in raw_request(7):
            client.sendall(bytes([byte]))
        assert expected_answer([{"role": "user", "content": "7"}]).encode() in read_until(client, 1)


def test_chunked_request_bodies_are_put_together(http_to):
    """A body without Content-Length is taken too."""
    with SimulatedServer() as server:
        connection = http_to(server).connection
        body = BODY % 3
        pieces = iter([body[:10], body[10:]])
        connection.request(
            "POST", "/v1/chat/completions", pieces, {"transfer-encoding": "chunked"}, encode_chunked=True
        )
        assert connection.getresponse().status == 200
        assert server.requests[0].body == {"model": "sim", "messages": [{"role": "user", "content": "3"}]}


@pytest.mark.parametrize("raw", [b"nonsense\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"])
def test_what_is_no_http_gets_400_and_a_closed_connection(raw):
    """A broken head does not hurt the server."""
    with SimulatedServer() as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(raw)
        assert client.recv(65_536).startswith(b"HTTP/1.1 400 ")
        assert client.recv(1) == b""


def test_connection_close_is_obeyed(http_to):
    """A client that asks for the end of the connection gets it."""
    with SimulatedServer() as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(raw_request(1).replace(b"host: x", b"connection: close"))
        received = b""
        while piece := client.recv(65_536):
            received += piece
        assert received.startswith(b"HTTP/1.1 200 OK")


def test_idle_connections_are_closed_after_keep_alive():
    """With keep_alive_s, a connection without requests ends by itself."""
    with SimulatedServer(keep_alive_s=0.05) as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(raw_request(1))
        read_until(client, 1)
        assert client.recv(1) == b""


def test_keep_alive_does_not_end_a_request_in_flight(http_to):
    """A connection with an unanswered request is not idle."""
    with SimulatedServer(keep_alive_s=0.02, service_time_s=0.1) as server:
        assert http_to(server).chat().status == 200


def test_a_thousand_connections_at_once():
    """Connections that all come in one moment are all taken."""
    with SimulatedServer() as server:
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(400)]
        for number, client in enumerate(clients):
            client.sendall(raw_request(number))
        for client in clients:
            read_until(client, 1)
            client.close()
        assert 400 == server.stats.num_connections == server.stats.by_status[200]


def test_half_a_body_then_close(http_to):
    """The fault leaves the client with fewer bytes than promised."""
    with SimulatedServer(faults=[Fault("half_body")]) as server, pytest.raises(http.client.IncompleteRead):
        http_to(server).chat()
