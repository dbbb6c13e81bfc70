"""HTTP as servers, gateways and proxies really speak it."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest

from nemo_llm_stage.client.http.http1 import HTTP1Transport
from nemo_llm_stage.client.http.transport import HTTPResponse, TransportConfig
from nemo_llm_stage.errors import (
    BadRequestError,
    ConfigError,
    ConnectionDroppedError,
    ConnectionFailedError,
    InvalidResponseError,
    RequestTimeoutError,
)
from tests.client.conftest import CLOSE, RawServer, response


def transport(**settings: Any) -> HTTP1Transport:
    defaults: dict[str, Any] = {
        "headers": {"authorization": "Bearer k"},
        "timeout_s": 5.0,
        "connect_timeout_s": 5.0,
        "read_timeout_s": None,
        "max_response_bytes": 1000,
    }
    return HTTP1Transport(TransportConfig(**{**defaults, **settings}))


async def ask(server: RawServer, num: int = 1, body: bytes | None = b"{}", **settings: Any) -> list[HTTPResponse]:
    """`num` answers to requests sent one after another."""
    client = transport(**settings)
    try:
        return [await client.send(f"{server.base_url}/x", body) for _ in range(num)]
    finally:
        await client.aclose()


def run(*script: list[bytes | None], num: int = 1, **settings: Any) -> tuple[list[HTTPResponse], RawServer]:
    async def scenario() -> tuple[list[HTTPResponse], RawServer]:
        async with RawServer(*script) as server:
            return await ask(server, num, **settings), server

    return asyncio.run(scenario())


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
GZIPPED = gzip.compress(b"answer")

BODIES = {
    "length": [response(b"answer")],
    "in pieces": [bytes([byte]) for byte in response(b"answer")],
    "chunked": [CHUNKED, b"3\r\nans\r\n", b"3\r\nwer\r\n0\r\n\r\n"],
    "chunked with trailer": [CHUNKED + b"6;x=y\r\nanswer\r\n0\r\nx-after: 1\r\n\r\n"],
    "until close": [b"HTTP/1.1 200 OK\r\n\r\nans", b"wer", CLOSE],
    "http/1.0": [b"HTTP/1.0 200 OK\r\n\r\nanswer", CLOSE],
    "after 100": [b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"answer")],
    "after 103": [b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", response(b"answer")],
    "gzip": [response(GZIPPED, "content-encoding: gzip")],
    "bare names": [b"HTTP/1.1 200\r\nCONTENT-LENGTH:6\r\n\r\nanswer"],
}


@pytest.mark.parametrize("pieces", BODIES.values(), ids=BODIES)
def test_every_form_of_a_body_is_read(pieces: list[bytes | None]) -> None:
    """However a server frames its answer, the body is the same."""
    [answer], _ = run(pieces)
    assert (answer.status, answer.body, answer.was_streamed) == (200, b"answer", False)


BROKEN = {
    "closed": ([CLOSE], ConnectionDroppedError),
    "head cut": ([b"HTTP/1.1 200 OK\r\ncontent-le", CLOSE], ConnectionDroppedError),
    "body cut": ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", CLOSE], ConnectionDroppedError),
    "chunk cut": ([CHUNKED + b"5\r\nab", CLOSE], ConnectionDroppedError),
    "no last chunk": ([CHUNKED + b"2\r\nab\r\n", CLOSE], ConnectionDroppedError),
    "no http": ([b"SSH-2.0-OpenSSH_9\r\n"], InvalidResponseError),
    "upgrade": (
        [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"],
        InvalidResponseError,
    ),
    "two lengths": ([b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na"], InvalidResponseError),
    "bad gzip": ([response(b"answer", "content-encoding: gzip")], InvalidResponseError),
    "unknown coding": ([response(b"answer", "content-encoding: br")], InvalidResponseError),
    "too long": ([response(b"x" * 1_000_000)], InvalidResponseError),
    "endless head": ([b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000], InvalidResponseError),
    "endless header": ([b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000], InvalidResponseError),
    "many headers": (
        [b"HTTP/1.1 200 OK\r\n" + b"".join(b"a%d: b\r\n" % num for num in range(300)) + b"\r\n"],
        InvalidResponseError,
    ),
    "endless trailers": ([CHUNKED + b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 20_000], InvalidResponseError),
    "endless chunk extension": ([CHUNKED + b"2;a=" + b"b" * 100_000], InvalidResponseError),
    "endless interim responses": ([b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 100], InvalidResponseError),
    "gzip cut": ([response(GZIPPED[:-9], "content-encoding: gzip")], ConnectionDroppedError),
    "bomb": ([response(gzip.compress(b"x" * 100_000), "content-encoding: gzip")], InvalidResponseError),
}


@pytest.mark.parametrize(("pieces", "error_type"), BROKEN.values(), ids=BROKEN)
def test_broken_answers_are_typed(pieces: list[bytes | None], error_type: type[Exception]) -> None:
    """Nothing a server sends ends in anything but one of our errors."""
    with pytest.raises(error_type):
        run(pieces)


def test_a_long_error_is_cut_and_not_lost() -> None:
    """An error page beyond the limit still tells its status and its beginning."""
    [answer], _ = run([response(b"x" * 5000, status="500 No")])
    assert answer.status == 500
    assert answer.body.startswith(b"xxx")


def test_the_request_is_well_formed() -> None:
    """Target, host, length and the client's own headers are there once; a GET has no body."""
    _, server = run([response(b"")], num=2)
    assert server.heads[0] == (
        f"POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\nauthorization: Bearer k\r\ncontent-length: 2\r\n\r\n"
    )
    _, server = run([response(b"")], body=None)
    assert server.heads[0].startswith("GET /v1/x HTTP/1.1\r\n")
    assert "content-length" not in server.heads[0]


def test_headers_of_a_request_take_the_place_of_the_clients() -> None:
    """In any case of their letters."""

    async def scenario() -> str:
        async with RawServer([response(b"")]) as server:
            client = transport()
            await client.send(f"{server.base_url}/x", b"", headers={"Authorization": "Bearer other", "X-Tag": "1"})
            await client.aclose()
            return server.heads[0]

    head = asyncio.run(scenario())
    assert "authorization: Bearer other\r\nx-tag: 1\r\n" in head
    assert "Bearer k" not in head


@pytest.mark.parametrize("headers", [{"x": "a\r\nevil: 1"}, {"a b": "x"}, {"x": "\u2028"}, {"": "x"}])
def test_headers_that_cannot_be_sent_are_refused(headers: dict[str, str]) -> None:
    """A line break in a header would begin another one."""
    with pytest.raises(BadRequestError):
        run([response(b"")], headers=headers)


def test_connections_are_used_again() -> None:
    """One after another needs one connection."""
    _, server = run(*([response(b"answer %d" % num)] for num in range(5)), num=5)
    assert server.num_connections == 1


LAST_WORDS = {
    "connection: close": [response(b"answer", "connection: close")],
    "closed unasked": [response(b"answer"), CLOSE],
    "bytes too many": [response(b"answer") + b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"],
    "garbage after it": [response(b"answer") + b"\x00garbage"],
    "http/1.0": [b"HTTP/1.0 200 OK\r\ncontent-length: 6\r\n\r\nanswer"],
}


@pytest.mark.parametrize("pieces", LAST_WORDS.values(), ids=LAST_WORDS)
def test_a_spent_connection_is_left(pieces: list[bytes | None]) -> None:
    """After a close, announced or not, and after bytes nobody asked for, the next request opens a new one."""

    async def scenario() -> int:
        async with RawServer(pieces) as server:
            client = transport()
            for _ in range(3):
                assert (await client.send(f"{server.base_url}/x", b"")).body == b"answer"
                if CLOSE in pieces:
                    await server.all_closed.wait()
                    await asyncio.sleep(0)
                    server.all_closed.clear()
            await client.aclose()
            return server.num_connections

    assert asyncio.run(scenario()) == 3


def test_event_streams_are_handed_on() -> None:
    """Pieces go to the taker as they come; another type of answer is kept whole."""

    async def scenario(content_type: str) -> tuple[HTTPResponse, list[bytes]]:
        pieces: list[bytes] = []

        def take(piece: bytes) -> bool:
            pieces.append(piece)
            return False

        async with RawServer([response(b"data: x\n\n", f"content-type: {content_type}")]) as server:
            client = transport()
            answer = await client.send(f"{server.base_url}/x", b"", on_event_bytes=take)
            await client.aclose()
            return answer, pieces

    answer, pieces = asyncio.run(scenario("text/event-stream; charset=utf-8"))
    assert (answer.was_streamed, answer.body, b"".join(pieces)) == (True, b"", b"data: x\n\n")
    answer, pieces = asyncio.run(scenario("application/json"))
    assert (answer.was_streamed, answer.body, pieces) == (False, b"data: x\n\n", [])


def test_a_broken_event_ends_the_exchange() -> None:
    """An error of the taker is the error of the request."""

    async def scenario() -> None:
        def refuse(piece: bytes) -> bool:
            raise InvalidResponseError("broken event")

        async with RawServer([response(b"data: x\n\n", "content-type: text/event-stream")]) as server:
            client = transport()
            try:
                await client.send(f"{server.base_url}/x", b"", on_event_bytes=refuse)
            finally:
                await client.aclose()

    with pytest.raises(InvalidResponseError, match="broken event"):
        asyncio.run(scenario())


def test_total_and_read_timeouts() -> None:
    """Silence ends at read_timeout, a drip at timeout; the message says which."""
    with pytest.raises(RequestTimeoutError, match="further byte"):
        run([response(b"answer")[:20]], read_timeout_s=0.05)
    with pytest.raises(RequestTimeoutError, match="whole response"):
        run([response(b"answer")[:20]], timeout_s=0.05)


def test_a_request_may_set_its_own_timeout() -> None:
    """It takes the place of the client's."""

    async def scenario() -> None:
        async with RawServer([]) as server:
            client = transport(timeout_s=60)
            try:
                await client.send(f"{server.base_url}/x", b"", timeout_s=0.5)
            finally:
                await client.aclose()

    with pytest.raises(RequestTimeoutError):
        asyncio.run(scenario())


NOWHERE = [("http://127.0.0.1:1/", "refused"), ("http://no-such-host.invalid/", "not known|resol")]


@pytest.mark.parametrize(("url", "reason"), NOWHERE)
def test_no_connection_says_why(url: str, reason: str) -> None:
    """In the operating system's words, with the address."""

    async def scenario() -> None:
        await transport().send(url, b"")

    with pytest.raises(ConnectionFailedError, match=f"(?i){url}: .*({reason})"):
        asyncio.run(scenario())


def test_connecting_has_its_own_timeout() -> None:
    """A TLS server that never says hello is not waited for until the end."""

    async def scenario() -> None:
        async with RawServer([]) as server:
            await transport(connect_timeout_s=0.05).send(server.base_url.replace("http", "https"), b"")

    with pytest.raises(ConnectionFailedError, match=r"within 0\.05 s"):
        asyncio.run(scenario())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and far.example that nobody knows, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:far.example"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", pem], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the openssl command")
    return pem, key


class TLSServer(RawServer):
    """RawServer behind TLS."""

    def __init__(self, certificate: tuple[Path, Path], *script: list[bytes | None]) -> None:
        super().__init__(*script)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(*certificate)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"https://127.0.0.1:{self.port}/v1"
        return self


def test_tls_with_a_ca_of_ones_own(certificate: tuple[Path, Path]) -> None:
    """ca_file makes a private server trusted."""

    async def scenario() -> list[HTTPResponse]:
        async with TLSServer(certificate, [response(b"answer")]) as server:
            return await ask(server, ca_file=str(certificate[0]))

    assert [answer.body for answer in asyncio.run(scenario())] == [b"answer"]


def test_an_untrusted_certificate_is_refused(certificate: tuple[Path, Path]) -> None:
    """There is no way to switch this off; the message names ca_file."""

    async def scenario() -> None:
        async with TLSServer(certificate, [response(b"answer")]) as server:
            await ask(server)

    with pytest.raises(ConnectionFailedError, match="ca_file"):
        asyncio.run(scenario())


def test_a_missing_ca_file_is_named() -> None:
    """The settings are wrong, not the server."""

    async def scenario() -> None:
        await transport(ca_file="/no/such.pem").send("https://127.0.0.1:1/", b"")

    with pytest.raises(ConfigError, match=r"/no/such\.pem"):
        asyncio.run(scenario())


class ForwardProxy(RawServer):
    """A proxy: hands CONNECT tunnels through to `target`, answers plain requests itself."""

    def __init__(
        self,
        target: int = 0,
        refusal: bytes = b"",
        yes: bytes = b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n",
    ) -> None:
        super().__init__([response(b"from the proxy")])
        self.yes = yes
        self.target = target
        self.refusal = refusal
        self.tasks: list[asyncio.Task[None]] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.target == 0:
            await super()._serve(reader, writer)
            return
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        if self.refusal:
            writer.write(self.refusal)
        else:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            writer.write(self.yes)
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


def test_plain_requests_go_through_the_proxy() -> None:
    """The proxy gets the whole URL and its own password; the server's key is not the proxy's."""

    async def scenario() -> tuple[HTTPResponse, str]:
        async with ForwardProxy() as proxy:
            client = transport(proxy=f"http://us%40er:pass@127.0.0.1:{proxy.port}")
            answer = await client.send("http://far.example:81/v1/x", b"")
            await client.aclose()
            return answer, proxy.heads[0]

    answer, head = asyncio.run(scenario())
    assert answer.body == b"from the proxy"
    assert head.startswith("POST http://far.example:81/v1/x HTTP/1.1\r\nhost: far.example:81\r\n")
    assert "proxy-authorization: Basic dXNAZXI6cGFzcw==" in head


def test_the_environments_proxy_is_used_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY counts for far hosts, less those in NO_PROXY; never for loopback."""

    async def scenario() -> tuple[HTTPResponse, list[HTTPResponse]]:
        async with ForwardProxy() as proxy, RawServer([response(b"direct")]) as server:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv("no_proxy", "near.invalid")
            client = transport()
            far = await client.send("http://far.example/v1/x", b"")
            with pytest.raises(ConnectionFailedError):
                await client.send("http://near.invalid/v1/x", b"")
            await client.aclose()
            return far, await ask(server)

    far, near = asyncio.run(scenario())
    assert (far.body, near[0].body) == (b"from the proxy", b"direct")


def test_tls_goes_through_a_tunnel(certificate: tuple[Path, Path]) -> None:
    """The proxy only sees where to; the certificate checked is the server's."""

    async def scenario() -> tuple[HTTPResponse, str, list[str]]:
        async with TLSServer(certificate, [response(b"answer")]) as server, ForwardProxy(server.port) as proxy:
            client = transport(proxy=f"http://u:p@127.0.0.1:{proxy.port}", ca_file=str(certificate[0]))
            answer = await client.send("https://far.example/v1/x", b"")
            with pytest.raises(ConnectionFailedError, match="certificate"):
                await client.send("https://other.example/v1/x", b"")
            await client.aclose()
            return answer, proxy.heads[0], server.heads

    answer, head, heads = asyncio.run(scenario())
    assert answer.body == b"answer"
    assert head.startswith("CONNECT far.example:443 HTTP/1.1\r\nhost: far.example:443\r\n")
    assert "proxy-authorization: Basic dTpw" in head
    assert ["proxy-authorization" in head for head in heads] == [False]


REFUSALS = {
    "407": (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "refused the tunnel with status 407"),
    "redirect": (b"HTTP/1.1 302 Found\r\n\r\n", "refused the tunnel with status 302"),
    "no status": (b"HTTP/1.1\r\n\r\n", "does not answer in HTTP"),
    "empty": (b"\r\n\r\n", "does not answer in HTTP"),
    "garbage": (b"\xff\x00 \n\n", "does not answer in HTTP"),
    "socks": (b"\x05\x00", "broke off"),
    "long": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 4000, "more than 16384 bytes"),
    "silent": (b" ", "broke off"),
}


@pytest.mark.parametrize(("refusal", "words"), REFUSALS.values(), ids=REFUSALS)
def test_a_refused_tunnel_says_so(refusal: bytes, words: str) -> None:
    """Whatever the proxy says is a failed connection; the proxy is named, its password is not."""

    async def scenario() -> str:
        async with ForwardProxy(1, refusal) as proxy:
            with pytest.raises(ConnectionFailedError, match=words) as caught:
                await transport(proxy=f"http://user:secret@127.0.0.1:{proxy.port}", connect_timeout_s=5).send(
                    "https://far.example/v1/x", b""
                )
            assert f"proxy 127.0.0.1:{proxy.port}" in str(caught.value)
            return str(caught.value)

    assert "secret" not in asyncio.run(scenario())


@pytest.mark.parametrize("yes", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 204 No Content\n\n", b"HTTP/1.1 299 \r\n\r\n"])
def test_any_2xx_opens_the_tunnel(certificate: tuple[Path, Path], yes: bytes) -> None:
    """With bare line ends and after an interim response too."""

    async def scenario() -> list[bytes]:
        async with (
            TLSServer(certificate, [response(b"answer")]) as server,
            ForwardProxy(server.port, yes=b"HTTP/1.1 100 Continue\r\n\r\n" + yes) as proxy,
        ):
            client = transport(proxy=f"http://127.0.0.1:{proxy.port}", ca_file=str(certificate[0]))
            answer = await client.send("https://far.example/v1/x", b"")
            await client.aclose()
            return [answer.body]

    assert asyncio.run(scenario()) == [b"answer"]


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "http://", "http://h:x"])
def test_a_proxy_that_cannot_be_used_is_refused(proxy: str) -> None:
    """Its URL may hold a password and is not repeated."""
    with pytest.raises(ConfigError, match="proxy"):
        asyncio.run(transport(proxy=proxy).send("http://far.example/", b""))


def test_connections_close_with_their_loop() -> None:
    """A client that is never closed leaves nothing behind: no warning, no socket."""

    async def scenario(server: RawServer) -> None:
        await transport().send(f"{server.base_url}/x", b"")

    async def main() -> None:
        async with RawServer([response(b"answer")]) as server:
            await scenario(server)
            await asyncio.wait_for(server.all_closed.wait(), 5)

    asyncio.run(main())
