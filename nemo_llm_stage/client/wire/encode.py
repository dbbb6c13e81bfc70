"""A request becomes the path and the bytes that are sent. Pure: knows nothing of connections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import orjson

from nemo_llm_stage.client.llm_client import ConversationFormatter, GenerationConfig
from nemo_llm_stage.core import Message
from nemo_llm_stage.errors import ConfigError, PromptError

CHAT_PATH = "chat/completions"
TEXT_PATH = "completions"

_PARAMETERS = ("max_tokens", "n", "seed", "stop", "temperature", "top_k", "top_p")

_LOOSE = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


class WireRequest(NamedTuple):
    """
    One request, ready to be sent to any endpoint.

    Attributes:
        path: Below the base URL, with the query where there is one.
        body: JSON.
        headers: Beside the client's own; None for none.
        timeout_s: Total; None for the client's own.
        is_stream: The answer will come as server-sent events.
    """

    path: str
    body: bytes
    headers: dict[str, str] | None
    timeout_s: float | None
    is_stream: bool

    @property
    def asks_for_logprobs(self) -> bool:
        """Whether the answer may hold log probabilities, which make it large."""
        return b'logprobs":' in self.body


def encode_request(
    messages: Iterable[Message],
    model: str,
    config: GenerationConfig,
    formatter: ConversationFormatter | None = None,
) -> WireRequest:
    """
    Return the request for `messages`: a chat, or with a `formatter` its text to be continued.

    Parameters that are None are left out. ``extra_kwargs`` overrides the others; its ``extra_body``, ``extra_headers``,
    ``extra_query`` and ``timeout`` mean what they mean to the openai SDK. ``stream_options: false`` or null leaves
    ``stream_options`` out of a streamed request, for servers that refuse it.

    Raises:
        ConfigError: ``extra_headers``, ``extra_body``, ``extra_query`` or ``timeout`` is of the wrong type.
        PromptError: The request cannot be written as JSON, e.g. half a surrogate pair in a text.
    """
    body: dict[str, Any] = {"model": model}
    if formatter is None:
        path, body["messages"] = CHAT_PATH, messages
    else:
        path, body["prompt"] = TEXT_PATH, formatter.format_conversation(list(messages))
    for name in _PARAMETERS:
        value = getattr(config, name)
        if value is not None:
            body[name] = value
    if config.stream:
        body["stream"] = True
    headers, timeout_s, has_stream_options = None, None, True
    if config.extra_kwargs:
        extra = dict(config.extra_kwargs)
        headers, timeout_s = _mapping(extra, "extra_headers"), _seconds(extra)
        query, extra_body = _mapping(extra, "extra_query"), _mapping(extra, "extra_body")
        has_stream_options = "stream_options" not in extra or bool(extra["stream_options"])
        if not has_stream_options:
            del extra["stream_options"]
        body = {name: value for name, value in {**body, **extra}.items() if value is not None} | (extra_body or {})
        path = f"{path}?{urlencode(query)}" if query else path
    is_stream = bool(body.get("stream"))
    if is_stream and has_stream_options:
        body.setdefault("stream_options", {"include_usage": True})
    return WireRequest(path, _dumps(body), headers, timeout_s, is_stream)


def _dumps(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:
        pass
    try:
        return orjson.dumps(body, option=_LOOSE)  # slower, and rarely needed: token ids as keys, numpy values
    except TypeError as error:
        raise PromptError(f"The request cannot be written as JSON: {error}.") from None


def _mapping(extra: dict[str, Any], name: str) -> dict[str, Any] | None:
    value = extra.pop(name, None)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} in extra_kwargs must be a dict, not {type(value).__name__}.")
    if name == "extra_headers":
        return {str(key): str(text) for key, text in value.items()}
    return dict(value)


def _seconds(extra: dict[str, Any]) -> float | None:
    value = extra.pop("timeout", None)
    if value is None or (isinstance(value, int | float) and value > 0):
        return value
    raise ConfigError(f"timeout in extra_kwargs must be seconds above 0, not {value!r}.")
