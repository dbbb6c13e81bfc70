"""Columns of one row whose prompts begin alike are asked at one server, whose cache has their beginning then."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from nemo_llm_stage import AsyncHTTPClient, LLMStage, MultiColumnStage, Prompt
from nemo_llm_stage.stage.siblings import begin_alike
from nemo_llm_stage.stage.stage import Stage
from nemo_llm_stage.testing import SimulatedServer

SYSTEM = "You read documents closely. " * 40
NUM_ROWS, NUM_SERVERS = 60, 3


def stage_of(urls: Sequence[str], prompts: Sequence[str]) -> Stage:
    client = AsyncHTTPClient(urls, max_concurrent_requests=8)
    stages = [
        LLMStage(client=client, model="sim", prompt=prompt, system_prompt=SYSTEM, output_column=f"x{number}")
        for number, prompt in enumerate(prompts)
    ]
    return MultiColumnStage(stages)


def share_at_one_server(prompts: Sequence[str], order: str = "auto", num_rows: int = NUM_ROWS) -> float:
    """Ask about documents that no two rows share; return for which share of the rows one server got all requests."""
    rng = random.Random(0)
    rows = [{"id": f"<{number}>", "text": f"<{number}> {rng.getrandbits(4000):x}"} for number in range(num_rows)]
    with ExitStack() as stack:
        servers = [stack.enter_context(SimulatedServer(service_time_s=0.005)) for _ in range(NUM_SERVERS)]
        stage = stage_of([server.base_url for server in servers], prompts)
        outcomes = pickle.loads(pickle.dumps(stage)).submit(rows, order=order).result(60.0)
        asked = [[request.body["messages"][-1]["content"] for request in server.requests] for server in servers]
    assert all(result.error is None for outcome in outcomes for result in outcome.values())
    assert min(map(len, asked)) > 0.15 * num_rows * len(prompts)
    places = [[any(row["id"] in text for text in texts) for texts in asked].count(True) for row in rows]
    return places.count(1) / num_rows


@pytest.mark.parametrize("order", ["auto", "input"])
def test_questions_about_the_document_of_a_row_go_to_one_server(order: str) -> None:
    """Whatever the order of the rows; also a question that uses an answer. Without that it is a fifth of them."""
    prompts = ["{{ text }} Who?", "{{ text }} Where?", "{{ text }} They say {{ x0 }}. Why?"]
    assert share_at_one_server(prompts, order) > 0.7


def test_few_rows_are_enough() -> None:
    """Fewer than an order is made of."""
    assert share_at_one_server(["{{ text }} Who?", "{{ text }} Where?"], num_rows=12) > 0.7


@pytest.mark.parametrize(
    ("templates", "is_alike"),
    [
        (["{{ text }} Who?", "{{ text }} Where?"], True),
        (["{{ text }} Who?", "{{ text }} They say {{ x0 }}. Why?"], True),
        (["{{ text }} Who?", "{{ text }} They say {{ x0.name }}. Why?"], False),
        (["{{ text }} Who?"], False),
        (["Who is in {{ text }}", "Where is {{ text }}"], False),
        (["{{ id }} Who?", "{{ id }} Where?"], False),
    ],
    ids=["questions", "chain", "unknown field", "one", "question first", "short"],
)
def test_what_rows_share_with_each_other_does_not_count(templates: list[str], is_alike: bool) -> None:
    """A long system prompt is in every cache; nor does what comes after a difference count, or what is short."""
    prompts = [Prompt(template, system_prompt=SYSTEM) for template in templates]
    rows = [{"id": str(number), "text": f"{random.Random(number).getrandbits(4000):x}"} for number in range(20)]
    assert begin_alike(prompts, ["x0", "x1"], rows) == is_alike
    assert not begin_alike(prompts, ["x0", "x1"], rows[:1])
