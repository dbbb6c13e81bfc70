"""
One attempt at one server: a request's bytes out, a Completion or one of our errors back.

If the server's limit is governed, its governor learns what was sent and how it ended. Knows nothing of retries.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any

from nemo_llm_stage.client.endpoints.member import Member
from nemo_llm_stage.client.errors.response import error_of_response
from nemo_llm_stage.client.generation import GenerationConfig
from nemo_llm_stage.client.governor.governed import Governed
from nemo_llm_stage.client.governor.sending import Sending
from nemo_llm_stage.client.hiding import Secrets
from nemo_llm_stage.client.http.transport import HTTPResponse
from nemo_llm_stage.client.http_session import HTTPSession
from nemo_llm_stage.client.wire import StreamedAnswer, WireRequest, completion_of_answer, decode_answer
from nemo_llm_stage.client.wire.lenient_json import LARGE_BYTES
from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import RequestError, TransientError

_OK = HTTPStatus.OK.value


def attempt(
    session: HTTPSession,
    member: Member,
    request: WireRequest,
    *,
    model: str,
    secrets: Secrets,
    config: GenerationConfig,
) -> Coroutine[Any, Any, Completion]:
    """
    Return the server's answer, to be awaited.

    Args:
        session: The client's connections, and what is sent with each request.
        member: The server.
        request: What is sent.
        model: The model's name, for messages.
        secrets: Kept out of messages.
        config: The parameters that the rows of a column share.

    Raises:
        RequestError: There is none.
    """
    if member.governed is None:
        return _exchange(session, member, request, model, secrets)
    return _governed_exchange(session, member, request, model, secrets, member.governed, config)


async def _governed_exchange(
    session: HTTPSession,
    member: Member,
    request: WireRequest,
    model: str,
    secrets: Secrets,
    governed: Governed,
    config: GenerationConfig,
) -> Completion:
    with governed.sending(len(request.body), config) as sending:
        try:
            completion = await _exchange(session, member, request, model, secrets, sending)
        except TransientError as error:
            error.is_overload = await _is_overload(error, governed)
            if error.is_overload:
                is_full = error.status == HTTPStatus.SERVICE_UNAVAILABLE
                governed.note_refusal(sending, error.retry_after_s, is_full=is_full)
            raise
    governed.note_answer(sending, completion.usage)
    return completion


async def _exchange(
    session: HTTPSession,
    member: Member,
    request: WireRequest,
    model: str,
    secrets: Secrets,
    sending: Sending | None = None,
) -> Completion:
    endpoint = member.endpoint
    url = session.sent.add_query(endpoint.url(request.path))
    stream: StreamedAnswer | None = None

    def feed(piece: bytes) -> bool:  # called if the server answers with a stream, asked for or not
        nonlocal stream
        stream = stream or StreamedAnswer()
        return stream.feed(piece)

    timeout_s = request.timeout_s
    if sending is not None and timeout_s is None and session.has_usual_timeout:
        timeout_s = sending.timeout_s
    started_monotonic_s = time.monotonic()
    response: HTTPResponse = await session.transport.send(
        url, request.body, headers=request.headers, timeout_s=timeout_s, on_event_bytes=feed
    )
    if sending is not None:
        sending.note_headers(response.headers)
    if response.status != _OK:
        has_key = session.sent.has_key
        raise error_of_response(response, endpoint.url(request.path), model, secrets, has_key=has_key)
    if response.was_streamed:
        answer = (stream or StreamedAnswer()).whole()
    else:
        is_bounded = len(response.body) < LARGE_BYTES or not request.asks_for_logprobs
        answer = decode_answer(response.body, is_bounded=is_bounded)
    latency_s = time.monotonic() - started_monotonic_s
    return completion_of_answer(answer, endpoint=endpoint.base_url, latency_s=latency_s)


async def _is_overload(error: RequestError, governed: Governed) -> bool:
    """Whether a server that is up refused a request because it has too many: 429, or 503 where its health is good."""
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        return True
    return error.status == HTTPStatus.SERVICE_UNAVAILABLE and await governed.is_healthy()
