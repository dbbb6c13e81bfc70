"""
Bodies as vLLM writes them: completions, streams, errors, models, metrics.

Pure: values in, bytes out. Shapes follow bodies captured from vLLM 0.32. Knows nothing of sockets or time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from nemo_llm_stage.testing.simulator.answers import num_tokens_of, tokens_of
from nemo_llm_stage.testing.simulator.config import BLOCK_TOKENS, ServerConfig
from nemo_llm_stage.testing.simulator.stats import ServerStats

DONE = b"data: [DONE]\n\n"
_FINGERPRINT = "nemo-llm-stage-simulated"
_MAX_PIECES = 8
_ERROR_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "Method Not Allowed",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class Refusal(Exception):  # noqa: N818 - an answer, not a failure of the server
    """A request that gets an error answer."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, headers: str = "", body: bytes | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = body or error_body(status, message, param=param)


class Choice(NamedTuple):
    """One choice of an answer, before it is written."""

    text: str | None
    finish_reason: str
    reasoning: str | None = None


@dataclass(slots=True)
class Answer:
    """A whole answer, before it is written as a body or a stream. `num_choices` also counts what a fault took away."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    num_choices: int
    prompt_tokens: int
    output_tokens: int
    is_chat: bool
    reasoning_field: str | None
    num_logprobs: int | None
    cached_tokens: int = 0

    @property
    def usage(self) -> dict[str, Any]:
        """Token counts under their wire names."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "completion_tokens": self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def to_body(self) -> bytes:
        """Return the body of an answer that comes in one piece."""
        write = self._chat_choice if self.is_chat else self._text_choice
        return orjson.dumps(
            {
                "id": self.id,
                "object": "chat.completion" if self.is_chat else "text_completion",
                "created": self.created,
                "model": self.model,
                "choices": [write(index, choice) for index, choice in enumerate(self.choices)],
                "system_fingerprint": _FINGERPRINT,
                "usage": self.usage,
            }
        )

    def to_events(self, *, with_usage: bool) -> list[bytes]:
        """Return the server-sent events of a stream, without the first ones that `opening_events` gives."""
        events = []
        for index, choice in enumerate(self.choices):
            pieces = pieces_of(choice.text or "")
            if choice.reasoning is not None and self.reasoning_field:
                events.append(self._event(index, {self.reasoning_field: choice.reasoning}, None))
            events.extend(self._event(index, {"content": piece}, None) for piece in pieces)
            events.append(self._event(index, {}, choice.finish_reason))
        if with_usage:
            events.append(self._chunk([], usage=self.usage))
        return [*events, DONE]

    def opening_events(self) -> list[bytes]:
        """Return the events that vLLM sends with the first token: the role of each choice."""
        if not self.is_chat:
            return []
        return [self._event(index, {"role": "assistant", "content": ""}, None) for index in range(self.num_choices)]

    def _event(self, index: int, delta: dict[str, Any], finish_reason: str | None) -> bytes:
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish_reason}
        if self.is_chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        return self._chunk([choice])

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        chunk = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return b"data: " + orjson.dumps({**chunk, **more}) + b"\n\n"

    def _chat_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None, "tool_calls": []}
        if self.reasoning_field:
            message[self.reasoning_field] = choice.reasoning
        logprobs = None if self.num_logprobs is None else chat_logprobs(choice.text or "", self.num_logprobs)
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": None,
        }

    def _text_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        logprobs = None if self.num_logprobs is None else text_logprobs(choice.text or "", self.num_logprobs)
        return {
            "index": index,
            "text": choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": None,
        }


def output_tokens_of(choices: list[Choice]) -> int:
    """Return the tokens generated for `choices`, the thinking included."""
    return sum(num_tokens_of(choice.text or "") + num_tokens_of(choice.reasoning or "") for choice in choices)


def pieces_of(text: str) -> list[str]:
    """Return `text` in at most 8 pieces, as a stream carries it."""
    size = max(1, -(-len(text) // _MAX_PIECES))
    return [text[start : start + size] for start in range(0, len(text), size)]


def chat_logprobs(text: str, num_top: int) -> dict[str, Any]:
    """Return log probabilities in the shape of /v1/chat/completions: each token is nearly certain."""
    content = []
    for token in tokens_of(text):
        top = [_chat_logprob(token, rank) for rank in range(num_top)]
        content.append({**_chat_logprob(token, 0), "top_logprobs": top})
    return {"content": content}


def _chat_logprob(token: str, rank: int) -> dict[str, Any]:
    token += "?" * rank
    return {"token": token, "logprob": _logprob(rank), "bytes": list(token.encode())}


def text_logprobs(text: str, num_top: int) -> dict[str, Any]:
    """Return log probabilities in the shape of /v1/completions."""
    tokens = tokens_of(text)
    return {
        "tokens": tokens,
        "token_logprobs": [_logprob(0)] * len(tokens),
        "top_logprobs": [{token + "?" * rank: _logprob(rank) for rank in range(num_top)} for token in tokens],
        "text_offset": [len(tokens[0]) * index for index in range(len(tokens))],
    }


def _logprob(rank: int) -> float:
    return -0.125 - 3.0 * rank


def error_body(status: int, message: str, *, param: str | None = None) -> bytes:
    """Return an error in vLLM's shape; its code is the status as a number."""
    name = _ERROR_TYPES.get(status, "Error")
    return orjson.dumps({"error": {"message": message, "type": name, "param": param, "code": status}})


def wrong_key_body() -> bytes:
    """Return what OpenAI answers to a wrong key."""
    return orjson.dumps(
        {
            "error": {
                "message": "Incorrect API key provided.",
                "type": "invalid_request_error",
                "param": None,
                "code": "invalid_api_key",
            }
        }
    )


def models_body(models: tuple[str, ...], max_model_len: int, created: int) -> bytes:
    """Return the body of /v1/models."""
    cards = [
        {
            "id": model,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": model,
            "parent": None,
            "max_model_len": max_model_len,
        }
        for model in models
    ]
    return orjson.dumps({"object": "list", "data": cards})


def metrics_body(stats: ServerStats, config: ServerConfig) -> bytes:
    """Return the body of /metrics: vLLM's names in Prometheus text format."""
    rows = [
        ("num_requests_running", "gauge", stats.running),
        ("num_requests_waiting", "gauge", stats.waiting),
        ("kv_cache_usage_perc", "gauge", stats.kv_cache_usage),
        ("num_preemptions_total", "counter", stats.num_preemptions),
        ("prefix_cache_queries_total", "counter", stats.prompt_tokens),
        ("prefix_cache_hits_total", "counter", stats.cached_tokens),
        ("prompt_tokens_total", "counter", stats.prompt_tokens),
        ("request_prefill_time_seconds_sum", "counter", stats.prefill_s / config.speedup),
        ("generation_tokens_total", "counter", stats.output_tokens + stats.wasted_tokens),
    ]
    model = config.models[0]
    lines = []
    if config.scheduler == "batching":
        size = f'block_size="{BLOCK_TOKENS}",num_gpu_blocks="{config.num_kv_blocks}"'
        lines.append(f'vllm:cache_config_info{{{size},engine="0",model_name="{model}"}} 1.0')
    for name, kind, value in rows:
        lines.append(f"# HELP vllm:{name} Simulated.\n# TYPE vllm:{name} {kind}")
        lines.append(f'vllm:{name}{{engine="0",model_name="{model}"}} {float(value)}')
    return ("\n".join(lines) + "\n").encode()
