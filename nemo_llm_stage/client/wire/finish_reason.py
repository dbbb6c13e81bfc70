"""Why a choice ended, in the words of many servers."""

from __future__ import annotations

from enum import Enum

from nemo_llm_stage.core import CUT_OFF_REASONS


class Finish(Enum):
    """What a finish reason says of the text before it."""

    WHOLE = "whole"
    """The model ended its answer."""

    CUT = "cut"
    """A limit of tokens cut it."""

    FILTERED = "filtered"
    """The server kept the text, or a part of it, back."""

    BROKEN = "broken"
    """The server failed or stopped in the middle."""

    UNKNOWN = "unknown"
    """The server gave no reason, or one that is not known; a text before it is an answer."""


_REASONS = {
    Finish.WHOLE: (
        *("stop", "tool_calls", "function_call"),  # the OpenAI protocol
        *("eos_token", "stop_sequence", "eos", "end_turn", "complete", "repetition"),  # TGI, Anthropic, Cohere, vLLM
        *("stop_str", "tool_use", "tool_call", "finished", "finish", "completed", "done"),
    ),
    Finish.CUT: tuple(CUT_OFF_REASONS),
    Finish.FILTERED: (
        *("content_filter", "content_filtered", "guardrail_intervened", "refusal"),  # OpenAI, Bedrock, Anthropic
        *("safety", "recitation", "blocklist", "prohibited_content", "spii", "error_toxic"),  # Gemini, Cohere
    ),
    Finish.BROKEN: (
        *("abort", "error", "cancelled", "failed", "timeout", "interrupted"),  # vLLM, SGLang, Mistral, TensorRT-LLM
        *("insufficient_system_resource", "not_finished", "user_cancel"),  # DeepSeek, TensorRT-LLM, Cohere
        *("load", "unload"),  # Ollama
    ),
}
_FINISHES = {word: finish for finish, words in _REASONS.items() for word in words}
_BROKEN_STARTS = ("abort", "error", "cancel", "fail")


def finish_of(reason: str | None) -> Finish:
    """Return what a finish reason says; upper and lower case are the same."""
    if reason is None:
        return Finish.UNKNOWN
    finish = _FINISHES.get(reason)
    if finish is not None:
        return finish
    word = reason.strip().lower()
    if word not in _FINISHES and word.startswith(_BROKEN_STARTS):
        return Finish.BROKEN
    return _FINISHES.get(word, Finish.UNKNOWN)
