"""
Changes to requests and answers: a form to guide the server, a prompt that fits, a continuation, the right number.

Pure. Knows requests and completions; knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from nemo_llm_stage.client.llm_client import ConversationFormatter, GenerationConfig
from nemo_llm_stage.client.wire import Finish, finish_of
from nemo_llm_stage.core import Completion, Message, sum_usages
from nemo_llm_stage.errors import ContextOverflowError, InvalidResponseError

T = TypeVar("T")

BYTES_PER_TOKEN = 4
"""For UTF-8 text whose tokens the server did not count to the end. Source: OpenAI's rule of thumb for English."""

OMISSION = "\n[…]\n"
"""Put in place of the middle that was cut out of a text."""

_MAX_TOKENS_NAMES = ("max_completion_tokens", "max_tokens")
_GOING_ON = {"continue_final_message": True, "add_generation_prompt": False}  # vLLM, SGLang; llama.cpp does so anyway


def is_cut_off(completion: Completion) -> bool:
    """Whether a choice ended at the token limit."""
    return any(reason != "stop" and finish_of(reason) is Finish.CUT for reason in completion.finish_reasons)


def first_choices(completion: Completion, num: int) -> Completion:
    """Return `completion` with `num` choices at most: the first that are answers, then the first others."""
    if len(completion.texts) <= num:
        return completion
    places = sorted(range(len(completion.texts)), key=lambda choice: completion.error_of(choice) is not None)[:num]
    places.sort()
    return replace(
        completion,
        texts=_at(completion.texts, places),
        finish_reasons=_at(completion.finish_reasons, places),
        reasoning=_at(completion.reasoning, places),
        logprobs=_at(completion.logprobs, places),
        choice_errors=_at(completion.choice_errors, places) if any(map(completion.error_of, places)) else (),
    )


def padded(completion: Completion, num: int) -> Completion:
    """Return `completion` with `num` choices at least: those that the server did not give are no answers."""
    num_given = len(completion.texts)
    if num_given >= num:
        return completion
    error = f"{InvalidResponseError.kind}: the server gave {num_given} of {num} answers"
    return replace(
        completion,
        texts=(*completion.texts, *[""] * (num - num_given)),
        finish_reasons=_padded(completion.finish_reasons, num),
        reasoning=_padded(completion.reasoning, num),
        logprobs=(),
        choice_errors=(*_padded(completion.choice_errors, num_given), *[error] * (num - num_given)),
    )


def _at(items: tuple[T, ...], places: Sequence[int]) -> tuple[T, ...]:
    return tuple(items[place] for place in places if place < len(items))


def _padded(items: tuple[T | None, ...], num: int) -> tuple[T | None, ...]:
    return (*items, *[None] * (num - len(items)))


def max_tokens_of(config: GenerationConfig) -> int | None:
    """Return the request's limit of output tokens, under whichever of its names; None where there is none."""
    extra = config.extra_kwargs or {}
    given = [extra[name] for name in _MAX_TOKENS_NAMES if extra.get(name) is not None]
    return given[0] if given else config.max_tokens


def with_max_tokens(config: GenerationConfig, max_tokens: int) -> GenerationConfig:
    """Return `config` with another limit of output tokens, under the name that it uses."""
    extra = config.extra_kwargs or {}
    for name in _MAX_TOKENS_NAMES:
        if extra.get(name) is not None:
            return replace(config, extra_kwargs={**extra, name: max_tokens})
    return replace(config, max_tokens=max_tokens)


def with_request_kwargs(config: GenerationConfig, kwargs: Mapping[str, Any]) -> GenerationConfig:
    """Return `config` with the output's request parameters; the user's own win."""
    if not kwargs:
        return config
    own = config.extra_kwargs or {}
    merged = {**kwargs, **own}
    if "extra_body" in kwargs and isinstance(own.get("extra_body"), dict):
        merged["extra_body"] = {**kwargs["extra_body"], **own["extra_body"]}
    return replace(config, extra_kwargs=merged)


def shrunk(config: GenerationConfig, error: ContextOverflowError) -> GenerationConfig:
    """
    Return `config` with the output tokens that the prompt leaves, minus one: SGLang wants the sum below its limit.

    Raises:
        ContextOverflowError: `error`, if the server did not state its limit, or the prompt leaves no tokens.
    """
    limit, current = error.max_context_tokens, max_tokens_of(config)
    room = -1 if limit is None else limit - (error.prompt_tokens or 0) - 1
    if room < 1 or (current is not None and room >= current):
        raise error
    return with_max_tokens(config, room)


def cut_input(
    messages: Sequence[Message], error: ContextOverflowError, *, place: str, max_tokens: int | None, is_first: bool
) -> list[Message]:
    """
    Return `messages` with the longest user text cut so that the prompt fits. Modifies nothing.

    Args:
        messages: The refused ones.
        error: The length of the prompt and its limit.
        place: Where to cut: ``head``, ``tail`` or ``middle``.
        max_tokens: Kept free for the answer; None keeps a quarter of the context free.
        is_first: Whether to trust the server's count. If a cut by that count was not enough, the server had not counted
            to the end, and the text's size is the better measure.

    Raises:
        ContextOverflowError: `error`, if the server did not state its limit, or there is nothing to cut.
    """
    limit, num_tokens = error.max_context_tokens, error.prompt_tokens
    if limit is None or num_tokens is None:
        raise error
    budget = limit - (limit // 4 if max_tokens is None else max_tokens) - 1
    texts = list(_texts(messages))
    if not is_first:
        num_bytes = sum(len(text.encode("utf-8", "replace")) for _, _, text in texts)
        num_tokens = max(num_tokens, num_bytes // BYTES_PER_TOKEN)
    cuttable = [(len(text), index, part) for index, part, text in texts if messages[index].get("role") == "user"]
    if budget < 1 or not cuttable:
        raise error
    num_chars, index, part = max(cuttable)
    chars_per_token = sum(len(text) for _, _, text in texts) / num_tokens
    num_kept = int(num_chars - 1.05 * chars_per_token * max(1, num_tokens - budget))
    if num_kept < 1:
        raise error
    return _with_text(messages, index, part, lambda text: _cut(text, num_kept, place))


def _texts(messages: Sequence[Message]) -> Iterator[tuple[int, int, str]]:
    """Yield (turn, part, text) for each text; the part is -1 if the turn's content is a single text."""
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, str):
            yield index, -1, content
        elif isinstance(content, list):
            for part, item in enumerate(content):
                if isinstance(item, dict) and isinstance(item.get("text"), str):
                    yield index, part, item["text"]


def _with_text(messages: Sequence[Message], index: int, part: int, change: Any) -> list[Message]:
    message = dict(messages[index])
    if part < 0:
        message["content"] = change(message["content"])
    else:
        parts = list(message["content"])
        parts[part] = {**parts[part], "text": change(parts[part]["text"])}
        message["content"] = parts
    return [*messages[:index], message, *messages[index + 1 :]]


def _cut(text: str, num_kept: int, place: str) -> str:
    if place == "head":
        return text[-num_kept:]
    if place == "tail":
        return text[:num_kept]
    half = max(1, (num_kept - len(OMISSION)) // 2)
    return text[:half] + OMISSION + text[-half:]


def continuation(
    messages: Sequence[Message], text: str, config: GenerationConfig, formatter: ConversationFormatter | None
) -> tuple[list[Message], GenerationConfig, ConversationFormatter | None]:
    """
    Return the request that lets the model continue its own `text`.

    A base model gets the text after its prompt. A chat server gets it as the last turn, with vLLM's parameters that
    leave this turn open. They go into ``extra_body``, which every client passes on.
    """
    turns = [*messages, {"role": "assistant", "content": text}]
    if formatter is not None:
        return turns, config, _OpenEnded(formatter)
    extra = dict(config.extra_kwargs or {})
    extra["extra_body"] = {**(extra.get("extra_body") or {}), **_GOING_ON}
    return turns, replace(config, extra_kwargs=extra), None


class _OpenEnded(ConversationFormatter):
    """Formats all turns but the last, and appends the last one's text, which the model is to continue."""

    def __init__(self, formatter: ConversationFormatter) -> None:
        self._formatter = formatter

    def format_conversation(self, conv: list[Message]) -> str:
        return self._formatter.format_conversation(conv[:-1]) + str(conv[-1]["content"])


def joined(parts: Sequence[Completion]) -> Completion:
    """Return an answer of one choice and its continuations as one answer."""
    text = parts[0].texts[0]
    for part in parts[1:]:
        text = text.rstrip() + part.texts[0]  # servers' templates strip trailing blanks, so the model writes them again
    latencies = [part.latency_s for part in parts if part.latency_s is not None]
    return replace(
        parts[-1],
        texts=(text,),
        reasoning=parts[0].reasoning,
        usage=sum_usages(part.usage for part in parts),
        attempts=sum(part.attempts for part in parts),
        latency_s=sum(latencies) if latencies else None,
        logprobs=(),
    )
