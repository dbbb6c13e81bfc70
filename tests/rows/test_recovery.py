"""Answers that cannot be used as they came, and prompts that do not fit: asked again, accounted for, or failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from nemo_llm_stage import AsyncHTTPClient, Completion, ConfigError, ConversationFormatter, Counters, LLMStage, Usage
from nemo_llm_stage.client.formatters import PlainFormatter
from nemo_llm_stage.errors import BadRequestError
from nemo_llm_stage.output import ChoiceOutput
from nemo_llm_stage.testing import Fault, ScriptedClient, SimulatedServer

Body = dict[str, Any]


def make_stage(server: SimulatedServer | ScriptedClient, **settings: Any) -> LLMStage:
    client = server
    if isinstance(server, SimulatedServer):
        client = AsyncHTTPClient(server.base_url, base_delay=0.01)
    return LLMStage(**{"client": client, "model": "sim", "prompt": "{{ text }}", "output_column": "x"} | settings)


def ask(stage: LLMStage, *texts: str, store: Any = None) -> tuple[list[dict[str, Any]], Counters]:
    """Return the new columns of each row, and what they count."""
    table = pa.table({"text": list(texts)})
    results = stage.submit(stage.rows_of(table), store=store).result()
    stage.close()
    counters = Counters()
    for result in results:
        counters.count(result)
    return stage.add_columns(table, results).drop_columns("text").to_pylist(), counters


@pytest.fixture
def serve() -> Iterator[Callable[..., SimulatedServer]]:
    """Start a server with an answer for the last turn's text; stopped at the end."""
    servers: list[SimulatedServer] = []

    def start(answer: Callable[[str], str] | None = None, **settings: Any) -> SimulatedServer:
        by_text = None if answer is None else (lambda body: answer(body["messages"][-1]["content"]))
        servers.append(SimulatedServer(answer=by_text, **settings).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


class Store:
    """Answers paid for before."""

    def __init__(self) -> None:
        self.answers: dict[str, Completion] = {}

    def get(self, key: str) -> Completion | None:
        return self.answers.get(key)

    def put(self, key: str, completion: Completion) -> None:
        self.answers[key] = completion


def number(text: str) -> int:
    return int(text)


NUMBER = {"parser": number, "output_type": pa.int64()}


def number_when_told(text: str) -> str:
    return "7" if text.startswith("Your answer cannot be used") else "seven"


def test_an_answer_that_cannot_be_parsed_is_asked_for_again(serve: Any) -> None:
    """With the answer and what is wrong with it; the first one counts as waste."""
    server = serve(number_when_told)
    [row], counters = ask(make_stage(server, **NUMBER), "how many?")
    assert (row["x"], row["x_error"]) == (7, None)
    assert (row["x_meta"]["attempts"], row["x_meta"]["recovery"], row["x_meta"]["raw"]) == (2, "reask", None)
    question, answer, correction = server.requests[1].body["messages"]
    assert (question["content"], answer) == ("how many?", {"role": "assistant", "content": "seven"})
    assert "invalid literal for int() with base 10: 'seven'" in correction["content"]
    assert (counters.num_answered, counters.num_attempts, counters.num_wasted_attempts) == (1, 2, 1)
    assert (counters.output_tokens, counters.wasted_output_tokens) == (3, 2)
    assert row["x_meta"]["output_tokens"] == 3


def test_a_row_fails_after_max_reasks_with_its_raw_answer(serve: Any) -> None:
    """The last one; everything it took is waste."""
    server = serve(lambda text: f"no {len(text)}")
    [row], counters = ask(make_stage(server, parser=["a", "b"], max_reasks=3), "?")
    assert row["x_error"].startswith("parse: 'no ")
    assert row["x_meta"]["raw"] in row["x_error"] or row["x_meta"]["raw"].startswith("no ")
    assert row["x_meta"]["attempts"] == server.stats.num_requests == 4
    assert (counters.num_failed, counters.num_wasted_attempts) == (1, 4)
    assert counters.wasted_output_tokens == counters.output_tokens > 0


def test_no_row_is_asked_again_without_reasks(serve: Any) -> None:
    """max_reasks=0."""
    server = serve(lambda _: "no")
    [row], _ = ask(make_stage(server, parser=["a"], max_reasks=0), "?")
    assert row["x_error"].startswith("parse: ")
    assert (row["x_meta"]["recovery"], server.stats.num_requests) == (None, 1)


def test_each_request_of_a_row_is_resumed_by_itself(serve: Any) -> None:
    """What was journaled is not paid for again, also where the run stopped between a row's two requests."""
    server, store = serve(number_when_told), Store()
    stage = make_stage(server, **NUMBER, deduplicate=False)
    rows, _ = ask(stage, "how many?", store=store)
    again, counters = ask(stage, "how many?", store=store)
    assert again == rows
    assert (server.stats.num_requests, counters.num_resumed, counters.num_attempts) == (2, 1, 2)
    first, _ = store.answers
    store.answers = {first: store.answers[first]}
    ask(stage, "how many?", store=store)
    assert server.stats.num_requests == 3


def test_identical_rows_share_their_corrections_too(serve: Any) -> None:
    """Where a request has one answer."""
    server = serve(number_when_told)
    rows, counters = ask(make_stage(server, **NUMBER), *["same"] * 5)
    assert [row["x"] for row in rows] == [7] * 5
    assert server.stats.num_requests == 2
    assert (counters.num_shared, counters.num_attempts, counters.num_wasted_attempts) == (4, 2, 1)


def test_of_several_choices_only_the_bad_one_is_asked_for_again() -> None:
    """The others stay as they are."""
    client = ScriptedClient([["1", "two", "3"], "2"])
    [row], counters = ask(make_stage(client, **NUMBER, generation_config={"n": 3}), "?")
    assert row["x"] == [1, 2, 3]
    assert client.attempts[1].generation_config.n == 1
    assert (counters.num_attempts, counters.num_wasted_attempts) == (2, 0)


def test_a_choice_that_stays_bad_fails_the_row_with_all_raw_answers() -> None:
    """As a JSON list."""
    client = ScriptedClient([["1", "two"], "zwei"])
    settings = {**NUMBER, "generation_config": {"n": 2}, "max_reasks": 1}
    [row], counters = ask(make_stage(client, **settings), "?")
    assert "'zwei'" in row["x_error"]
    assert row["x_meta"]["raw"] == '["1", "two"]'
    assert (counters.num_attempts, counters.num_wasted_attempts) == (2, 2)


def test_a_correction_that_the_server_refuses_leaves_the_parse_error(serve: Any) -> None:
    """That is why the row failed."""
    server = serve(lambda _: "seven", faults=[Fault(400, contains="cannot be used")])
    [row], counters = ask(make_stage(server, **NUMBER), "?")
    assert row["x_error"].startswith("parse: ValueError")
    assert (row["x_meta"]["raw"], row["x_meta"]["attempts"], counters.num_wasted_attempts) == ("seven", 2, 2)


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def test_a_cut_off_answer_is_accepted_as_it_is(serve: Any) -> None:
    """Unless told otherwise; the finish reason tells."""
    [row], _ = ask(make_stage(serve(lambda _: LONG), generation_config={"max_tokens": 4}), "?")
    assert (row["x"], row["x_error"], row["x_meta"]["finish_reason"]) == (LONG[:16], None, "length")


def test_a_cut_off_answer_can_fail_its_row(serve: Any) -> None:
    """Before it is parsed; what came is kept."""
    server = serve(lambda _: LONG)
    [row], counters = ask(make_stage(server, generation_config={"max_tokens": 4}, on_truncated="error"), "?")
    assert row["x"] is None
    assert row["x_error"] == "truncated: the answer was cut off at max_tokens=4"
    assert (row["x_meta"]["raw"], counters.wasted_output_tokens) == (LONG[:16], 4)


def test_only_cut_off_rows_are_asked_for_more(serve: Any) -> None:
    """With twice the tokens until the answer ends by itself."""
    server = serve(lambda text: LONG if text == "long" else "short")
    stage = make_stage(server, generation_config={"max_tokens": 6}, on_truncated="retry_longer")
    rows, counters = ask(stage, "short", "long")
    assert [row["x"] for row in rows] == ["short", LONG]
    assert [row["x_meta"]["recovery"] for row in rows] == [None, "retry_longer"]
    asked = [
        request.body["max_tokens"] for request in server.requests if request.body["messages"][0]["content"] == "long"
    ]
    assert asked == [6, 12, 24]
    assert (counters.num_wasted_attempts, counters.wasted_output_tokens) == (2, 18)


def test_longer_answers_have_a_cap(serve: Any) -> None:
    """An answer that is cut off there too fails the row."""
    server = serve(lambda _: LONG)
    settings = {"generation_config": {"max_tokens": 4}, "on_truncated": "retry_longer", "max_tokens_cap": 10}
    [row], _ = ask(make_stage(server, **settings), "?")
    assert row["x_error"] == "truncated: the answer was cut off at max_tokens=10"
    assert [request.body["max_tokens"] for request in server.requests] == [4, 8, 10]


def test_max_tokens_may_stand_among_the_extras() -> None:
    """As OpenAI's reasoning models want it."""
    answers = [Completion(("cut",), ("length",)), Completion(("whole",), ("stop",))]
    client = ScriptedClient(answers)
    config = {"max_tokens": None, "extra_kwargs": {"max_completion_tokens": 100}}
    [row], _ = ask(make_stage(client, generation_config=config, on_truncated="retry_longer"), "?")
    assert row["x"] == "whole"
    assert client.attempts[1].generation_config.extra_kwargs == {"max_completion_tokens": 200}


def go_on_with(whole: str) -> Callable[[Body], str]:
    """Return a server's answers that go on where the assistant's last turn stops."""

    def answer(body: Body) -> str:
        last = body["messages"][-1]
        return whole[len(last["content"]) :] if last["role"] == "assistant" else whole

    return answer


def test_a_cut_off_answer_can_be_continued() -> None:
    """The model gets its own words as an open turn; nothing of that is waste."""
    with SimulatedServer(answer=go_on_with(LONG)) as server:
        stage = make_stage(server, generation_config={"max_tokens": 8}, on_truncated="continue")
        [row], counters = ask(stage, "?")
        bodies = [request.body for request in server.requests]
    assert row["x"] == LONG
    assert (row["x_meta"]["finish_reason"], row["x_meta"]["recovery"]) == ("stop", "continue")
    assert [len(body["messages"]) for body in bodies] == [1, 2, 2]
    assert all(body["continue_final_message"] and body["add_generation_prompt"] is False for body in bodies[1:])
    assert (counters.num_attempts, counters.num_wasted_attempts, counters.wasted_output_tokens) == (3, 0, 0)


def test_blanks_at_a_seam_are_neither_lost_nor_doubled() -> None:
    """Templates drop blanks at the end of a turn; the model writes them anew."""
    client = ScriptedClient([Completion(("one ",), ("length",)), Completion((" two",), ("stop",))])
    [row], _ = ask(make_stage(client, on_truncated="continue"), "?")
    assert row["x"] == "one two"
    assert client.attempts[1].messages[-1] == {"role": "assistant", "content": "one"}


def test_a_continuation_goes_without_the_grammar() -> None:
    """It would begin anew in the middle of the value."""
    with SimulatedServer(answer=go_on_with('{"a": "' + "b" * 40 + '"}')) as server:
        schema = {"type": "object", "properties": {"a": {"type": "string"}}}
        stage = make_stage(server, parser=schema, generation_config={"max_tokens": 8}, on_truncated="continue")
        [row], _ = ask(stage, "?")
        assert row["x"] == {"a": "b" * 40}
        assert ["response_format" in request.body for request in server.requests] == [True, False]


def test_a_guide_and_the_users_own_extras_go_together() -> None:
    """The user's win."""
    client = ScriptedClient(["a"])
    config = {"extra_kwargs": {"extra_body": {"min_p": 0.1}, "logprobs": False}}
    ask(make_stage(client, parser=ChoiceOutput(["a"], guided=True, logprobs=True), generation_config=config), "?")
    assert client.attempts[0].generation_config.extra_kwargs == {
        "extra_body": {"structured_outputs": {"choice": ["a"]}, "min_p": 0.1},
        "logprobs": False,
    }


def test_a_base_model_continues_the_very_text() -> None:
    """Behind the prompt that it had."""

    def answer(body: Body) -> str:
        return LONG[len(body["prompt"].partition("Assistant:")[2]) :]

    with SimulatedServer(answer=answer) as server:
        settings = {"generation_config": {"max_tokens": 12}, "conversation_formatter": PlainFormatter()}
        [row], _ = ask(make_stage(server, on_truncated="continue", **settings), "?")
        assert row["x"] == LONG
        assert server.requests[1].body["prompt"] == "User: ?\n\nAssistant:" + LONG[:48].rstrip()
        assert "continue_final_message" not in server.requests[1].body


def test_a_server_that_cannot_continue_is_told(serve: Any) -> None:
    """With its words; what came is kept."""
    server = serve(lambda _: LONG, faults=[Fault(400, contains="assistant: ")])
    [row], _ = ask(make_stage(server, generation_config={"max_tokens": 4}, on_truncated="continue"), "?")
    assert row["x_error"].startswith("truncated: the answer was cut off at max_tokens=4, and could not be continued: ")
    assert (row["x_meta"]["raw"], row["x_meta"]["attempts"]) == (LONG[:16], 2)


def test_thinking_without_an_answer_is_asked_for_more() -> None:
    """All of max_tokens went into reasoning."""
    from nemo_llm_stage.errors import TruncatedError

    client = ScriptedClient([TruncatedError("spent in reasoning"), "answer"])
    [row], counters = ask(make_stage(client, on_truncated="retry_longer"), "?")
    assert row["x"] == "answer"
    assert client.attempts[1].generation_config.max_tokens == 4096
    assert (counters.num_attempts, counters.num_wasted_attempts) == (2, 1)


def test_an_unusable_answer_that_was_cut_off_says_so(serve: Any) -> None:
    """To the model and to the user."""
    server = serve(lambda _: LONG)
    [row], _ = ask(make_stage(server, parser=["a"], generation_config={"max_tokens": 4}), "?")
    assert row["x_error"].endswith("The answer was cut off at max_tokens.")
    assert "cut off at max_tokens" in server.requests[1].body["messages"][-1]["content"]


def test_a_prompt_that_does_not_fit_fails_its_row(serve: Any) -> None:
    """With the server's words."""
    server = serve(max_model_len=100)
    rows, _ = ask(make_stage(server, generation_config={"max_tokens": 20}), "short", "long " * 100)
    assert rows[0]["x_error"] is None
    assert "maximum context length is 100 tokens" in rows[1]["x_error"]


def test_the_answer_can_be_shrunk_to_what_the_prompt_leaves(serve: Any) -> None:
    """By the server's own numbers; refused sends count as waste."""
    server = serve(max_model_len=100)
    stage = make_stage(server, generation_config={"max_tokens": 60}, on_overflow="shrink_output")
    rows, counters = ask(stage, "short", "long " * 40)
    assert [row["x_error"] for row in rows] == [None, None]
    assert [row["x_meta"]["recovery"] for row in rows] == [None, "shrink_output"]
    bodies = [request.body for request in server.requests if request.body["messages"][0]["content"] != "short"]
    assert [body["max_tokens"] for body in bodies] == [60, 100 - 52 - 1]
    assert counters.num_wasted_attempts == 1


def test_more_output_than_the_model_has_context_is_shrunk_too(serve: Any) -> None:
    """Though the server has not counted the prompt."""
    server = serve(max_model_len=100)
    stage = make_stage(server, generation_config={"max_tokens": 2048}, on_overflow="shrink_output")
    [row], _ = ask(stage, "short")
    assert (row["x_error"], row["x_meta"]["attempts"]) == (None, 3)


def test_a_prompt_that_leaves_no_room_fails_all_the_same(serve: Any) -> None:
    """There is nothing to shrink."""
    stage = make_stage(serve(max_model_len=100), generation_config={"max_tokens": 9}, on_overflow="shrink_output")
    rows, _ = ask(stage, "short", "long " * 100)
    assert [row["x_error"] is None for row in rows] == [True, False]
    assert rows[1]["x_error"].startswith("context_overflow: ")


@pytest.mark.parametrize(
    ("place", "is_kept"),
    [("head", [False, True, True]), ("tail", [True, True, False]), ("middle", [True, False, True])],
)
def test_the_input_can_be_cut_until_it_fits(serve: Any, place: str, is_kept: Sequence[bool]) -> None:
    """Only the longest user text, by as little as it takes."""
    server = serve(max_model_len=350)
    text = "BEGIN" + "x" * 900 + "CENTRE" + "x" * 900 + "END"
    settings = {"generation_config": {"max_tokens": 20}, "system_prompt": "Be brief."}
    [row], _ = ask(make_stage(server, on_overflow=f"truncate_input_{place}", **settings), text)
    assert row["x_error"] is None
    assert row["x_meta"]["recovery"] == f"truncate_input_{place}"
    system, user = server.requests[-1].body["messages"]
    assert system["content"] == "Be brief."
    assert [word in user["content"] for word in ("BEGIN", "CENTRE", "END")] == is_kept
    assert 1_200 < len(user["content"]) < 1_316


def test_a_server_that_stops_counting_is_met_halfway(serve: Any) -> None:
    """As vLLM stops at its limit; a few sends are enough also then."""

    def answer(messages: list[dict[str, Any]]) -> str | Exception:
        from nemo_llm_stage.client.errors.refusal import error_of_refusal

        if len(messages[-1]["content"]) <= 4_000:
            return "fits"
        words = "This model's maximum context length is 1100 tokens. Your prompt contains at least 1101 input tokens."
        return error_of_refusal(400, words.encode())

    client = ScriptedClient(answer)
    settings = {"generation_config": {"max_tokens": 100}, "on_overflow": "truncate_input_tail"}
    [row], _ = ask(make_stage(client, **settings), "word " * 10_000)
    assert row["x"] == "fits"
    assert len(client.attempts) <= 5


def test_a_correction_builds_on_the_prompt_that_fitted(serve: Any) -> None:
    """Both recoveries of one row are told."""
    server = serve(number_when_told, max_model_len=200)
    settings = {"generation_config": {"max_tokens": 20}, **NUMBER}
    [row], _ = ask(make_stage(server, on_overflow="truncate_input_tail", **settings), "x" * 2_000)
    assert (row["x"], row["x_meta"]["recovery"]) == (7, "truncate_input_tail+reask")


def test_reasoning_gets_a_column_of_its_own() -> None:
    """From the server's field or out of the text, which the answer is then without."""
    answers = {
        "field": Completion(("answer",), ("stop",), reasoning=("thought",)),
        "tags": Completion(("<think>thought</think>\n\nanswer",), ("stop",)),
        "none": Completion(("answer",), ("stop",)),
    }
    client = ScriptedClient(lambda messages: answers[messages[-1]["content"]])
    rows, _ = ask(make_stage(client, reasoning_column=True), *answers)
    assert [row["x"] for row in rows] == ["answer"] * 3
    assert [row["x_reasoning"] for row in rows] == ["thought", "thought", None]
    assert list(rows[0]) == ["x", "x_error", "x_skipped", "x_reasoning", "x_meta"]


def test_reasoning_of_several_choices_is_a_list() -> None:
    """Of the declared type also where there is none."""
    client = ScriptedClient([Completion(("<think>a</think>1", "2"), ("stop", "stop"))])
    stage = make_stage(client, reasoning_column=True, generation_config={"n": 2}, has_meta=False)
    out = stage.process(pa.table({"text": ["?"]}))
    assert out.column("x").to_pylist() == [["1", "2"]]
    assert out.column("x_reasoning").to_pylist() == [["a", None]]
    assert out.schema.field("x_reasoning").type == pa.list_(pa.string())


def test_unknown_usage_stays_unknown() -> None:
    """Also over several requests."""
    client = ScriptedClient(["seven", Completion(("7",), usage=Usage(output_tokens=1))])
    [row], _ = ask(make_stage(client, **NUMBER), "?")
    assert (row["x_meta"]["input_tokens"], row["x_meta"]["output_tokens"]) == (None, 1)


def test_what_decides_the_answers_is_part_of_the_fingerprint() -> None:
    """So that a resumed job does not mix."""
    stages = [
        make_stage(ScriptedClient(), **settings)
        for settings in ({}, {"max_reasks": 1}, {"on_truncated": "error"}, {"reasoning_column": True})
    ]
    assert len({stage.fingerprint for stage in stages}) == 4


class Formatter(ConversationFormatter):
    """One that tells what it depends on."""

    def __init__(self, style: str) -> None:
        self.style = style

    def format_conversation(self, conv: list[dict[str, Any]]) -> str:
        return self.style + str(conv[-1]["content"])

    def describe(self) -> str:
        return self.style


def test_a_changed_formatter_is_a_changed_request() -> None:
    """Its answers are not taken from the journal."""
    client, store = ScriptedClient(), Store()
    for style in ("a", "b", "a"):
        ask(make_stage(client, conversation_formatter=Formatter(style)), "?", store=store)
    assert len(client.attempts) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"on_truncated": "retry_longr"}, "did you mean 'retry_longer'"),
        ({"on_overflow": "shrink"}, "on_overflow is 'shrink'"),
        ({"max_reasks": -1}, "max_reasks is -1"),
        ({"max_tokens_cap": 0}, "max_tokens_cap is 0"),
        ({"on_truncated": "continue", "generation_config": {"n": 2}}, "one answer a row"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    """At construction."""
    with pytest.raises(ConfigError, match=words):
        make_stage(ScriptedClient(), **settings)


REFUSAL = "HTTP 400: Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def unguided(messages: list[dict[str, Any]], config: Any) -> str:
    """Answer as a server that takes no response_format."""
    if "response_format" in (config.extra_kwargs or {}):
        raise BadRequestError(REFUSAL)
    return '{"a": 1}'


class UnguidedClient(ScriptedClient):
    """Takes no response_format."""

    async def _query_model_impl(self, **request: Any) -> list[str]:
        config = request["generation_config"]
        self.configs = [*getattr(self, "configs", []), config]
        return [unguided(request["messages"], config)]


def test_what_a_server_does_not_take_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Told once; all rows are answered, and what is not about the answer's form stays."""
    client = UnguidedClient(max_concurrent_requests=1)
    settings = {"parser": SCHEMA, "generation_config": {"extra_kwargs": {"min_p": 0.5}}}
    rows, counters = ask(make_stage(client, **settings), "one", "two", "three")
    assert [row["x"] for row in rows] == [{"a": 1}] * 3
    assert [row["x_meta"]["recovery"] for row in rows] == ["unguided", None, None]
    assert [set(config.extra_kwargs) for config in client.configs] == [{"min_p", "response_format"}] + [{"min_p"}] * 3
    assert counters.num_attempts == 4
    assert [record.message for record in caplog.records if "does not accept response_format" in record.message]


def test_what_the_user_asked_for_is_never_left_out() -> None:
    """The row fails with the server's words."""
    settings = {"parser": SCHEMA, "generation_config": {"extra_kwargs": {"response_format": {"type": "json_object"}}}}
    [row], _ = ask(make_stage(UnguidedClient(), **settings), "one")
    assert row["x_error"] == f"bad_request: {REFUSAL}"
