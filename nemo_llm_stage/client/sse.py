"""
A streamed answer put together again: server-sent events in any cut become the answer the server would have sent whole.

Knows the OpenAI protocol's chunks; the rules for what counts as an answer are in `wire`. Pure.
"""

from __future__ import annotations

from typing import Any

import orjson

from nemo_llm_stage.errors import ConnectionDroppedError, InvalidResponseError

_TEXT_KEYS = ("content", "reasoning_content", "reasoning", "refusal")


class StreamedAnswer:
    """Takes the pieces of one event stream as they come; `whole` is the answer in the shape of an unstreamed one."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_done = False
        self._error: dict[str, Any] | None = None
        self._head: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}

    def feed(self, piece: bytes) -> None:
        """
        Take the next bytes, cut anywhere.

        Raises:
            InvalidResponseError: An event is not JSON.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._take_line(line)

    def whole(self) -> dict[str, Any]:
        """
        Return the answer; an ``error`` event of the server is the whole answer then.

        Raises:
            ConnectionDroppedError: The stream ended without ``[DONE]`` and before every choice had finished.
            InvalidResponseError: The last event is not JSON.
        """
        self._take_line(self._rest)
        self._rest = b""
        if self._error is not None:
            return self._error
        choices = [self._choices[index] for index in sorted(self._choices)]
        is_finished = bool(choices) and all(choice.finish_reason is not None for choice in choices)
        if not self._is_done and not is_finished:
            raise ConnectionDroppedError("The stream ended before the answer was finished.")
        return {**self._head, "choices": [choice.whole() for choice in choices]}

    def _take_line(self, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        if not colon or name not in {b"data", b"error"}:
            return
        value = value.strip()
        if value == b"[DONE]":
            self._is_done = True
            return
        try:
            chunk = orjson.loads(value)
        except ValueError:
            raise InvalidResponseError(f"An event of the stream is not JSON: {value[:80]!r}.") from None
        if not isinstance(chunk, dict):
            return
        if name == b"error":
            self._error = {"error": chunk.get("error", chunk)}
        else:
            self.take(chunk)

    def take(self, chunk: dict[str, Any]) -> None:
        """Take one event, already parsed."""
        if chunk.get("error") or chunk.get("object") == "error":
            self._error = chunk
            return
        for key in ("model", "usage", "timings"):
            if chunk.get(key) is not None:
                self._head[key] = chunk[key]
        for choice in chunk.get("choices") or ():
            if isinstance(choice, dict):
                self._choices.setdefault(choice.get("index") or 0, _Choice()).take(choice)


class _Choice:
    """One choice growing."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._is_chat = False
        self._texts: dict[str, list[str]] = {}
        self._tool_calls: list[Any] = []
        self._logprobs: dict[str, Any] | None = None

    def take(self, choice: dict[str, Any]) -> None:
        if choice.get("finish_reason") is not None:
            self.finish_reason = choice["finish_reason"]
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._is_chat = True
            for key in _TEXT_KEYS:
                if isinstance(delta.get(key), str):
                    self._texts.setdefault(key, []).append(delta[key])
            self._tool_calls += delta.get("tool_calls") or ()
        elif isinstance(choice.get("text"), str):
            self._texts.setdefault("text", []).append(choice["text"])
        if isinstance(choice.get("logprobs"), dict):
            self._take_logprobs(choice["logprobs"])

    def _take_logprobs(self, logprobs: dict[str, Any]) -> None:
        whole = self._logprobs = self._logprobs or {}
        for key, value in logprobs.items():
            if isinstance(value, list) and isinstance(whole.get(key), list):
                whole[key] += value
            else:
                whole[key] = value

    def whole(self) -> dict[str, Any]:
        texts = {key: "".join(parts) for key, parts in self._texts.items()}
        whole: dict[str, Any] = {"finish_reason": self.finish_reason, "logprobs": self._logprobs}
        if self._is_chat or not texts:
            whole["message"] = {**texts, "tool_calls": self._tool_calls}
        else:
            whole.update(texts)
        return whole
