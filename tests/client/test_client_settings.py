"""The fast client and the one on the openai SDK take the same settings."""

from __future__ import annotations

import asyncio
import json
import pickle
import ssl
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest

from nemo_llm_stage import AsyncHTTPClient, AsyncOpenAIClient
from nemo_llm_stage.errors import BadRequestError, ConfigError, RequestError

from .conftest import MESSAGES, RawServer, answer_bytes, response

KEY = "sk-very-secret-0123456789"
TEAM = "team-secret-9876543210"
FINE = response(answer_bytes("fine"), "content-type: application/json")


@pytest.fixture(params=[AsyncHTTPClient, AsyncOpenAIClient], ids=["http", "openai"])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


def ask(make: Any, server: RawServer, *, num: int = 1, config: Any = None, **settings: Any) -> list[Any]:
    """The completion or error of each of `num` requests to a server with this script."""

    async def scenario() -> list[Any]:
        async with server:
            client = make(base_url=settings.pop("base_url", None) or server.base_url, max_retries=0, **settings)
            ends: list[Any] = []
            for _ in range(num):
                try:
                    ends.append(await client.complete(messages=MESSAGES, model="m", generation_config=config))
                except (RequestError, ConfigError) as error:
                    ends.append(error)
            await client.aclose()
            return ends

    return asyncio.run(scenario())


def names_of(make: Any) -> tuple[str, str]:
    """What the client calls headers and query."""
    return ("headers", "query") if make is AsyncHTTPClient else ("default_headers", "default_query")


def test_a_key_goes_under_the_header_that_is_named(make: Any) -> None:
    """Alone, and under no other."""
    server = RawServer([FINE])
    assert ask(make, server, api_key=KEY, api_key_header="api-key")[0].texts == ("fine",)
    head = server.heads[0].lower()
    assert f"\r\napi-key: {KEY}\r\n" in head
    assert "authorization" not in head


def test_headers_and_query_may_be_named(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By variable and by file; a pickle holds the names, a repr too."""
    monkeypatch.setenv("TEST_TEAM", TEAM)
    (tmp_path / "token").write_text(f"{KEY}\n")
    headers, query = names_of(make)
    settings = {
        headers: {"X-Team": {"env": "TEST_TEAM"}, "X-Title": "my job"},
        query: {"api-version": "2024-10-21", "key": {"file": str(tmp_path / "token")}},
        "api_key": "the-key-itself-123",
    }
    server = RawServer([FINE])
    assert ask(make, server, **settings)[0].texts == ("fine",)
    line, head = server.heads[0].partition("\r\n")[0], server.heads[0].lower()
    assert line == f"POST /v1/chat/completions?api-version=2024-10-21&key={KEY} HTTP/1.1"
    assert f"\r\nx-team: {TEAM}\r\n" in head
    assert "\r\nx-title: my job\r\n" in head
    client = make(base_url="http://localhost", **{**settings, "api_key": None, "api_key_env": "TEST_TEAM"})
    client.setup()
    assert client.__class__ is make
    held = pickle.dumps(client)
    assert TEAM.encode() not in held
    assert KEY.encode() not in held
    assert "'env': 'TEST_TEAM'" in repr(client)


@pytest.mark.parametrize("setting", ["ca_file", "cert_file"])
def test_a_file_that_cannot_be_used_is_named(make: Any, setting: str, tmp_path: Path) -> None:
    """As a mistake of the settings."""
    (tmp_path / "bad.pem").write_text("no certificate")
    settings = {setting: str(tmp_path / "bad.pem"), "api_key": KEY, "base_url": "https://localhost:1"}
    [error] = ask(make, RawServer([FINE]), **settings)
    assert isinstance(error, ConfigError)
    assert f"{setting} {tmp_path / 'bad.pem'} cannot be used" in str(error)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody knows, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=test", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:P-256", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", pem], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the openssl command")
    return pem, key


class MutualTLSServer(RawServer):
    """Asks the client for a certificate, and takes its own only."""

    def __init__(self, certificate: tuple[Path, Path], *script: list[bytes | None]) -> None:
        super().__init__(*script)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(*certificate)
        self.context.load_verify_locations(certificate[0])
        self.context.verify_mode = ssl.CERT_REQUIRED

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.base_url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self


def test_a_client_shows_its_certificate(make: Any, certificate: tuple[Path, Path]) -> None:
    """A server that asks for one answers those that have it."""
    pem, key = map(str, certificate)
    shown = {"ca_file": pem, "cert_file": pem, "key_file": key, "api_key": KEY}
    assert ask(make, MutualTLSServer(certificate, [FINE]), **shown)[0].texts == ("fine",)
    [error] = ask(make, MutualTLSServer(certificate, [FINE]), ca_file=pem, api_key=KEY)
    assert isinstance(error, RequestError)


def test_a_proxy_is_used_and_does_not_show(make: Any) -> None:
    """It gets the request for the host that it is to reach; its password is nowhere."""
    password = "proxy-pass-0123456789"
    server = RawServer([FINE])

    async def scenario() -> Any:
        async with server:
            proxy = f"http://user:{password}@127.0.0.1:{server.port}"
            client = make(base_url="http://far.internal/v1", proxy=proxy, api_key=KEY, max_retries=0)
            assert password not in f"{client!r} {vars(client)}"
            try:
                return await client.complete(messages=MESSAGES, model="m")
            finally:
                await client.aclose()

    assert asyncio.run(scenario()).texts == ("fine",)
    assert server.heads[0].startswith("POST http://far.internal/v1/chat/completions HTTP/1.1")
    assert "\r\nproxy-authorization: basic " in server.heads[0].lower()


def test_connecting_has_a_timeout_of_its_own(make: Any) -> None:
    """It is over long before the request's would be: RFC 5737 keeps the address unused."""
    settings = {"base_url": "https://192.0.2.1/v1", "connect_timeout": 0.05, "timeout": 60.0, "api_key": KEY}
    [error] = ask(make, RawServer([FINE]), **settings)
    assert isinstance(error, RequestError)


REFUSAL = response(
    b'{"error": {"message": "Unsupported parameter: \'max_tokens\' is not supported with this model. Use '
    b'\'max_completion_tokens\' instead.", "type": "invalid_request_error", "param": "max_tokens", '
    b'"code": "unsupported_parameter"}}',
    "content-type: application/json",
    status="400 Bad Request",
)


def bodies_of(server: RawServer) -> list[tuple[Any, Any]]:
    bodies = [json.loads(body) for body in server.bodies]
    return [(body.get("max_tokens"), body.get("max_completion_tokens")) for body in bodies]


def test_the_name_of_the_token_limit_is_learned(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """From the first refusal; the request is sent again, and later ones have the new name at once."""
    answers = [response(answer_bytes(text), "content-type: application/json") for text in ("one", "two", "three")]
    server = RawServer([REFUSAL], *([answer] for answer in answers))
    with caplog.at_level("INFO", "nemo_llm_stage"):
        ends = ask(make, server, num=3, api_key=KEY, config={"max_tokens": 7})
    assert [end.texts for end in ends] == [("one",), ("two",), ("three",)]
    assert bodies_of(server) == [(7, None), (None, 7), (None, 7), (None, 7)]
    assert caplog.text.count("max_completion_tokens is sent instead") == 1


def test_a_limit_of_ones_own_stays_as_it_is(make: Any) -> None:
    """Under the name that the user has given; the old one is not sent beside it."""
    server = RawServer([FINE])
    config = {"max_tokens": None, "extra_kwargs": {"max_completion_tokens": 9}}
    assert ask(make, server, api_key=KEY, config=config)[0].texts == ("fine",)
    assert bodies_of(server) == [(None, 9)]
    assert b'"max_tokens"' not in server.bodies[0]


def test_a_server_that_goes_on_refusing_ends_it(make: Any) -> None:
    """The second refusal is the row's error."""
    server = RawServer([REFUSAL])
    [error] = ask(make, server, api_key=KEY)
    assert type(error) is BadRequestError
    assert len(server.bodies) == 2
