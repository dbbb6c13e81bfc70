"""A table in, the same rows in the same order and new columns out, whatever the server does."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from nemo_llm_stage import (
    AsyncHTTPClient,
    AsyncLLMClient,
    ConfigError,
    FatalError,
    GenerationConfig,
    InputError,
    LLMClient,
    LLMStage,
    RunError,
)
from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer

FRAME = pd.DataFrame({"text": [f"row {i}" for i in range(50)]})


def make_stage(server: SimulatedServer, **settings: Any) -> LLMStage:
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=8, base_delay=0.01, max_retries=9)
    return LLMStage(**{"client": client, "model": "sim", "prompt": "Say {{ text }}", "output_column": "x"} | settings)


def answers_to(texts: Iterable[str]) -> list[str]:
    return [expected_answer([{"role": "user", "content": f"Say {text}"}]) for text in texts]


@pytest.fixture
def server() -> Any:
    with SimulatedServer() as server:
        yield server


def test_every_row_gets_its_own_answer(server: SimulatedServer) -> None:
    """In order, with what the server told of it, and the input as it was."""
    before = FRAME.copy()
    out = make_stage(server).process(FRAME)
    assert out["x"].tolist() == answers_to(FRAME["text"])
    assert out["x_error"].isna().all()
    meta = out["x_meta"].iloc[0]
    assert meta["finish_reason"] == "stop"
    assert (meta["attempts"], meta["model"], meta["endpoint"]) == (1, "sim", server.base_url)
    assert meta["input_tokens"] > 0
    assert meta["output_tokens"] > 0
    pd.testing.assert_frame_equal(FRAME, before)


def test_an_arrow_table_gives_an_arrow_table(server: SimulatedServer) -> None:
    """With declared types."""
    out = make_stage(server, has_meta=False).process(pa.table({"text": ["a", None]}))
    assert out.column("x").to_pylist() == [*answers_to("a"), None]
    assert out.column("x_skipped").to_pylist() == [None, "column 'text' is null"]
    assert out.schema.names == ["text", "x", "x_error", "x_skipped"]


def test_an_empty_table_gets_the_columns_and_asks_nothing(server: SimulatedServer) -> None:
    """Their types too."""
    out = make_stage(server).process(pa.table({"text": pa.array([], pa.string())}))
    assert out.schema.field("x").type == pa.string()
    assert out.num_rows == server.stats.num_requests == 0


def test_duplicate_index_labels_keep_their_rows(server: SimulatedServer) -> None:
    """Rows are told apart by their place."""
    out = make_stage(server).process(FRAME.set_index(pd.Index([1] * 50)))
    assert out["x"].tolist() == answers_to(FRAME["text"])


def test_a_running_loop_is_no_obstacle(server: SimulatedServer) -> None:
    """As in a notebook."""

    async def cell() -> pd.DataFrame:
        return make_stage(server).process(FRAME)

    assert asyncio.run(cell())["x"].tolist() == answers_to(FRAME["text"])


def test_threads_share_one_limit(server: SimulatedServer) -> None:
    """Three calls at once keep no more than one call's requests in flight."""
    stage = make_stage(server, deduplicate=False)
    outs: list[pd.DataFrame] = []
    threads = [threading.Thread(target=lambda: outs.append(stage.process(FRAME))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [out["x"].tolist() for out in outs] == [answers_to(FRAME["text"])] * 3
    assert server.stats.max_in_flight <= 8


def test_a_stage_can_be_pickled_before_and_after_use(server: SimulatedServer) -> None:
    """And used again on the other side."""
    stage = make_stage(server)
    for _ in range(2):
        out = pickle.loads(pickle.dumps(stage)).process(FRAME)
        assert out["x"].tolist() == answers_to(FRAME["text"])
        stage.process(FRAME.head(1))


def test_a_closed_stage_opens_again(server: SimulatedServer) -> None:
    """Closing twice is no mistake."""
    stage = make_stage(server)
    for _ in range(2):
        assert stage.process(FRAME.head(2))["x"].tolist() == answers_to(FRAME["text"].head(2))
        stage.close()
        stage.close()


def test_several_choices_make_a_list(server: SimulatedServer) -> None:
    """In the server's order."""
    out = make_stage(server, generation_config={"n": 3}).process(FRAME.head(2))
    assert [(type(value), len(value)) for value in out["x"]] == [(list, 3), (list, 3)]


def test_identical_rows_are_asked_once(server: SimulatedServer) -> None:
    """Where a request has one answer."""
    frame = pd.DataFrame({"text": ["a", "b"] * 20})
    out = make_stage(server).process(frame)
    assert out["x"].tolist() == answers_to(frame["text"])
    assert server.stats.num_requests == 2


def test_sampled_rows_are_asked_each(server: SimulatedServer) -> None:
    """At a temperature and without a seed every row has an answer of its own."""
    config = GenerationConfig(temperature=1.0, seed=None)
    make_stage(server, generation_config=config).process(pd.DataFrame({"text": ["a"] * 20}))
    assert server.stats.num_requests == 20


def test_every_row_is_answered_though_attempts_fail() -> None:
    """20 % of them, in several ways."""
    kinds = (429, 500, "drop")
    faults = [Fault(kind, rate=0.07) for kind in kinds]  # type: ignore[arg-type]
    with SimulatedServer(faults=faults) as server:
        frame = pd.DataFrame({"text": [f"row {i}" for i in range(300)]})
        out = make_stage(server).process(frame)
        assert out["x"].tolist() == answers_to(frame["text"])
        assert server.stats.num_requests > 310


def test_a_refused_row_is_a_value(server: SimulatedServer) -> None:
    """The others are answered; the server's words are kept."""
    server.faults = [Fault(400, contains="row 7")]
    out = make_stage(server).process(FRAME.head(10))
    assert out["x"].isna().tolist() == [i == 7 for i in range(10)]
    assert out["x_error"].iloc[7].startswith("bad_request: ")
    assert out["x_meta"].iloc[7]["attempts"] == 1


def test_a_row_that_fails_to_the_end_counts_its_attempts() -> None:
    """Retries used up."""
    with SimulatedServer(faults=[Fault(500, contains="row 3")]) as server:
        out = make_stage(server).process(FRAME.head(5))
        assert out["x_error"].iloc[3].startswith("server_error: ")
        assert out["x_meta"].iloc[3]["attempts"] == 10


def test_an_outage_uses_no_row_up(server: SimulatedServer) -> None:
    """With give_up_after_s a row comes back after the client's own retries are used up."""
    client = AsyncHTTPClient(server.base_url, max_retries=0)
    stage = make_stage(server, client=client, give_up_after_s=3600)
    stage.process(FRAME.tail(1))  # at its first rows a stage looks for the server, and raises if it is down
    out: list[pd.DataFrame] = []
    with server.outage():
        thread = threading.Thread(target=lambda: out.append(stage.process(FRAME.head(3))))
        thread.start()
        thread.join(timeout=0.2)
        assert thread.is_alive()
    thread.join()
    assert out[0]["x"].tolist() == answers_to(FRAME["text"].head(3))


def test_an_unknown_model_stops_at_once(server: SimulatedServer) -> None:
    """With the server's words, after a handful of requests."""
    with pytest.raises(FatalError, match="has no model 'nope'"):
        make_stage(server, model="nope").process(FRAME)
    assert server.stats.num_requests <= 16


def test_a_wrong_key_stops_at_once() -> None:
    """Nothing is asked a second time."""
    with SimulatedServer(api_key="right") as server:
        client = AsyncHTTPClient(server.base_url, api_key="wrong")
        with pytest.raises(FatalError):
            make_stage(server, client=client).process(FRAME)


def test_a_server_that_refuses_all_rows_stops_the_run() -> None:
    """The settings are wrong, not the rows."""
    with SimulatedServer(faults=[Fault(400)]) as server:
        with pytest.raises(RunError, match="refused the first 20 rows"):
            make_stage(server).process(FRAME)
        assert server.stats.num_requests < 40


def test_the_parser_makes_the_value(server: SimulatedServer) -> None:
    """What it cannot take is that row's error."""

    def number(text: str) -> int:
        return int(text.rpartition(" ")[2])

    frame = pd.DataFrame({"text": ["1", "two", "3"]})
    out = make_stage(server, parser=number, output_type=pa.int64()).process(frame)
    assert out["x"].dtype == pd.ArrowDtype(pa.int64())
    assert out["x"].isna().tolist() == [False, True, False]
    assert out["x_error"].iloc[1].startswith("parse: ValueError")


def test_a_typo_names_the_nearest_column(server: SimulatedServer) -> None:
    """Before anything is asked."""
    with pytest.raises(InputError, match=r"txt.*'text'"):
        make_stage(server, prompt="{{ txt }}").process(FRAME)
    assert server.stats.num_requests == 0


def test_an_output_column_that_is_there_already_is_refused(server: SimulatedServer) -> None:
    """Nothing is overwritten."""
    with pytest.raises(ConfigError, match="already has a column 'x_error'"):
        make_stage(server).process(FRAME.assign(x_error=""))


def test_a_fingerprint_follows_what_decides_the_answers(server: SimulatedServer) -> None:
    """And nothing else."""
    base = make_stage(server).fingerprint
    assert make_stage(server).fingerprint == base
    assert make_stage(server, client=AsyncHTTPClient("http://elsewhere/v1")).fingerprint == base
    for change in (
        {"prompt": "Tell {{ text }}"},
        {"model": "m2"},
        {"generation_config": {"top_k": 3}},
        {"parser": len},
    ):
        assert make_stage(server, **change).fingerprint != base


class Upper(AsyncLLMClient):
    """A user's own client: no more than the two methods."""

    def setup(self) -> None:
        self.suffix = "!"

    async def _query_model_impl(self, *, messages: Iterable[dict[str, Any]], **_: Any) -> list[str]:
        return [str(list(messages)[-1]["content"]).upper() + self.suffix]


class Whole(Upper):
    """One that overrides query_model itself."""

    async def query_model(self, *, messages: Iterable[dict[str, Any]], **_: Any) -> list[str]:
        return ["whole"]


class Blocking(LLMClient):
    """A synchronous one."""

    def setup(self) -> None: ...

    def query_model(self, *, messages: Iterable[dict[str, Any]], **_: Any) -> list[str]:
        return [str(list(messages)[-1]["content"]).lower()]


@pytest.mark.parametrize(
    ("client", "expected"),
    [(Upper(), "SAY A!"), (Whole(), "whole"), (Blocking(), "say a")],
    ids=["impl", "query", "sync"],
)
def test_any_client_of_the_users_is_a_full_citizen(client: Any, expected: str) -> None:
    """Usage is unknown there, never invented."""
    stage = LLMStage(client=client, model="m", prompt="Say {{ text }}", output_column="x")
    out = stage.process(pd.DataFrame({"text": ["A"]}))
    assert out["x"].tolist() == [expected]
    assert out["x_meta"].iloc[0]["input_tokens"] is None


class Choosy(Upper):
    """Raises what a user's code may raise."""

    async def _query_model_impl(self, *, messages: Iterable[dict[str, Any]], **_: Any) -> list[str]:
        text = str(list(messages)[-1]["content"])
        if "bad" in text:
            raise KeyError("surprise")
        return [text]


def test_an_exception_of_a_users_client_fails_its_row() -> None:
    """By name."""
    stage = LLMStage(client=Choosy(), model="m", prompt="{{ text }}", output_column="x")
    out = stage.process(pd.DataFrame({"text": ["good", "bad"]}))
    assert out["x"].iloc[0] == "good"
    assert out["x_error"].iloc[1] == "client: KeyError: 'surprise'"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"output_column": ""}, "output_column is empty"),
        ({"model": ""}, "model is empty"),
        ({"prompt": "{{ text"}, "template"),
        ({"generation_config": {"max_token": 3}}, "did you mean 'max_tokens'"),
        ({"client": object()}, "client"),
    ],
)
def test_settings_that_cannot_work_are_refused(server: SimulatedServer, settings: dict[str, Any], words: str) -> None:
    """At construction."""
    with pytest.raises(ConfigError, match=words):
        make_stage(server, **settings)
