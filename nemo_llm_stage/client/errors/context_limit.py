"""
How many tokens a model takes, read from a server's refusal.

Servers agree on no form: llama.cpp has fields, all others put the numbers into a sentence. Pure: knows texts only.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NUMBER = r"(?<![0-9,])([0-9][0-9,]{0,14})(?![0-9,]*[0-9])"
"""At most 15 characters: a longer run of digits is no number of tokens. Starts only where the number starts."""

_MAX_CONTEXT = re.compile(
    rf'"n_ctx"[ ]?:[ ]?{_NUMBER}|n_ctx: {_NUMBER}'  # llama.cpp; LM Studio
    rf"|Limit {_NUMBER}, Requested"  # Groq, OpenAI: more than the tokens per minute of the account
    rf"|context limit: [0-9]{{1,9}} \+ [0-9]{{1,9}} > {_NUMBER}"  # Anthropic
    rf"|context (?:length|size|window|limit)(?! \(n_keep| by )[^0-9]{{1,20}}{_NUMBER}"  # OpenAI, vLLM, SGLang
    rf"|(?:maximum )?model length of {_NUMBER}|max_model_len[= (]{{1,3}}{_NUMBER}"  # vLLM
    rf"|(?:max_seq_len|max_num_tokens|max_input_len)[= (]{{1,3}}{_NUMBER}"  # TensorRT-LLM
    rf"|maximum (?:input|sequence) length \({_NUMBER}"  # TensorRT-LLM behind Triton
    rf"|allowed (?:length|token size)[^0-9]{{1,4}}{_NUMBER}|tokens allowed \({_NUMBER}"  # SGLang, NIM; Gemini
    rf"|{_NUMBER} maximum"  # Anthropic: "> 200000 maximum"; Mistral: "32768 maximum context length"
    rf"|maximum prompt length is {_NUMBER}"  # xAI
    rf"|(?:configured limit|the limit) of {_NUMBER}"  # OpenAI on Azure; GitHub Models
    rf"|(?:prediction\)|prompt|\([0-9]{{1,9}}\)) cannot exceed {_NUMBER}"  # Cohere; Databricks
    rf"|limit for this model is {_NUMBER}"  # Cohere
    rf"|token limit: {_NUMBER}"  # Moonshot
    rf"|must be <= {_NUMBER}|must have less than {_NUMBER}",  # TGI
    re.IGNORECASE,
)
_PROMPT = re.compile(
    rf'"n_prompt_tokens"[ ]?:[ ]?{_NUMBER}|n_keep: {_NUMBER}'  # llama.cpp; LM Studio
    rf"|{_NUMBER} input tokens|parameter=input_tokens, value={_NUMBER}"  # vLLM
    rf"|{_NUMBER} (?:tokens )?(?:in|from) (?:the|your) (?:messages|prompt|input)"  # OpenAI, vLLM, SGLang
    rf"|{_NUMBER} of text input"  # OpenRouter
    rf"|messages resulted in {_NUMBER}"  # OpenAI
    rf"|keep the first {_NUMBER} tokens"  # LM Studio
    rf"|context limit: {_NUMBER} \+"  # Anthropic
    rf"|input (?:length )?\({_NUMBER}|prompt \(length {_NUMBER}|request \({_NUMBER} tokens"  # SGLang; vLLM; llama.cpp
    rf"|Input length {_NUMBER} exceeds"  # NIM
    rf"|prompt_len \({_NUMBER}|prompt length \({_NUMBER}|input token count \({_NUMBER}"  # TensorRT-LLM; Gemini
    rf"|prompt token count (?:\(|of ){_NUMBER}|prompt tokens? \({_NUMBER}|received {_NUMBER}"  # Databricks; Cohere
    rf"|too long: {_NUMBER}|contains {_NUMBER} tokens"  # Anthropic; Mistral, xAI
    rf"|Limit [0-9]{{1,9}}, Requested {_NUMBER}"  # Groq, OpenAI: prompt and answer together, so an upper bound
    rf"|Given: {_NUMBER}",  # TGI
    re.IGNORECASE,
)
_EXCESS = re.compile(rf"size limit exceeded by {_NUMBER}", re.IGNORECASE)  # Cohere


class ContextLimit(NamedTuple):
    """
    The numbers of tokens in a refusal; None where the server stated none.

    Attributes:
        max_context_tokens: Most tokens of prompt and answer together.
        prompt_tokens: Tokens of the refused prompt. vLLM stops counting at its limit: a lower bound.
    """

    max_context_tokens: int | None = None
    prompt_tokens: int | None = None


def context_limit_of(text: str) -> ContextLimit:
    """
    Return the numbers in a refusal. Linear in the length of `text`; callers pass a few kB.

    Args:
        text: The server's words.
    """
    limit, prompt = _first_number(_MAX_CONTEXT, text), _first_number(_PROMPT, text)
    if prompt is None and limit is not None:
        excess = _first_number(_EXCESS, text)
        prompt = None if excess is None else limit + excess
    return ContextLimit(limit, prompt)


def _first_number(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    if match is None:
        return None
    return int(next(group for group in match.groups() if group).replace(",", ""))
