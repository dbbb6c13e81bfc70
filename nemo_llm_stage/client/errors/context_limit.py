"""
How long a prompt may be, read out of a server's refusal.

Servers agree on no form: llama.cpp has fields, all others put the numbers into a sentence. Pure: knows texts only.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NUMBER = r"(\d[\d,]*)"

_MAX_CONTEXT = re.compile(
    rf'"n_ctx"\s*:\s*{_NUMBER}'  # llama.cpp
    rf"|context (?:length|size|window)\D{{1,12}}{_NUMBER}"  # OpenAI, vLLM, SGLang, llama.cpp
    rf"|(?:maximum )?model length of {_NUMBER}|max_model_len[= (]+{_NUMBER}"  # vLLM
    rf"|max_seq_len[= (]+{_NUMBER}"  # TensorRT-LLM
    rf"|allowed length \({_NUMBER}|tokens allowed \({_NUMBER}"  # SGLang; Gemini
    rf"|{_NUMBER} maximum"  # Anthropic: "> 200000 maximum"; Mistral: "32768 maximum context length"
    rf"|maximum prompt length is {_NUMBER}"  # xAI
    rf"|must be <= {_NUMBER}|must have less than {_NUMBER}",  # TGI
    re.IGNORECASE,
)
_PROMPT = re.compile(
    rf'"n_prompt_tokens"\s*:\s*{_NUMBER}'  # llama.cpp
    rf"|{_NUMBER} input tokens|parameter=input_tokens, value={_NUMBER}"  # vLLM
    rf"|{_NUMBER} (?:tokens )?(?:in|from) (?:the|your) (?:messages|prompt|input)"  # OpenAI, vLLM, SGLang
    rf"|messages resulted in {_NUMBER}"  # OpenAI
    rf"|input (?:length )?\({_NUMBER}|prompt \(length {_NUMBER}|request \({_NUMBER} tokens"  # SGLang; vLLM; llama.cpp
    rf"|prompt_len \({_NUMBER}|input token count \({_NUMBER}"  # TensorRT-LLM; Gemini
    rf"|too long: {_NUMBER}|contains {_NUMBER} tokens"  # Anthropic; Mistral, xAI
    rf"|Given: {_NUMBER}",  # TGI
    re.IGNORECASE,
)


class ContextLimit(NamedTuple):
    """
    What a server said of lengths, in tokens; None where it did not.

    Attributes:
        max_context_tokens: Prompt and answer together.
        prompt_tokens: Of the prompt it refused. vLLM stops counting at the limit: a lower bound.
    """

    max_context_tokens: int | None = None
    prompt_tokens: int | None = None


def context_limit_of(text: str) -> ContextLimit:
    """
    Return the numbers in a refusal of OpenAI, vLLM, SGLang, llama.cpp, TGI, TensorRT-LLM or one that words it alike.

    Args:
        text: The whole body, or the message in it.
    """
    return ContextLimit(_first_number(_MAX_CONTEXT, text), _first_number(_PROMPT, text))


def _first_number(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    if match is None:
        return None
    return int(next(group for group in match.groups() if group).replace(",", ""))
