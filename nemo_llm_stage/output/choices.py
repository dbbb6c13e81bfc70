"""
An answer that is one of some labels, with the model's certainty on request.

Knows how servers are told to write nothing else; knows nothing of clients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson
import pyarrow as pa

from nemo_llm_stage.core import Completion
from nemo_llm_stage.errors import ConfigError, ParseError
from nemo_llm_stage.output.base import Output
from nemo_llm_stage.output.reasoning import without_reasoning

_AROUND = " \t\r\n\"'`*_.,;:!()[]\u201c\u201d\u2018\u2019"
"""What may stand around a label: blanks, quotes, Markdown's emphasis, punctuation."""


class ChoiceOutput(Output):
    """
    One of `choices`, exactly as written there. Always checked, whether or not the server was guided.

    An answer that differs only in case or in quotes, punctuation and blanks around it is that choice; an answer that
    merely contains one is not.

    Args:
        choices: The labels, at least one.
        guided: Whether to have the server write nothing else. True asks by ``structured_outputs``, which vLLM has and
            others pass over; where one refuses it, rows are asked without. ``"json"`` asks by a JSON Schema, which
            vLLM, SGLang and llama.cpp take: the answer is then a quoted label.
        logprobs: Whether the value is a struct of ``choice`` and ``logprob``: the sum of the natural logarithms of
            the answer's token probabilities, null where the server does not tell them.

    Raises:
        ConfigError: There are no choices, or one twice, or one that is no text.
    """

    def __init__(
        self, choices: Sequence[str], *, guided: bool | Literal["json"] = True, logprobs: bool = False
    ) -> None:
        self._choices = tuple(choices)
        if isinstance(choices, str) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise ConfigError(f"choices must be a list of texts, not {choices!r:.200}.")
        if not self._choices or len(set(self._choices)) < len(self._choices):
            raise ConfigError(f"choices must be different from each other and at least one: {list(choices)!r:.200}")
        self._guided = guided
        self._logprobs = logprobs
        num_alike = Counter(map(_core, self._choices))
        self._by_core = {_core(choice): choice for choice in self._choices if num_alike[_core(choice)] == 1}
        self._exact = frozenset(self._choices)
        with_logprob = pa.struct([("choice", pa.string()), ("logprob", pa.float64())])
        self.arrow_type = with_logprob if logprobs else pa.string()

    def request_kwargs(self) -> dict[str, Any]:
        """Return what guides the server and asks for logprobs, as far as wanted; ``extra_body`` passes the SDK."""
        guide: dict[str, Any] = {}
        if self._guided == "json":
            schema = {"type": "string", "enum": list(self._choices)}
            guide = {"response_format": {"type": "json_schema", "json_schema": {"name": "choice", "schema": schema}}}
        elif self._guided:
            guide = {"extra_body": {"structured_outputs": {"choice": list(self._choices)}}}
        return guide | ({"logprobs": True} if self._logprobs else {})

    def parse(self, text: str, completion: Completion, choice: int) -> Any:
        """
        Return the choice, or the struct of choice and logprob.

        Raises:
            ParseError: The answer is none of the choices; names them.
        """
        answer = without_reasoning(text, completion, choice).strip()
        if self._guided == "json":
            answer = _unquoted(answer)
        label = answer if answer in self._exact else self._by_core.get(_core(answer))
        if label is None:
            wanted = ", ".join(map(repr, self._choices))
            raise ParseError(f"{answer[:200]!r} is none of the choices. Answer with exactly one of: {wanted}.")
        if not self._logprobs:
            return label
        logprobs = completion.logprobs[choice] if choice < len(completion.logprobs) else None
        return {"choice": label, "logprob": _sum_logprobs(logprobs)}

    def describe(self) -> dict[str, Any]:
        """Return the kind and the choices."""
        return {"kind": "choices", "choices": list(self._choices), "guided": self._guided, "logprobs": self._logprobs}


def _unquoted(answer: str) -> str:
    try:
        label = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return answer
    return label if isinstance(label, str) else answer


def _core(text: str) -> str:
    return text.strip(_AROUND).casefold()


def _sum_logprobs(logprobs: Any) -> float | None:
    """Read the ``logprobs`` object of chat completions (``content``) or of completions (``token_logprobs``)."""
    if not isinstance(logprobs, Mapping):
        return None
    tokens = logprobs.get("content")
    if isinstance(tokens, list):
        values = [token.get("logprob") for token in tokens if isinstance(token, Mapping)]
    else:
        values = logprobs.get("token_logprobs") or []
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return sum(numbers) if numbers else None
