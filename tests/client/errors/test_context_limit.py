"""The numbers in what servers say when a prompt is too long."""

from __future__ import annotations

import json

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
    # LM Studio
    ("Trying to keep the first 111490 tokens when context the overflows. However, the model is loaded with context length of only 32768 tokens, which is not enough. Try to load the model with a larger context length, or provide a shorter input.", 32768, 111490),  # noqa: E501
    ("The number of tokens to keep from the initial prompt is greater than the context length (n_keep: 13055>= n_ctx: 4096). Try to load the model with a larger context length, or provide a shorter input.", 4096, 13055),  # noqa: E501
    # Cohere
    ("too many tokens: size limit exceeded by 19296 tokens. Try using shorter or fewer inputs. The limit for this model is 132000 tokens.", 132000, 151296),  # noqa: E501
    ("too many tokens: total number of tokens (prompt and prediction) cannot exceed 2048 - received 6354. Try using a shorter prompt or a smaller max_tokens value.", 2048, 6354),  # noqa: E501
    # TensorRT-LLM, NIM
    ("The sum of prompt length (9351.0), query length (0) should not exceed max_num_tokens (8192)", 8192, 9351),
    ("Cannot process new request: Prompt length (5056) exceeds maximum sequence length (2048)", 2048, 5056),
    ("Prompt length (200) exceeds maximum input length (100)", 100, 200),
    ("You passed 170753 input tokens and requested 32000 output tokens. However, the model's context length is only 202752 tokens, resulting in a maximum input length of 170752 tokens. (parameter=input_tokens, value=170753)", 202752, 170753),  # noqa: E501
    ("Input length 1203 exceeds maximum allowed token size 512", 512, 1203),
    # xAI, Databricks, OpenRouter, Azure, Groq, Anthropic, Moonshot, GitHub Models
    ("This model's maximum prompt length is 131072 but the request contains 537812 tokens.", 131072, 537812),
    ("Bad request: rpc error: code = InvalidArgument desc = prompt token count (4595) cannot exceed 4096. Please reduce the length of the prompt.", 4096, 4595),  # noqa: E501
    ("Bad request: rpc error: code = InvalidArgument desc = max_tokens (10000) cannot exceed 8192. Please reduce the length of max output tokens generated.", 8192, None),  # noqa: E501
    ('This endpoint\'s maximum context length is 65536 tokens. However, you requested about 92208 tokens (60833 of text input, 10042 of tool input, 21333 in the output). Please reduce the length of either one, or use the "middle-out" transform to compress your prompt automatically.', 65536, 60833),  # noqa: E501
    ("Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 272543 tokens. Please reduce the length of the messages.", 272000, 272543),  # noqa: E501
    ("Request too large for model `llama-3.3-70b` in organization `org_x` on tokens per minute (TPM): Limit 30000, Requested 342389, please reduce your message size and try again.", 30000, 342389),  # noqa: E501
    ("input length and `max_tokens` exceed context limit: 86888 + 119866 > 204648, decrease input length or `max_tokens` and try again", 204648, 86888),  # noqa: E501
    ("Your request exceeded model token limit: 262144 (requested: 300000)", 262144, None),
    ("prompt token count of 70000 exceeds the limit of 64000", 64000, 70000),
    # Ollama states only by how much
    ("prompt too long; exceeded max context length by 4021 tokens", None, None),
    ("the input length exceeds the context length", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "max_context_tokens", "prompt_tokens"), REFUSALS)
def test_the_limits_of_every_server_are_read(
    text: str, max_context_tokens: int | None, prompt_tokens: int | None
) -> None:
    """Each words them in its own way; the refusal is known for what it is."""
    body = text.encode() if text.startswith("{") else json.dumps({"error": {"message": text}}).encode()
    error = error_of_refusal(400, body)
    assert isinstance(error, ContextOverflowError)
    assert (error.max_context_tokens, error.prompt_tokens) == (max_context_tokens, prompt_tokens)


@pytest.mark.parametrize("digits", [16, 5_000, 100_000])
def test_a_number_that_is_none_is_passed_over(digits: int) -> None:
    """A run of digits longer than any limit is not read as a number."""
    assert context_limit_of(f"maximum context length is {'7' * digits} tokens") == (None, None)


def test_an_overflow_carries_its_numbers() -> None:
    """For whoever makes the prompt fit."""
    body = b'{"error": {"message": "maximum context length is 100 tokens, your prompt contains 120 input tokens"}}'
    error = error_of_refusal(400, body)
    assert isinstance(error, ContextOverflowError)
    assert (error.max_context_tokens, error.prompt_tokens) == (100, 120)


def test_a_server_that_states_no_limit_is_taken_at_its_word() -> None:
    """Nothing is guessed."""
    assert context_limit_of("the prompt is too long") == (None, None)
