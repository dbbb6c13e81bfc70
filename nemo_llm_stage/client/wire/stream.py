"""
A streamed answer put together again: the pieces become the answer that the server would have sent whole.

Knows the OpenAI protocol's chunks; `decode` has the rules for what counts as an answer.
"""

from __future__ import annotations

from io import StringIO
from typing import Any

from nemo_llm_stage.client.sse import DONE, EventReader
from nemo_llm_stage.client.wire.lenient_json import load_json, shown
from nemo_llm_stage.client.wire.parts import THINKING_KEYS, content_of, text_in
from nemo_llm_stage.errors import ConnectionDroppedError, InvalidResponseError

MAX_CHOICES = 1024
"""Most choices of one answer. The OpenAI protocol's largest ``n`` is 128; vLLM allows more."""

MAX_KEPT = 64 << 20
"""Most that one stream's choices may hold, in characters; of log probabilities their size in the stream counts."""

_HEAD_KEYS = ("model", "usage", "timings")
_BESIDE_KEYS = (*THINKING_KEYS, "refusal")
_UNFINISHED = frozenset({"none", "null"})


class StreamedAnswer:
    """Takes the pieces of one event stream as they come; `whole` is the answer in the shape of an unstreamed one."""

    __slots__ = ("_choices", "_error", "_head", "_is_done", "_num_kept", "_reader")

    def __init__(self) -> None:
        self._reader = EventReader()
        self._is_done = False
        self._error: dict[str, Any] | None = None
        self._head: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._num_kept = 0

    def feed(self, piece: bytes) -> bool:
        """
        Take the next bytes, cut anywhere, and return whether the answer is over: what follows is of no use.

        Raises:
            InvalidResponseError: An event is not JSON, or there is more than anyone asked for.
        """
        if self._is_done:
            return True
        for event in self._reader.feed(piece):
            self._take_event(event.name, event.data)
            if self._is_done:
                return True
        return False

    def whole(self) -> dict[str, Any]:
        """
        Return the answer; an error that the server reports in an event is the whole answer then.

        Raises:
            ConnectionDroppedError: The stream ended before every choice had finished.
            InvalidResponseError: It said that it was done, and had not finished every choice.
        """
        if not self._is_done:
            self._take_tail()
        if self._error is not None:
            return self._error
        choices = sorted(self._choices.items())
        if not choices or not all(choice.is_finished for _, choice in choices):
            if self._is_done:
                raise InvalidResponseError("The stream says [DONE] and gave no finish reason: it was broken off.")
            raise ConnectionDroppedError("The stream ended before the answer was finished.")
        return {**self._head, "choices": [choice.whole(index) for index, choice in choices]}

    def _take_tail(self) -> None:
        """The last event may lack its blank line. Half an event says nothing."""
        for event in self._reader.end():
            try:
                self._take_event(event.name, event.data)
            except InvalidResponseError:
                return

    def _take_event(self, name: bytes, data: bytes) -> None:
        if data.strip() == DONE:
            self._is_done = True
            return
        try:
            chunk = load_json(data)
        except ValueError:
            if not data.strip():
                return
            if name != b"error":
                raise InvalidResponseError(f"An event of the stream is not JSON: {data[:80]!r}.") from None
            chunk = data[:4096].decode("utf-8", "replace")
        if name == b"error":
            self._fail({"error": chunk.get("error") or chunk if isinstance(chunk, dict) else {"message": shown(chunk)}})
        elif isinstance(chunk, dict):
            self.take(chunk, len(data))

    def _fail(self, error: dict[str, Any]) -> None:
        self._error = error
        self._is_done = True

    def take(self, chunk: dict[str, Any], num_bytes: int = 0) -> None:
        """
        Take one event, already parsed.

        Args:
            chunk: As the protocol has it.
            num_bytes: Its size in the stream.

        Raises:
            InvalidResponseError: There is more than anyone asked for.
        """
        if chunk.get("error") or chunk.get("object") == "error":
            self._fail(chunk)
            return
        for key in _HEAD_KEYS:
            if chunk.get(key) is not None:
                self._head[key] = chunk[key]
        choices = chunk.get("choices")
        for place, part in enumerate(choices if isinstance(choices, list) else ()):
            if isinstance(part, dict):
                self._num_kept += self._choice(part.get("index"), place).take(part, num_bytes)
        if self._num_kept > MAX_KEPT:
            raise InvalidResponseError(f"The stream's answer is longer than {MAX_KEPT} characters.")

    def _choice(self, index: Any, place: int) -> _Choice:
        """The choice of this index; one without a number for an index is known by its place in the event."""
        key = index if type(index) is int else place
        choice = self._choices.get(key)
        if choice is None:
            if len(self._choices) == MAX_CHOICES:
                raise InvalidResponseError(f"The answer has more than {MAX_CHOICES} choices.")
            choice = self._choices[key] = _Choice()
        return choice


class _Choice:
    """One choice growing."""

    __slots__ = ("_calls_tool", "_finish_reason", "_is_chat", "_logprobs", "_texts", "is_finished")

    def __init__(self) -> None:
        self.is_finished = False
        self._finish_reason: Any = None
        self._is_chat = False
        self._texts: dict[str, StringIO] = {}
        self._calls_tool = False
        self._logprobs: dict[str, Any] | None = None

    def take(self, part: dict[str, Any], num_bytes: int) -> int:
        """Take what one event says of this choice; return how much of it is kept."""
        reason = part.get("finish_reason")
        if reason and not (isinstance(reason, str) and reason.lower() in _UNFINISHED):
            self.is_finished = True
            self._finish_reason = reason
        delta = part.get("delta")
        if not isinstance(delta, dict):
            delta = part.get("message")
        if isinstance(delta, dict):
            self._is_chat = True
            num_kept = self._take_delta(delta)
        else:
            num_kept = self._add("text", part.get("text"))
        logprobs = part.get("logprobs")
        if isinstance(logprobs, dict):
            self._take_logprobs(logprobs)
            num_kept += num_bytes
        return num_kept

    def _take_delta(self, delta: dict[str, Any]) -> int:
        num_kept = 0
        content = delta.get("content")
        if isinstance(content, str):
            num_kept += self._add("content", content)
        elif content is not None:
            parts = content_of(content)
            num_kept += self._add("content", parts.text) + self._add("refusal", parts.refusal)
            num_kept += self._add(THINKING_KEYS[0], parts.thinking)
        if content is None or len(delta) > 1:
            for key in _BESIDE_KEYS:
                value = delta.get(key)
                if value is not None:
                    num_kept += self._add(key, text_in(value))
            if delta.get("tool_calls") or delta.get("function_call"):
                self._calls_tool = True
        return num_kept

    def _add(self, key: str, text: Any) -> int:
        if not isinstance(text, str):
            return 0
        texts = self._texts.get(key)
        if texts is None:
            texts = self._texts[key] = StringIO(newline="")
        texts.write(text)
        return len(text)

    def _take_logprobs(self, logprobs: dict[str, Any]) -> None:
        whole = self._logprobs = self._logprobs or {}
        for key, value in logprobs.items():
            if isinstance(value, list) and isinstance(whole.get(key), list):
                whole[key] += value
            else:
                whole[key] = value

    def whole(self, index: int) -> dict[str, Any]:
        """Return the choice in the shape of an unstreamed one."""
        texts: dict[str, Any] = {key: parts.getvalue() for key, parts in self._texts.items()}
        whole: dict[str, Any] = {"index": index, "finish_reason": self._finish_reason, "logprobs": self._logprobs}
        if not self._is_chat and texts:
            return {**whole, **texts}
        if self._calls_tool:
            texts["tool_calls"] = [{}]
        return {**whole, "message": texts}
