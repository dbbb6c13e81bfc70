"""
The life of one generation request: arrive, be checked, be served, be answered, be counted.

Knows exchanges, the engine and the stats, and brings them together. Knows nothing of other routes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson

from nemo_llm_stage.testing.simulator.delivery import deliver_body, deliver_events, open_stream
from nemo_llm_stage.testing.simulator.faults import Fault, pick_fault
from nemo_llm_stage.testing.simulator.generation import (
    Request,
    answer_for,
    check_request,
    choices_for,
    service_time_for,
)
from nemo_llm_stage.testing.simulator.protocol import Exchange, parse_headers
from nemo_llm_stage.testing.simulator.replies import Answer, Choice, Refusal, error_body
from nemo_llm_stage.testing.simulator.slots import Job, QueueFullError

if TYPE_CHECKING:
    from nemo_llm_stage.testing.simulator.service import Service

_OK, _BAD_REQUEST, _INTERNAL_ERROR, _UNAVAILABLE = 200, 400, 500, 503
_CHAT = "/v1/chat/completions"
_HARMLESS = frozenset({None, "slow_drip", "content_filter"})
_WITHOUT_STATUS = frozenset({"drop", "reset", "half_body", "wrong_length"})
_STATUS_WORDS = {401: "Invalid key.", 429: "Rate limit exceeded.", 503: "The server is not available."}


@dataclass
class RecordedRequest:
    """
    One generation request as the server saw it. Times are seconds of the server's monotonic clock.

    Attributes:
        path: Without the query.
        head: Request line and headers as they came.
        body: The JSON body; None where it was no JSON.
        arrived_monotonic_s: When it was complete.
        attempt: How many times its body has come, this time included.
        started_monotonic_s: When it began to be served; None if it never did.
        ended_monotonic_s: When it was answered or its client left; None until then.
        status: HTTP status of the answer; 0 where there was none, None until then.
        fault: The fault that hit it.
    """

    path: str
    head: bytes = field(repr=False)
    body: Any
    arrived_monotonic_s: float
    attempt: int
    started_monotonic_s: float | None = None
    ended_monotonic_s: float | None = None
    status: int | None = None
    fault: Fault | None = None

    @cached_property
    def headers(self) -> dict[str, str]:
        """Header names in lower case, and their values."""
        return parse_headers(self.head)


class RequestLife:
    """Takes `exchange` from its arrival to its end; `begin` starts it."""

    __slots__ = ("answer", "body_hash", "exchange", "fault", "job", "record", "request", "service", "status", "streams")

    def __init__(self, service: Service, exchange: Exchange) -> None:
        self.service = service
        self.exchange = exchange
        self.body_hash = hash(exchange.body)
        self.fault: Fault | None = None
        self.job: Job | None = None
        self.status = 0
        self.streams = False
        self.record: RecordedRequest
        self.request: Request
        self.answer: Answer

    def begin(self) -> None:
        """Check the request and give it to the engine, or refuse it."""
        exchange, service = self.exchange, self.service
        now_s = time.monotonic()
        attempt = service.recorder.arrived(self.body_hash, now_s) + 1
        self.record = RecordedRequest(exchange.path, exchange.head, None, now_s, attempt)
        service.recorded.append(self.record)
        exchange.on_end = self._ended
        try:
            service.check_access(exchange)
            service.check_rate(exchange, now_s)
            self.record.body = body = _parse(exchange.body)
            self.request = check_request(body, is_chat=exchange.path == _CHAT, config=service.config)
            self._meet_fault(attempt)
            if not self._is_lost():
                self._submit(choices_for(self.request, service.config, service.answer))
        except Refusal as refusal:
            self.status = refusal.status
            exchange.reply(refusal.status, refusal.body, headers=refusal.headers)
        except Exception as error:  # noqa: BLE001 - a field of the wrong type, or the user's own answer function
            self.status = _INTERNAL_ERROR
            exchange.reply(_INTERNAL_ERROR, error_body(_INTERNAL_ERROR, f"{type(error).__name__}: {error}"))

    def _meet_fault(self, attempt: int) -> None:
        service = self.service
        if not service.faults:
            return
        since_s = time.monotonic() - service.faults_set_s
        prompt, seed = self.request.prompt, service.config.seed
        fault = pick_fault(service.faults, prompt=prompt, attempt=attempt, since_s=since_s, seed=seed)
        self.fault = self.record.fault = fault
        if fault is not None and isinstance(fault.kind, int):
            retry_after = "" if fault.retry_after_s is None else f"retry-after: {fault.retry_after_s:g}\r\n"
            message = _STATUS_WORDS.get(fault.kind, "The server failed, as it was told to.")
            raise Refusal(fault.kind, message, headers=retry_after)

    def _is_lost(self) -> bool:
        kind = None if self.fault is None else self.fault.kind
        if self.fault is not None and kind == "exit":
            self.service.on_exit(self.fault.seconds)
        return kind in ("exit", "hang")

    def _submit(self, choices: list[Choice]) -> None:
        request, config = self.request, self.service.config
        self.streams = request.is_stream and (self.fault is None or self.fault.kind != "html")
        self.answer = answer_for(request, choices, config, self.service.next_number(), self.fault)
        self.job = Job(
            prompt=request.prompt,
            prompt_tokens=request.prompt_tokens,
            output_tokens=max(1, self.answer.output_tokens),
            service_s=service_time_for(request, config),
            on_start=self._started,
            on_finish=self._finished,
        )
        try:
            self.service.engine.submit(self.job)
        except QueueFullError:
            self.job = None
            raise Refusal(_UNAVAILABLE, "The server is overloaded: too many requests are waiting.") from None

    def _started(self) -> None:
        job = self.job
        assert job is not None
        self.record.started_monotonic_s = job.started_s
        self.answer.cached_tokens = job.cached_tokens
        self.service.recorder.seen.prompt_tokens += job.prompt_tokens
        self.service.recorder.seen.cached_tokens += job.cached_tokens
        if self.streams:
            open_stream(self.exchange, self.answer.opening_events())

    def _finished(self) -> None:
        assert self.job is not None
        self.job.is_finished = True
        self.status = 0 if self.fault is not None and self.fault.kind in _WITHOUT_STATUS else _OK
        if self.streams:
            deliver_events(self.exchange, self.answer.to_events(with_usage=self.request.wants_usage), self.fault)
        else:
            deliver_body(self.exchange, self.answer.to_body(), self.fault)

    def _ended(self, is_answered: bool) -> None:
        recorder, job = self.service.recorder, self.job
        self.job = None  # the job points back here: a cycle for each request would keep the garbage collector busy
        now_s = time.monotonic()
        is_whole = is_answered and self.status == _OK and (self.fault is None or self.fault.kind in _HARMLESS)
        if job is not None:
            num_tokens = job.output_tokens if job.is_finished else self.service.engine.cancel(job)
            if is_whole:
                recorder.seen.output_tokens += num_tokens
            else:
                recorder.seen.wasted_tokens += num_tokens
        self.record.ended_monotonic_s = now_s
        self.record.status = self.status if is_answered else 0
        if is_answered:
            recorder.answered(self.body_hash, self.status, now_s, is_whole=is_whole)
        else:
            recorder.aborted(now_s)


def _parse(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refusal(_BAD_REQUEST, f"The request body is not valid JSON: {error}") from error
