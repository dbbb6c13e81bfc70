"""A key that is replaced while a job runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nemo_llm_stage import AsyncHTTPClient, AsyncOpenAIClient
from nemo_llm_stage.errors import AuthenticationError

from .conftest import MESSAGES, answer_bytes, response

EXPIRED = response(b'{"error": {"message": "token expired"}}', status="401 Unauthorized")


def fine(text: str) -> bytes:
    return response(answer_bytes(text))


def rotate_to(key_file: Path, key: str) -> None:
    key_file.write_text(key)


def ask(raw_server: Any, key_file: Path, script: list[Any], *, rotate: bool) -> tuple[list[Any], list[str]]:
    """Return the outcomes of three requests, and the keys that the server saw; the key changes after the first."""

    async def scenario() -> tuple[list[Any], list[str]]:
        async with raw_server(*script) as server:
            client = AsyncHTTPClient(server.base_url, api_key_file=key_file, max_retries=0)
            outcomes = []
            for number in range(3):
                outcome = await asyncio.gather(client.complete(messages=MESSAGES, model="m"), return_exceptions=True)
                outcomes += outcome
                if rotate and number == 0:
                    rotate_to(key_file, "second-key\n")
            await client.aclose()
            keys = [head.lower().partition("authorization: bearer ")[2].partition("\r\n")[0] for head in server.heads]
            return outcomes, keys

    key_file.write_text("first-key\n")
    return asyncio.run(scenario())


def test_a_rotated_key_goes_on_by_itself(raw_server: Any, tmp_path: Path) -> None:
    """The file is read again at the first 401, and the request is sent again with what it holds now."""
    outcomes, keys = ask(raw_server, tmp_path / "key", [[fine("a")], [EXPIRED], [fine("b")], [fine("c")]], rotate=True)
    assert [outcome.texts for outcome in outcomes] == [("a",), ("b",), ("c",)]
    assert keys == ["first-key", "first-key", "second-key", "second-key"]


def test_a_key_that_stays_the_same_is_refused_once(raw_server: Any, tmp_path: Path) -> None:
    """There is nothing to try."""
    outcomes, keys = ask(raw_server, tmp_path / "key", [[fine("a")], [EXPIRED, None]], rotate=False)
    assert [type(outcome) for outcome in outcomes[1:]] == [AuthenticationError] * 2
    assert keys == ["first-key"] * 3


@pytest.mark.parametrize("text", ["", "second-key"])
def test_a_new_key_that_is_no_better_ends_it(raw_server: Any, tmp_path: Path, text: str) -> None:
    """One more send, or none where the file is empty; then the server's words."""
    key_file = tmp_path / "key"
    key_file.write_text("first-key")

    async def scenario() -> tuple[Any, int]:
        async with raw_server([EXPIRED]) as server:
            client = AsyncHTTPClient(server.base_url, api_key_file=key_file, max_retries=3)
            client.setup()
            rotate_to(key_file, text)
            [error] = await asyncio.gather(client.complete(messages=MESSAGES, model="m"), return_exceptions=True)
            await client.aclose()
            return error, len(server.heads)

    error, num_sends = asyncio.run(scenario())
    assert isinstance(error, AuthenticationError)
    assert "token expired" in str(error)
    assert num_sends == (2 if text else 1)


def test_the_sdks_client_goes_on_with_a_rotated_key(raw_server: Any, tmp_path: Path) -> None:
    """The new key is hidden like the old one."""
    key_file = tmp_path / "key"
    key_file.write_text("first-key-0123456789\n")

    async def scenario() -> tuple[list[Any], list[str]]:
        echo = response(b'{"error": {"message": "no second-key-0123456789"}}', status="400 Bad Request")
        async with raw_server([EXPIRED], [fine("a")], [echo]) as server:
            client = AsyncOpenAIClient(base_url=server.base_url, api_key_file=key_file, max_retries=0)
            client.setup()
            rotate_to(key_file, "second-key-0123456789\n")
            outcomes = []
            for _ in range(2):
                outcomes += await asyncio.gather(client.complete(messages=MESSAGES, model="m"), return_exceptions=True)
            await client.aclose()
            keys = [head.lower().partition("authorization: bearer ")[2].partition("\r\n")[0] for head in server.heads]
            return outcomes, keys

    [answer, error], keys = asyncio.run(scenario())
    assert answer.texts == ("a",)
    assert [key.partition("-")[0] for key in keys] == ["first", "second", "second"]
    assert "second-key-0123456789" not in str(error)
