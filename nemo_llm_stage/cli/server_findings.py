"""
What `nemo-llm-stage doctor` looks at on a server: reachable, key, model, and the time of one answer.

Sends what a job's own check sends, and one short request. Knows clients only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from nemo_llm_stage.cli.findings import Finding
from nemo_llm_stage.client.llm_client import AsyncLLMClient, GenerationConfig
from nemo_llm_stage.errors import AuthenticationError, ConfigError, ConnectionFailedError, NotFoundError, RequestError

SPEED_TIMEOUT_S = 60.0
_QUESTION = "Name the days of the week."
_MAX_TOKENS = 32


def server_findings(client: AsyncLLMClient, model: str, where: str) -> list[Finding]:
    """
    Return what a server says to the requests that a job sends.

    Args:
        client: With the job's settings; closed after.
        model: The model's name.
        where: The server's address, as written.
    """
    return asyncio.run(_look(client, model, where))


async def _look(client: AsyncLLMClient, model: str, where: str) -> list[Finding]:
    try:
        client.setup()
        await client.check(model)
        speed = await _speed(client, model)
    except ConfigError as error:
        return [Finding("settings", str(error), is_ok=False)]
    except RequestError as error:
        return list(_explained(error, where))
    finally:
        await client.aclose()
    return [*_passed(where, model), speed]


def _passed(where: str, model: str) -> list[Finding]:
    return [
        Finding("server", f"{where} answers"),
        Finding("key", "accepted, or none is needed"),
        Finding("model", f"{model!r} is there"),
    ]


def _explained(error: RequestError, where: str) -> Iterator[Finding]:
    """Yield what must have passed before this error, and the problem."""
    place = next((place for kind, place in _PLACES.items() if isinstance(error, kind)), "speed")
    for finding in _passed(where, ""):
        if finding.name == place:
            break
        if finding.name != "model":
            yield finding
    yield Finding(place, str(error), is_ok=False)


_PLACES: dict[type[RequestError], str] = {
    ConnectionFailedError: "server",
    AuthenticationError: "key",
    NotFoundError: "model",
}
"""Error → the line that it belongs to; any other came where an answer was expected."""


async def _speed(client: AsyncLLMClient, model: str) -> Finding:
    config = GenerationConfig(max_tokens=_MAX_TOKENS, seed=None, temperature=None, top_p=None)
    messages = [{"role": "user", "content": _QUESTION}]
    started_monotonic_s = time.monotonic()
    try:
        async with asyncio.timeout(SPEED_TIMEOUT_S):
            completion = await client.complete(messages=messages, model=model, generation_config=config)
    except TimeoutError:
        text = f"no answer within {SPEED_TIMEOUT_S:g} s: the server is overloaded, or still loads the model"
        return Finding("speed", text, is_ok=False)
    seconds = time.monotonic() - started_monotonic_s
    num = completion.usage.output_tokens if completion.usage else None
    tokens = f" with {num} tokens, {num / seconds:,.0f} tokens/s" if num else ""
    return Finding("speed", f"one answer in {seconds:.2f} s{tokens}; a job sends many at once")
