"""Plain HTTP for the tests of the simulated server: nothing of the package's own clients."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass
class Reply:
    """One HTTP answer, read whole."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def text(self) -> str:
        """The content of the first choice."""
        return self.json["choices"][0]["message"]["content"]


class Http:
    """One keep-alive connection to a server of this machine."""

    def __init__(self, port: int, timeout_s: float = 10.0) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        raw = body if isinstance(body, bytes | None) else json.dumps(body)
        self.connection.request(method, path, raw, headers or {})
        response = self.connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def chat(self, content: str = "hello", **more: Any) -> Reply:
        body = {"model": "sim", "messages": [{"role": "user", "content": content}], **more}
        return self.ask("POST", "/v1/chat/completions", body)

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The JSON objects of a stream that ends as it should."""
        lines = self.ask("POST", path, {**body, "stream": True}).raw.decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@pytest.fixture
def http_to():
    """Return a function from a server to a connection that is closed after the test."""
    opened: list[Http] = []

    def connect(server: Any, timeout_s: float = 10.0) -> Http:
        opened.append(Http(server.port, timeout_s))
        return opened[-1]

    yield connect
    for http_connection in opened:
        http_connection.connection.close()
