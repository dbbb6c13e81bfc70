"""The numbers in what servers say when a prompt is too long."""

from __future__ import annotations

import pytest

from nemo_llm_stage.client.errors.context_limit import context_limit_of
from nemo_llm_stage.client.errors.refusal import error_of_refusal
from nemo_llm_stage.errors import ContextOverflowError

REFUSALS = [
    # vLLM
    ("maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens", 2048, 2049),
    ("maximum context length is 4096 tokens. However, you requested 5000 tokens (904 in the messages, 4096 in the completion).", 4096, 904),  # noqa: E501
    ("'max_tokens' is too large: 4096. This model's maximum context length is 4096 tokens and your request has 904 input tokens (4096 > 4096 - 904).", 4096, 904),  # noqa: E501
    ("max_tokens=5000 cannot be greater than max_model_len=2048. Please request fewer output tokens.", 2048, None),
    ("The decoder prompt (length 5000) is longer than the maximum model length of 4096.", 4096, 5000),
    # OpenAI
    ("maximum context length is 4097 tokens. However, your messages resulted in 6164 tokens.", 4097, 6164),
    ("maximum context length is 8192 tokens, however you requested 8500 tokens (4500 in your prompt; 4000 for the completion).", 8192, 4500),  # noqa: E501
    # SGLang
    ("The input (5000 tokens) is longer than the model's context length (4096 tokens).", 4096, 5000),
    ("exceeds the model's maximum context length of 1000 tokens. You requested a total of 1206 tokens: 6 tokens from the input messages and 1200 tokens for the completion.", 1000, 6),  # noqa: E501
    ("Input length (40000 tokens) exceeds the maximum allowed length (32767 tokens).", 32767, 40000),
    # llama.cpp
    ('{"error":{"code":400,"message":"…","type":"exceed_context_size_error","n_prompt_tokens":5010,"n_ctx":4096}}', 4096, 5010),  # noqa: E501
    ("request (5010 tokens) exceeds the available context size (4096 tokens), try increasing it", 4096, 5010),
    # TGI, TensorRT-LLM, gateways
    ("`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 512 `max_new_tokens`", 4096, 4000),  # noqa: E501
    ("default_max_tokens (-100) = max_seq_len (4096) - prompt_len (4196)", 4096, 4196),
    ("prompt is too long: 210,000 tokens > 200,000 maximum", 200_000, 210_000),
    ("Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length", 32768, 40000),  # noqa: E501
    ("The input token count (1196265) exceeds the maximum number of tokens allowed (1048575)", 1048575, 1196265),
]  # fmt: skip


@pytest.mark.parametrize(("text", "max_context_tokens", "prompt_tokens"), REFUSALS)
def test_the_limits_of_every_server_are_read(text: str, max_context_tokens: int, prompt_tokens: int | None) -> None:
    """Each words them in its own way."""
    assert context_limit_of(text) == (max_context_tokens, prompt_tokens)


def test_an_overflow_carries_its_numbers() -> None:
    """For whoever makes the prompt fit."""
    body = b'{"error": {"message": "maximum context length is 100 tokens, your prompt contains 120 input tokens"}}'
    error = error_of_refusal(400, body)
    assert isinstance(error, ContextOverflowError)
    assert (error.max_context_tokens, error.prompt_tokens) == (100, 120)


def test_a_server_that_states_no_limit_is_taken_at_its_word() -> None:
    """Nothing is guessed."""
    assert context_limit_of("the prompt is too long") == (None, None)
