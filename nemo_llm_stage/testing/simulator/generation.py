"""
One generation request, from its body to its answer on the wire.

Checks the body as vLLM does, works out what the model says, waits for the engine, answers: rightly, or as a fault
wants it. Knows nothing of routes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nemo_llm_stage.testing.simulator.answers import (
    answer_to,
    cut_off,
    digest_of,
    fill_up,
    lognormal,
    num_tokens_of,
    render_prompt,
    uniform,
)
from nemo_llm_stage.testing.simulator.config import Body, ServerConfig
from nemo_llm_stage.testing.simulator.constrained import SchemaError, json_answer
from nemo_llm_stage.testing.simulator.faults import Fault
from nemo_llm_stage.testing.simulator.replies import Answer, Choice, Refusal, output_tokens_of

Answerer = Callable[[Body], str]
"""From a request's body to the text of its answer."""

_BAD_REQUEST = 400
_COMPLETIONS_MAX_TOKENS = 16  # what /v1/completions takes where max_tokens is missing, in OpenAI's API and vLLM's


@dataclass(slots=True)  # frozen ones take 1 µs longer to make
class Request:
    """
    A checked request.

    Attributes:
        body: As it came.
        is_chat: For /v1/chat/completions.
        prompts: Rendered; more than one only for /v1/completions.
        prompt_tokens: Of all of them.
        max_tokens: Most output tokens of one choice.
    """

    body: Body
    is_chat: bool
    prompts: list[str]
    prompt_tokens: int
    max_tokens: int

    @property
    def prompt(self) -> str:
        """All prompts as one text."""
        return self.prompts[0] if len(self.prompts) == 1 else "\n".join(self.prompts)

    @property
    def is_stream(self) -> bool:
        """Whether the answer is to come in pieces."""
        return bool(self.body.get("stream"))

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives for each token; None for no log probabilities."""
        logprobs = self.body.get("logprobs")
        if not self.is_chat:
            return None if logprobs is None else int(logprobs)
        return int(self.body.get("top_logprobs") or 0) if logprobs else None


def check_request(body: Any, *, is_chat: bool, config: ServerConfig) -> Request:
    """
    Return the request in `body`.

    Raises:
        Refusal: vLLM would refuse it.
    """
    if not isinstance(body, dict):
        raise Refusal(_BAD_REQUEST, "The request body must be a JSON object.")
    model = body.get("model")
    if model not in config.models and not config.accept_any_model and model is not None:
        aliases = ", ".join(config.models)
        raise Refusal(404, f"The model `{model}` does not exist. Valid aliases: {aliases}.", param="model")
    prompts = _prompts_of(body, is_chat=is_chat)
    temperature = body.get("temperature")
    if temperature is not None and temperature < 0:
        message = f"temperature must be non-negative, got {float(temperature)}."
        raise Refusal(_BAD_REQUEST, f"{message} (parameter=temperature, value={temperature})", param="temperature")
    prompt_tokens = [num_tokens_of(prompt) for prompt in prompts]
    max_tokens = _max_tokens_of(body, max(prompt_tokens), is_chat=is_chat, limit=config.max_model_len)
    return Request(body, is_chat, prompts, sum(prompt_tokens), max_tokens)


def _prompts_of(body: Body, *, is_chat: bool) -> list[str]:
    name = "messages" if is_chat else "prompt"
    given = body.get(name)
    if not given or not isinstance(given, list if is_chat else str | list):
        raise Refusal(_BAD_REQUEST, f"`{name}` is missing or empty.", param=name)
    if not is_chat and isinstance(given, list) and isinstance(given[0], str | list):
        return [render_prompt(prompt) for prompt in given]
    return [render_prompt(given)]


def _max_tokens_of(body: Body, prompt_tokens: int, *, is_chat: bool, limit: int) -> int:
    asked = (
        body.get("max_completion_tokens") or body.get("max_tokens") or (None if is_chat else _COMPLETIONS_MAX_TOKENS)
    )
    if asked is not None and asked > limit:
        raise Refusal(
            _BAD_REQUEST,
            f"max_tokens={asked} cannot be greater than max_model_len={limit}. Please request fewer output tokens. "
            f"(parameter=max_tokens, value={asked})",
            param="max_tokens",
        )
    if prompt_tokens + (asked or 1) > limit:
        raise Refusal(
            _BAD_REQUEST,
            f"This model's maximum context length is {limit} tokens. However, your prompt contains at least "
            f"{prompt_tokens} input tokens and {asked or 1} output tokens were requested. Please reduce the length of "
            f"the input prompt or the number of requested output tokens. "
            f"(parameter=input_tokens, value={prompt_tokens})",
            param="input_tokens",
        )
    return asked or limit - prompt_tokens


def choices_for(request: Request, config: ServerConfig, answerer: Answerer | None) -> list[Choice]:
    """
    Return what the model says.

    Raises:
        Refusal: The JSON schema is none.
    """
    per_prompt = request.body.get("n") or 1
    stop = request.body.get("stop") or []
    reasoning = None
    if config.reasoning_field:
        reasoning = f"Thinking about {digest_of(request.prompt)}."
    choices = []
    for prompt in request.prompts:
        for index in range(per_prompt):
            text = _text_for(request.body, prompt, index, config, answerer)
            text, reason = cut_off(text, stop=[stop] if isinstance(stop, str) else stop, max_tokens=request.max_tokens)
            choices.append(Choice(text, reason, reasoning))
    return choices


def _text_for(body: Body, prompt: str, index: int, config: ServerConfig, answerer: Answerer | None) -> str:
    if answerer is not None:
        return answerer(body)
    options = (body.get("structured_outputs") or {}).get("choice") or body.get("guided_choice")
    if options:
        return str(options[int(uniform(config.seed, "choice", prompt, index) * len(options))])
    schema = schema_of(body)
    if schema is not None:
        try:
            return json_answer(schema, digest_of(prompt) + (f"#{index}" if index else ""))
        except SchemaError as error:
            raise Refusal(_BAD_REQUEST, f"Grammar error: {error}") from error
    text = answer_to(prompt, index)
    if config.answer_tokens is None:
        return text
    num_tokens: float = config.answer_tokens
    if config.answer_tokens_sigma > 0:
        quantile = uniform(config.seed, "length", prompt, index)
        num_tokens = lognormal(config.answer_tokens, config.answer_tokens_sigma, quantile)
    return fill_up(text, round(num_tokens))


def schema_of(body: Body) -> Any:
    """Return the JSON schema that the answer must follow; None where there is none."""
    response_format = body.get("response_format") or {}
    if response_format.get("type") == "json_object":
        return {"type": "object"}
    schema = (response_format.get("json_schema") or {}).get("schema")
    if schema is None:
        schema = (body.get("structured_outputs") or {}).get("json") or body.get("guided_json")
    return schema


def service_time_for(request: Request, config: ServerConfig) -> float:
    """Return the seconds that the slot model serves `request`."""
    time_s = config.service_time_s
    if callable(time_s):
        return time_s(request.body)
    if config.service_time_sigma > 0:
        return lognormal(time_s, config.service_time_sigma, uniform(config.seed, "time", request.prompt))
    return time_s


def answer_for(
    request: Request, choices: list[Choice], config: ServerConfig, number: int, fault: Fault | None
) -> Answer:
    """Return the whole answer, its content spoilt if the fault is one of content."""
    return Answer(
        id=f"{'chatcmpl' if request.is_chat else 'cmpl'}-{number:016x}",
        created=int(time.time()),
        model=request.body.get("model") or config.models[0],
        choices=choices if fault is None else spoil(choices, fault),
        num_choices=len(choices),
        prompt_tokens=request.prompt_tokens,
        output_tokens=output_tokens_of(choices),
        is_chat=request.is_chat,
        reasoning_field=config.reasoning_field,
        num_logprobs=request.num_logprobs,
    )


def spoil(choices: list[Choice], fault: Fault) -> list[Choice]:
    """Return the choices as a fault of content makes them; other faults leave them alone."""
    if fault.kind == "abort":
        return [Choice("", "abort") for _ in choices]
    if fault.kind == "content_filter":
        return [Choice(None, "content_filter") for _ in choices]
    if fault.kind == "null_content":
        return [Choice(None, choice.finish_reason) for choice in choices]
    if fault.kind == "broken_json":
        return [Choice((choice.text or "")[: len(choice.text or "") // 2], choice.finish_reason) for choice in choices]
    if fault.kind == "empty_choices":
        return []
    return choices
