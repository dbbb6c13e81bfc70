"""Whatever a server sends, the event loop goes on and the memory stays small."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest

from nemo_llm_stage.client.http.http1 import HTTP1Transport
from nemo_llm_stage.client.http.transport import HTTPResponse, TransportConfig
from nemo_llm_stage.errors import InvalidResponseError, RequestError
from tests.client.loop_lag import MAX_LAG_S, LoopLag
from tests.client.threaded_server import ThreadedServer

MB = 1 << 20
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n"


def in_chunks(body: bytes, size: int) -> bytes:
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def random_bytes(num: int) -> bytes:
    """Bytes that hardly compress."""
    return b"".join(zlib.crc32(b"%d" % start).to_bytes(4, "big") for start in range(num // 4))


def send_to(*pieces: bytes, max_response_bytes: int = 16 * MB, is_stream: bool = False) -> tuple[object, float, int]:
    """The response or error that `pieces` lead to, the worst lag of the loop in seconds, and the peak of memory."""
    num_bytes = 0

    def count(piece: bytes) -> bool:
        nonlocal num_bytes
        num_bytes += len(piece)
        return False

    async def scenario(url: str) -> tuple[object, float]:
        transport = HTTP1Transport(TransportConfig({}, 30.0, 5.0, None, max_response_bytes))
        end: object
        async with LoopLag() as lag:
            try:
                end = await transport.send(url, b"{}", on_event_bytes=count if is_stream else None)
            except RequestError as error:
                end = error
        await transport.aclose()
        assert num_bytes <= max_response_bytes + MB
        return end, lag.worst_s

    with ThreadedServer(lambda _: iter(pieces)) as server:
        tracemalloc.start()
        try:
            end, lag_s = asyncio.run(scenario(server.base_url))
            return end, lag_s, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def test_a_drip_of_gzip_is_read_in_linear_time() -> None:
    """150 kB in chunks of one byte once took 100 s."""
    body = random_bytes(150_000)
    end, lag_s, _ = send_to(CHUNKED + b"content-encoding: gzip\r\n\r\n" + in_chunks(gzip.compress(body), 1))
    assert isinstance(end, HTTPResponse)
    assert end.body == body
    assert lag_s < MAX_LAG_S


def test_a_large_answer_is_read_in_slices() -> None:
    """2 MB of chunks, whole and unchanged."""
    body = random_bytes(2 * MB)
    end, lag_s, _ = send_to(CHUNKED + b"\r\n" + in_chunks(body, 1000))
    assert isinstance(end, HTTPResponse)
    assert end.body == body
    assert lag_s < MAX_LAG_S


def bomb(num_mb: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(b" " * MB) for _ in range(num_mb)), packer.flush()])


@pytest.mark.parametrize("content_type", [b"application/json", b"text/event-stream"])
@pytest.mark.parametrize("chunk_size", [1, 1 << 14])
def test_a_bomb_is_counted_as_it_unfolds(content_type: bytes, chunk_size: int) -> None:
    """50 kB that would become 50 MB, streamed or not, end at the limit."""
    head = CHUNKED + b"content-encoding: gzip\r\ncontent-type: " + content_type + b"\r\n\r\n"
    pieces = head + in_chunks(bomb(50), chunk_size)
    end, lag_s, peak_bytes = send_to(pieces, max_response_bytes=4 * MB, is_stream=True)
    assert isinstance(end, InvalidResponseError)
    assert "longer than" in str(end)
    assert lag_s < MAX_LAG_S
    assert peak_bytes < 24 * MB


def test_a_plain_stream_is_counted_too() -> None:
    """Events without an end."""
    event = b"data: " + b"x" * 1000 + b"\n\n"
    pieces = [CHUNKED + b"content-type: text/event-stream\r\n\r\n"]
    pieces += [in_chunks(event * 1000, 4096)[:-5]] * 20
    end, lag_s, _ = send_to(*pieces, max_response_bytes=4 * MB, is_stream=True)
    assert isinstance(end, InvalidResponseError)
    assert lag_s < MAX_LAG_S


ENDLESS = {
    "small headers": (b"HTTP/1.1 200 OK\r\n", b"".join(b"a%d: b\r\n" % num for num in range(200_000))),
    "one header": (b"HTTP/1.1 200 OK\r\na: ", b"b" * 8 * MB),
    "trailers": (CHUNKED + b"\r\n2\r\n{}\r\n0\r\n", b"".join(b"a%d: b\r\n" % num for num in range(200_000))),
    "one trailer": (CHUNKED + b"\r\n2\r\n{}\r\n0\r\na: ", b"b" * 8 * MB),
    "interim responses": (b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 100_000),
    "status text": (b"HTTP/1.1 200 ", b"O" * 8 * MB),
    "empty lines": (b"", b"\r\n" * 4 * MB),
    "chunk extension": (CHUNKED + b"\r\n2;a=", b"b" * 8 * MB),
}


@pytest.mark.parametrize("pieces", ENDLESS.values(), ids=ENDLESS)
def test_what_is_not_content_has_a_bound(pieces: tuple[bytes, bytes]) -> None:
    """Megabytes of headers, trailers and the like are not kept."""
    end, lag_s, peak_bytes = send_to(*pieces)
    assert isinstance(end, InvalidResponseError)
    assert lag_s < MAX_LAG_S
    assert peak_bytes < 4 * MB


def test_many_connections_share_the_loop() -> None:
    """Large answers on 32 connections at once hold it up no longer than one."""
    body = in_chunks(gzip.compress(random_bytes(20_000)), 1)

    def answers(_: bytes) -> Iterator[bytes]:
        yield CHUNKED + b"content-encoding: gzip\r\n\r\n" + body

    async def scenario(url: str) -> float:
        transport = HTTP1Transport(TransportConfig({}, 60.0, 5.0, None, 16 * MB))
        async with LoopLag() as lag:
            ends = await asyncio.gather(*(transport.send(url, b"{}") for _ in range(32)))
        await transport.aclose()
        assert {len(end.body) for end in ends} == {20_000}
        return lag.worst_s

    with ThreadedServer(answers) as server:
        lag_s = asyncio.run(scenario(server.base_url))
    assert lag_s < MAX_LAG_S
