"""Several columns in one pass: each is asked as soon as what its prompt uses is there, and fails only what uses it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from nemo_llm_stage import (
    AsyncHTTPClient,
    ConfigError,
    Counters,
    FatalError,
    InputError,
    LLMStage,
    MultiColumnStage,
)
from nemo_llm_stage.testing import Fault, SimulatedServer


def text_of(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    """Answers each text with the text in brackets."""
    with SimulatedServer(answer=lambda body: f"[{text_of(body)}]") as server:
        yield server


@pytest.fixture
def column(server: SimulatedServer) -> Callable[..., LLMStage]:
    """Make stages that share a client."""
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=4, base_delay=0.01, max_retries=1)

    def make(name: str, prompt: Any, **settings: Any) -> LLMStage:
        return LLMStage(**{"client": client, "model": "sim", "output_column": name, "prompt": prompt} | settings)

    return make


def process(stage: MultiColumnStage, table: dict[str, list[Any]]) -> list[dict[str, Any]]:
    stage = pickle.loads(pickle.dumps(stage))
    try:
        return stage.process(pa.table(table)).to_pylist()
    finally:
        stage.close()


def test_a_later_prompt_uses_an_earlier_answer(column: Callable[..., LLMStage], server: SimulatedServer) -> None:
    """Whatever their order; the columns come out in the order in which they stand."""
    stage = MultiColumnStage([column("b", "{{ a }} and {{ text }}"), column("a", "first {{ text }}")])
    assert stage.required_columns == {"text"}
    [row] = process(stage, {"text": ["one"]})
    assert list(row) == ["text", "b", "b_error", "b_skipped", "b_meta", "a", "a_error", "a_skipped", "a_meta"]
    assert (row["a"], row["b"]) == ("[first one]", "[[first one] and one]")
    assert [text_of(request.body) for request in server.requests] == ["first one", "[first one] and one"]


def test_columns_that_do_not_use_each_other_are_asked_side_by_side(column: Callable[..., LLMStage]) -> None:
    """Of one row."""
    with SimulatedServer(service_time_s=0.2) as server:
        client = AsyncHTTPClient(server.base_url)
        names = ["a", "b", "c"]
        process(MultiColumnStage([column(n, f"{n} {{{{ text }}}}", client=client) for n in names]), {"text": ["t"]})
        assert server.stats.max_in_flight == 3


def test_all_columns_share_the_limit_of_their_client(column: Callable[..., LLMStage]) -> None:
    """Over rows and columns, and it is full."""
    with SimulatedServer(service_time_s=0.02) as server:
        client = AsyncHTTPClient(server.base_url, max_concurrent_requests=4)
        prompts = {"a": "a {{ text }}", "b": "b {{ a }}", "c": "c {{ text }}"}
        stage = MultiColumnStage([column(name, prompt, client=client) for name, prompt in prompts.items()])
        assert stage.max_concurrent_requests == 4
        process(stage, {"text": [str(i) for i in range(20)]})
        assert server.stats.max_in_flight == 4
        assert server.stats.num_requests == 60


def test_each_column_may_have_a_server_a_model_and_parameters_of_its_own(column: Callable[..., LLMStage]) -> None:
    """Answers of one server are not taken for the other's, though the request is the same."""
    with SimulatedServer(answer=lambda _: "one") as one, SimulatedServer(answer=lambda _: "two", model="big") as two:
        stage = MultiColumnStage(
            [
                column("a", "{{ text }}", client=AsyncHTTPClient(one.base_url, max_concurrent_requests=2)),
                column("b", "{{ text }}", client=AsyncHTTPClient(two.base_url), model="big"),
                column("c", "{{ text }}", client=AsyncHTTPClient(one.base_url), generation_config={"max_tokens": 7}),
            ]
        )
        [row] = process(stage, {"text": ["t"]})
        assert (row["a"], row["b"], row["c"]) == ("one", "two", "one")
        assert two.requests[0].body["model"] == "big"
        assert 7 in {request.body["max_tokens"] for request in one.requests}


def test_same_requests_to_servers_of_the_same_name_are_told_apart(column: Callable[..., LLMStage]) -> None:
    """In the memory of identical requests."""
    with SimulatedServer(answer=lambda _: "one") as one, SimulatedServer(answer=lambda _: "two") as two:
        clients = [AsyncHTTPClient(server.base_url) for server in (one, two)]
        stages = [column(name, "{{ text }}", client=client) for name, client in zip("ab", clients, strict=True)]
        [row] = process(MultiColumnStage(stages), {"text": ["t"]})
    assert (row["a"], row["b"]) == ("one", "two")


def test_a_column_that_fails_fails_only_those_that_use_it(column: Callable[..., LLMStage]) -> None:
    """By way of others too."""
    prompts = {"a": "bad {{ text }}", "b": "{{ a }}", "c": "{{ b }}", "d": "good {{ text }}"}
    with SimulatedServer(answer=text_of, faults=[Fault(400, contains="bad")]) as server:
        client = AsyncHTTPClient(server.base_url)
        stage = MultiColumnStage([column(name, prompt, client=client) for name, prompt in prompts.items()])
        outcomes = stage.submit([{"text": "t"}]).result()
        stage.close()
    [row] = stage.add_columns(pa.table({"text": ["t"]}), outcomes).to_pylist()
    assert row["a_error"].startswith("bad_request: ")
    assert (row["b_error"], row["c_error"]) == ("dependency: column 'a' failed", "dependency: column 'b' failed")
    assert (row["d"], row["d_error"]) == ("good t", None)
    counters = Counters()
    counters.count(outcomes[0])
    assert (counters.num_rows, counters.num_failed, counters.num_answered) == (1, 1, 0)
    assert counters.errors == {"bad_request": 1, "dependency": 2}
    assert counters.errors_by_column == {"a": 1, "b": 1, "c": 1}


def test_what_uses_a_skipped_column_is_skipped(column: Callable[..., LLMStage], server: SimulatedServer) -> None:
    """Nothing failed."""
    stage = MultiColumnStage([column("a", "{{ text }}"), column("b", "{{ a }}")])
    [row] = process(stage, {"text": pa.array([None], pa.string())})
    assert (row["a_skipped"], row["b_skipped"]) == ("column 'text' is null", "column 'a' was skipped")
    assert row["a_error"] is row["b_error"] is None
    assert server.stats.num_requests == 0


def test_prompts_see_typed_answers(column: Callable[..., LLMStage]) -> None:
    """Fields of a struct, a column for each field, thinking."""
    schema = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}

    def answer(body: dict[str, Any]) -> str:
        return text_of(body) if text_of(body).startswith("saw") else '<think>hm</think>{"year": 1990}'

    with SimulatedServer(answer=answer) as server:
        common = {"client": AsyncHTTPClient(server.base_url)}
        typed = {"parser": schema, "reasoning_column": True, **common}
        stage = MultiColumnStage(
            [
                column("a", "{{ text }}", **typed),
                column("b", "again {{ text }}", field_columns=True, **typed),
                column("c", "saw {{ a.year + 1 }} {{ b_year + 2 }} {{ a_reasoning }}", **common),
            ]
        )
        [row] = process(stage, {"text": ["t"]})
    assert row["c"] == "saw 1991 1992 hm"


def test_a_function_sees_the_columns_before_it(column: Callable[..., LLMStage]) -> None:
    """And none behind it."""
    stage = MultiColumnStage(
        [column("a", "{{ text }}"), column("b", lambda row: " ".join(sorted(row))), column("c", "{{ text }}")]
    )
    try:
        [row] = stage.process(pa.table({"text": ["t"]})).to_pylist()
    finally:
        stage.close()
    assert row["b"] == "[a text]"


def test_a_missing_column_is_told_before_anything_is_asked(
    column: Callable[..., LLMStage], server: SimulatedServer
) -> None:
    """With the nearest one, generated ones among them."""
    stage = MultiColumnStage([column("summary", "{{ text }}"), column("b", "{{ sumary }}")])
    with pytest.raises(InputError, match=r"uses column 'sumary', which .* did you mean 'summary'"):
        stage.process(pa.table({"text": ["t"]}))
    assert server.stats.num_requests == 0


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ([("a", "{{ b }}", {}), ("b", "{{ a }}", {})], "in a circle: a → b → a"),
        ([("a", "{{ a }}", {})], "in a circle: a → a"),
        ([("a", "x", {}), ("a", "y", {})], "two columns 'a'"),
        ([("a", "x", {}), ("a_meta", "y", {})], "two columns 'a_meta'"),
        ([("a", "x", {"keep_if": "a == 'b'"})], "a: keep_if is for the whole row; give it to the MultiColumnStage"),
        ([("a", "x", {"explode": True, "generation_config": {"n": 2}})], "a: explode makes rows of answers"),
    ],
)
def test_columns_that_cannot_go_together_are_refused(
    column: Callable[..., LLMStage], columns: list[Any], words: str
) -> None:
    """When they are put together."""
    with pytest.raises(ConfigError, match=words):
        MultiColumnStage([column(name, prompt, **settings) for name, prompt, settings in columns])


def test_a_fatal_error_of_one_column_stops_the_run(column: Callable[..., LLMStage]) -> None:
    """As itself, though columns run side by side."""
    with SimulatedServer(faults=[Fault(401)]) as server:
        client = AsyncHTTPClient(server.base_url)
        stage = MultiColumnStage([column("a", "{{ text }}", client=client), column("b", "b", client=client)])
        with pytest.raises(FatalError):
            stage.process(pa.table({"text": ["t"]}))
        stage.close()
