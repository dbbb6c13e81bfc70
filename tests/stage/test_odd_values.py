"""A value that no text, JSON or Arrow column can hold fails its own row and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from nemo_llm_stage import Completion, LLMStage, MultiColumnStage, RowError, Usage
from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.core import Message
from nemo_llm_stage.testing import ScriptedClient, SimulatedServer

HALF = "half \ud800"
"""Text with a lone surrogate, which UTF-8 cannot encode."""


def stage_of(client: Any, **settings: Any) -> LLMStage:
    return LLMStage(**{"client": client, "model": "sim", "prompt": "{{ text }}", "output_column": "x"} | settings)


def process(stage: LLMStage | MultiColumnStage, table: Any) -> list[dict[str, Any]]:
    try:
        out = stage.process(table)
        return out.select(["x", "x_error"]).to_pylist() if isinstance(out, pa.Table) else out.to_dict("records")
    finally:
        stage.close()


def echo(messages: list[Message]) -> str:
    return str(messages[-1]["content"])


def check_only_the_first_failed(rows: Sequence[Mapping[str, Any]], error: str) -> None:
    assert rows[0]["x"] is None or pd.isna(rows[0]["x"])
    assert rows[0]["x_error"].startswith(error)
    assert [row["x"] for row in rows[1:]] == ["fine"]
    rows[0]["x_error"].encode()


@pytest.mark.parametrize("deduplicate", [True, False])
def test_half_a_surrogate_pair_in_a_row_is_that_rows_prompt_error(deduplicate: bool) -> None:
    """Whether or not a key is made of the request."""
    with SimulatedServer(answer=lambda body: body["messages"][-1]["content"]) as server:
        stage = stage_of(AsyncHTTPClient(server.base_url), deduplicate=deduplicate)
        rows = process(stage, pd.DataFrame({"text": pd.Series([HALF, "fine"], dtype=object)}))
    check_only_the_first_failed(rows, "prompt: ")


@pytest.mark.parametrize("value", [{1, 2}, object(), 2**70, float("nan")], ids=["set", "object", "2**70", "nan"])
def test_messages_that_are_no_json_fail_their_row_at_most(value: Any) -> None:
    """A function may put anything into a message."""

    def prompt(row: Mapping[str, Any]) -> list[Message]:
        content = [{"type": "text", "text": row["text"], "odd": value}] if row["text"] == "odd" else row["text"]
        return [{"role": "user", "content": content}]

    with SimulatedServer(answer=lambda body: str(body["messages"][-1]["content"])) as server:
        rows = process(stage_of(AsyncHTTPClient(server.base_url), prompt=prompt), pa.table({"text": ["odd", "fine"]}))
    assert rows[1]["x"] == "fine"
    assert rows[0]["x_error"] is None or rows[0]["x_error"].startswith(("prompt: ", "bad_request: "))


def test_a_value_beyond_pythons_dates_is_that_rows_prompt_error() -> None:
    """Arrow's timestamps reach further than datetime does."""
    when = pa.array([2**62, 0], pa.timestamp("s"))
    table = pa.table({"text": ["odd", "fine"], "when": when})
    stage = stage_of(ScriptedClient(echo), prompt="{{ text }}{% if when %}{% endif %}")
    check_only_the_first_failed(process(stage, table), "prompt: column 'when' cannot be read: ")


def test_text_that_is_not_utf8_is_that_rows_prompt_error() -> None:
    """Arrow does not check what it is given."""
    offsets, data = pa.py_buffer(b"\0\0\0\0\1\0\0\0\5\0\0\0"), pa.py_buffer(b"\xfffine")
    text = pa.Array.from_buffers(pa.string(), 2, [None, offsets, data])
    check_only_the_first_failed(process(stage_of(ScriptedClient(echo)), pa.table({"text": text})), "prompt: ")


def test_keep_if_keeps_a_row_that_cannot_be_read() -> None:
    """It cannot be evaluated there; columns that do not use the value are generated."""
    client = ScriptedClient(echo)
    table = pa.table({"text": ["odd", "fine", "bad"], "when": pa.array([2**62, 0, 0], pa.timestamp("s"))})
    stages = [stage_of(client, output_column="a"), stage_of(client, prompt="{{ text }}{% if when %}{% endif %}")]
    stage = MultiColumnStage(stages, keep_if="when is not none and text != 'bad'")
    out = stage.process(table)
    stage.close()
    assert out.column("a").to_pylist() == ["odd", "fine"]
    assert out.column("x").to_pylist() == [None, "fine"]
    assert out.column("x_error").to_pylist()[0].startswith("prompt: column 'when'")


@pytest.mark.parametrize(
    "reply",
    [
        Completion((HALF,), ("stop",)),
        Completion(("fine",), ("stop",), model=HALF, endpoint=HALF),
        Completion(("fine",), (HALF,), reasoning=(HALF,)),
        Completion(("fine",), ("stop",), usage=Usage(2**70, 2**70, 2**70)),
        RowError(HALF),
        ValueError(HALF),
    ],
    ids=["text", "model", "finish_reason", "usage", "row error", "any error"],
)
def test_no_answer_or_error_breaks_the_table(reply: Any) -> None:
    """What a client tells goes into typed columns, or is null there."""
    client = ScriptedClient(lambda messages: reply if "odd" in messages[0]["content"] else "fine")
    rows = process(stage_of(client, reasoning_column=True), pa.table({"text": ["odd", "fine"]}))
    assert rows[1]["x"] == "fine"
    assert (rows[0]["x"] is None) == (rows[0]["x_error"] is not None)


def test_a_value_nested_in_an_answer_that_arrow_cannot_hold_fails_its_row() -> None:
    """Half a surrogate pair in a field of what a parser made."""
    kind = pa.struct([("names", pa.list_(pa.string()))])
    stage = stage_of(
        ScriptedClient(echo),
        parser=lambda text: {"names": [HALF if text == "odd" else text]},
        output_type=kind,
        max_reasks=0,
    )
    rows = process(stage, pa.table({"text": ["odd", "fine"]}))
    assert [row["x"] for row in rows] == [None, {"names": ["fine"]}]
    assert rows[0]["x_error"].startswith("parse: ")
