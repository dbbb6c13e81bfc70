"""
Whole HTTP answers, changed at any byte: no hang, no foreign exception, no lag, no row with another row's answer.

Runs for about 10 s; ``NEMO_FUZZ_S=3600`` makes it an hour.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import logging
import os
import re
import resource
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import uvloop
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from nemo_llm_stage import AsyncHTTPClient
from nemo_llm_stage.errors import RateLimitError, RequestError
from tests.client.loop_lag import MAX_LAG_S, LoopLag
from tests.client.threaded_server import ThreadedServer

FUZZ_S = float(os.environ.get("NEMO_FUZZ_S", "10"))
NUM_ROWS = 6
MAX_RESPONSE_BYTES = 1 << 20
MAX_GROWTH_BYTES = 400 << 20
ISSUED: set[str] = set()
"""The tokens of all requests so far."""

LOOPS = itertools.count()

VALUES = [
    *(b"null", b"true", b"-1", b"1e999", b"18446744073709551616", b'"x"', b"[]", b"{}", b"[[[[]]]]", b'"\\ud800"'),
    *(b'{"a": [1, "b"]}', b'[{"type": "text", "text": "part"}]', b'"\\u0000"', b"NaN", b"0", b'""'),
]
SNIPPETS = [
    *(
        b"\r\n",
        b"\n\n",
        b"\r",
        b"data: ",
        b"data: [DONE]\n\n",
        b"event: error\n",
        b"0\r\n\r\n",
        b"\xef\xbb\xbf",
        b"\x00",
    ),
    *(
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"content-length: 5\r\n",
        b"content-encoding: gzip\r\n",
        b"connection: close\r\n",
    ),
    *(
        b"transfer-encoding: chunked\r\n",
        b"ffffffffffffffff\r\n",
        b"\x1f\x8b\x08\x00",
        b'{"choices": []}',
        b"{",
        b"}" * 40,
    ),
    *(b"[" * 500, b"a: b\r\n" * 300, b"x" * 70_000, b'"error": {"message": "no", "code": 429}, '),
]


@dataclass(frozen=True)
class Change:
    """One change of a message: what is done where; `at` is a fraction of its length."""

    kind: str
    at: float
    length: int
    text: bytes

    def apply(self, message: bytes) -> bytes:
        """Return `message` after the change."""
        start = int(self.at * len(message))
        end = start + self.length
        if self.kind == "insert":
            return message[:start] + self.text + message[start:]
        if self.kind == "replace":
            return message[:start] + self.text + message[end:]
        if self.kind == "remove":
            return message[:start] + message[end:]
        if self.kind == "repeat":
            return message[:end] + message[start:end] * 3 + message[end:]
        if self.kind == "cut":
            return message[:start]
        found = list(re.finditer(rb'(?<=": )("[^"]*"|[\w.\-]+|\[\]|\{\})', message))
        if not found:
            return message
        field = found[int(self.at * len(found)) % len(found)]
        return message[: field.start()] + self.text + message[field.end() :]


CHANGES = st.builds(
    Change,
    st.sampled_from(["insert", "replace", "remove", "repeat", "cut", "field", "field", "field"]),
    st.floats(0, 0.999),
    st.integers(1, 60),
    st.one_of(st.sampled_from(SNIPPETS), st.sampled_from(VALUES), st.binary(max_size=8)),
)


@dataclass(frozen=True)
class Plan:
    """How the server makes one answer: its form, the changes of its content and of its bytes, how it is sent."""

    is_stream: bool
    is_gzip: bool
    is_chunked: bool
    status: int
    content_changes: tuple[Change, ...]
    byte_changes: tuple[Change, ...]
    num_copies: int
    num_pieces: int
    closes: bool

    def answer_to(self, body: bytes) -> Iterator[bytes | None]:
        """The pieces sent to the request with `body`; None closes the connection."""
        message = self._message(json.loads(body)["messages"][0]["content"]) * self.num_copies
        size = max(1, len(message) // self.num_pieces)
        yield from (message[start : start + size] for start in range(0, len(message), size))
        if self.closes:
            yield None

    def _message(self, token: str) -> bytes:
        content = _events(token) if self.is_stream else _answer(token)
        for change in self.content_changes:
            content = change.apply(content)
        kind = b"text/event-stream" if self.is_stream else b"application/json"
        head = b"HTTP/1.1 %d Status\r\ncontent-type: %b\r\n" % (self.status, kind)
        if self.is_gzip:
            content, head = gzip.compress(content, 1), head + b"content-encoding: gzip\r\n"
        if self.is_chunked:
            half = len(content) // 2
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (content[:half], content[half:]) if part)
            message = head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        else:
            message = head + b"content-length: %d\r\n\r\n%b" % (len(content), content)
        for change in self.byte_changes:
            message = change.apply(message)
        return message


PLANS = st.builds(
    Plan,
    st.booleans(),
    st.sampled_from([False, False, True]),
    st.booleans(),
    st.sampled_from([200] * 12 + [100, 204, 304, 400, 429, 500]),
    st.lists(CHANGES, max_size=3).map(tuple),
    st.lists(CHANGES, max_size=2).map(tuple),
    st.sampled_from([1, 1, 1, 2, 3]),
    st.sampled_from([1, 2, 7]),
    st.booleans(),
)


def _answer(token: str) -> bytes:
    message = {"role": "assistant", "content": token, "refusal": None, "reasoning_content": "thought", "tool_calls": []}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    answer = {"id": f"chatcmpl-{token}", "object": "chat.completion", "created": 1, "model": "m"}
    return json.dumps({**answer, "choices": [choice], "usage": usage}).encode()


def _events(token: str) -> bytes:
    deltas: list[dict[str, object]] = [{"role": "assistant"}, {"content": token[:4]}, {"content": token[4:]}, {}]
    chunks: list[dict[str, object]] = [
        {"id": f"chatcmpl-{token}", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    chunks[-1]["choices"] = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    chunks.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


async def ask(client: AsyncHTTPClient, *, is_stream: bool) -> None:
    """Ask with a token of one's own: the answer may be destroyed, but is never another's."""
    token = uuid.uuid4().hex
    ISSUED.add(token)
    config = {"stream": is_stream, "seed": None}
    try:
        async with asyncio.timeout(20):
            completion = await client.complete(
                messages=[{"role": "user", "content": token}], model="m", generation_config=config
            )
    except RequestError as error:
        text = "" if isinstance(error, RateLimitError) else str(error)  # which is no row's own
        text.encode()
    else:
        text = " ".join(completion.texts)
        json.dumps([completion.model, completion.finish_reasons, completion.reasoning], allow_nan=False)
    others = ISSUED.intersection(re.findall(r"[0-9a-f]{32}", text)) - {token}
    assert not others, f"{token} got {text!r}"


async def scenario(base_url: str) -> float:
    client = AsyncHTTPClient(
        base_url,
        max_concurrent_requests=3,
        max_retries=1,
        base_delay=0.0,
        timeout=0.3,
        max_response_bytes=MAX_RESPONSE_BYTES,
    )
    try:
        async with LoopLag() as lag:
            await asyncio.gather(*(ask(client, is_stream=row % 2 == 0) for row in range(NUM_ROWS)))
        return lag.worst_s
    finally:
        await client.aclose()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whatever_a_server_answers_is_an_answer_or_an_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """Every byte and field may be wrong."""
    caplog.set_level(logging.ERROR, logger="nemo_llm_stage")
    until_s = time.monotonic() + FUZZ_S
    plans: list[Plan] = []
    requests = itertools.count()
    handled: list[dict[str, object]] = []

    def answer(body: bytes) -> Iterator[bytes | None]:
        return plans[next(requests) % len(plans)].answer_to(body)

    def loop_factory() -> asyncio.AbstractEventLoop:
        loop = uvloop.new_event_loop() if next(LOOPS) % 2 else asyncio.new_event_loop()
        loop.set_exception_handler(lambda _, context: handled.append(context))
        return loop

    def run_once() -> float:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(scenario(server.base_url))

    def fuzz(drawn: list[Plan]) -> None:
        plans[:] = drawn
        lags_s = [run_once()]
        while lags_s[-1] >= MAX_LAG_S and len(lags_s) < 3:  # not of the garbage collector or the machine
            lags_s.append(run_once())
        assert min(lags_s) < MAX_LAG_S, lags_s
        assert not handled, handled

    limits = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    examples = given(st.lists(PLANS, min_size=1, max_size=4))
    with ThreadedServer(answer) as server:
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        while time.monotonic() < until_s:
            seed(time.time_ns())(limits(examples(fuzz)))()
        after_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{next(requests)} requests")
    assert (after_kb - before_kb) * 1024 < MAX_GROWTH_BYTES
