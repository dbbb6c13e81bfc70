"""Rows whose prompts begin alike are sent one after another; results keep the order of the input."""

from __future__ import annotations

import random
import tracemalloc
from itertools import pairwise
from typing import Any

from nemo_llm_stage import LLMStage, Prompt
from nemo_llm_stage.core import RowResult
from nemo_llm_stage.stage.order import RowOrder
from nemo_llm_stage.stage.stage import Stage
from nemo_llm_stage.testing import ScriptedClient


def stage_and_client(**settings: Any) -> tuple[Stage, ScriptedClient]:
    client = ScriptedClient(lambda messages: messages[-1]["content"][-8:], max_concurrent_requests=1)
    defaults: dict[str, Any] = {"model": "m", "prompt": "{{ text }} question {{ id }}", "output_column": "x"}
    return LLMStage(client=client, **defaults | settings), client


def shuffled_rows(num_documents: int = 8, num_questions: int = 12) -> list[dict[str, Any]]:
    rows = [
        {"text": f"document {document} " * 40, "id": f"{document:03}.{question:04}"}
        for document in range(num_documents)
        for question in range(num_questions)
    ]
    random.Random(3).shuffle(rows)
    return rows


def num_changes(client: ScriptedClient) -> int:
    sent = [attempt.messages[-1]["content"].split(" question ")[0] for attempt in client.attempts]
    return sum(one != other for one, other in pairwise(sent))


def test_prompts_that_begin_alike_are_sent_together() -> None:
    """The server's cache holds a document while all of its questions come; each row gets its own answer."""
    stage, client = stage_and_client()
    rows = shuffled_rows()
    outcomes = stage.submit(rows).result()
    assert [outcome["x"].value for outcome in outcomes] == [row["id"] for row in rows]
    assert num_changes(client) == 7
    seen = stage.order_statistics()
    assert seen.num_ordered == 1
    assert seen.shared_as_given < 0.1
    assert seen.shared > 0.4


def test_the_order_of_the_input_can_be_kept() -> None:
    """By `order: input`."""
    stage, client = stage_and_client()
    rows = shuffled_rows()
    stage.submit(rows, order="input").result()
    assert [attempt.messages[-1]["content"][-8:] for attempt in client.attempts] == [row["id"] for row in rows]


def test_looking_stops_where_nothing_is_shared() -> None:
    """After 1, 2 and 3 windows without a shared prefix 1, 3 and 7 are not looked at."""
    stage, client = stage_and_client(prompt="{{ id }}")
    for window in range(14):
        rows = [{"id": f"{random.Random(number + 100 * window).getrandbits(900):x}"} for number in range(20)]
        stage.submit(rows).result()
    assert stage.order_statistics().num_windows == 3
    assert stage.order_statistics().num_ordered == 0
    assert len(client.attempts) == 14 * 20


def test_known_results_stay_with_their_rows() -> None:
    """A resumed row keeps its column whatever the order."""
    stage, _ = stage_and_client()
    rows = shuffled_rows(2, 20)
    known = [{"x": RowResult("known")} if number % 3 else {} for number in range(len(rows))]
    outcomes = stage.submit(rows, known=known).result()
    assert [outcome["x"].value for outcome in outcomes] == [
        "known" if number % 3 else row["id"] for number, row in enumerate(rows)
    ]


def test_a_prompt_that_is_a_function_is_called_once_a_row() -> None:
    """It may be slow, or count."""
    calls = []

    def prompt(row: Any) -> str:
        calls.append(row["id"])
        return f"{row['text']} question {row['id']}"

    stage, _ = stage_and_client(prompt=Prompt(prompt))
    rows = shuffled_rows(2, 20)
    stage.submit(rows).result()
    assert calls == [row["id"] for row in rows]


def test_a_row_that_cannot_be_rendered_fails_alone() -> None:
    """And is sent nowhere, as in any order."""
    stage, _ = stage_and_client()
    rows = [*shuffled_rows(2, 20), {"text": None, "id": "000.9999"}]
    outcomes = stage.submit(rows).result()
    assert outcomes[-1]["x"].error == "skipped: column 'text' is null"
    assert all(outcome["x"].error is None for outcome in outcomes[:-1])


def test_long_prompts_are_not_held_all_at_once() -> None:
    """One after another is rendered and compared, as far as 32 kB: a megabyte that is shared counts as one."""
    order = RowOrder(Prompt("{{ text }} question {{ id }}", system_prompt="You read closely. " * 3000))
    texts = [f"{number} {'word ' * 200_000}" for number in range(8)]
    rows = [{"text": texts[number % 8], "id": number} for number in range(128)]
    tracemalloc.start()
    plan = order.of(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan is not None
    assert [number % 8 for number in plan.indices] == sorted(number % 8 for number in range(128))
    assert peak < 32 << 20  # all of them are 128 MiB


def test_people_are_told_in_which_order_rows_are_sent() -> None:
    """That it is that of the input, too; nothing before anybody has looked."""
    stage, _ = stage_and_client()
    assert not stage.status().order.words
    stage.submit(shuffled_rows()).result()
    assert stage.status().order.words.startswith("grouped by the beginning of their prompts: at least 48%")
    other, _ = stage_and_client(prompt="{{ id }}")
    other.submit([{"id": f"{random.Random(number).getrandbits(900):x}"} for number in range(20)]).result()
    assert other.status().order.words == "as in the input: another order would share no more of the prompts"
    both = stage.order_statistics() + other.order_statistics()
    assert (both.num_windows, both.num_ordered) == (2, 1)
    assert "in 50% of the looks" in both.words
