from __future__ import annotations

import json
import threading

import openai
import pytest

from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer

MESSAGES = [{"role": "user", "content": "Say something about row 17."}]


@pytest.fixture
def sdk():
    """Return a function from a server to an SDK client that is closed after the test."""
    clients: list[openai.OpenAI] = []

    def connect(server: SimulatedServer, api_key: str = "none") -> openai.OpenAI:
        clients.append(openai.OpenAI(base_url=server.base_url, api_key=api_key, max_retries=0))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def test_openai_sdk_chat(sdk):
    """The SDK reads a chat answer: the text that belongs to these messages, and its usage."""
    with SimulatedServer() as server:
        completion = sdk(server).chat.completions.create(model="sim", messages=MESSAGES, n=2)
    texts = [choice.message.content for choice in completion.choices]
    assert [expected_answer(MESSAGES), expected_answer(MESSAGES, choice=1)] == texts
    assert [choice.finish_reason for choice in completion.choices] == ["stop", "stop"]
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert completion.usage.prompt_tokens_details.cached_tokens == 0


def test_openai_sdk_stream(sdk):
    """The SDK reads a stream: the same text in pieces, the reason, the usage."""
    with SimulatedServer() as server:
        chunks = list(
            sdk(server).chat.completions.create(
                model="sim", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
        )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert expected_answer(MESSAGES) == text
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens > 0


def test_openai_sdk_completions(sdk):
    """The SDK reads /v1/completions: one choice for each of several prompts."""
    with SimulatedServer() as server:
        completion = sdk(server).completions.create(model="sim", prompt=["one", "two"], max_tokens=50)
        chunks = list(sdk(server).completions.create(model="sim", prompt="one", stream=True, max_tokens=50))
    assert [expected_answer("one"), expected_answer("two")] == [choice.text for choice in completion.choices]
    assert expected_answer("one") == "".join(chunk.choices[0].text for chunk in chunks)


def test_openai_sdk_models(sdk):
    """The SDK lists the models."""
    with SimulatedServer(model=("small", "large")) as server:
        assert [model.id for model in sdk(server).models.list()] == ["small", "large"]


def test_the_key_is_asked_for(sdk):
    """With an api_key, requests without it get 401 in OpenAI's shape; /health stays open."""
    with SimulatedServer(api_key="secret") as server:
        with pytest.raises(openai.AuthenticationError) as error:
            sdk(server, "wrong").chat.completions.create(model="sim", messages=MESSAGES)
        sdk(server, "secret").chat.completions.create(model="sim", messages=MESSAGES)
        assert server.stats.by_status == {401: 1, 200: 1}
    assert error.value.code == "invalid_api_key"
    assert "secret" not in repr(server.config)


def test_errors_have_the_shape_of_vllm(http_to):
    """Unknown model, bad temperature, too many tokens: bodies as captured from vLLM 0.32."""
    with SimulatedServer(max_model_len=2048) as server:
        http_connection = http_to(server)
        wrong_model = http_connection.chat(model="nope")
        assert (wrong_model.status, wrong_model.json) == (404, {"error": {
            "message": "The model `nope` does not exist. Valid aliases: sim.",
            "type": "NotFoundError", "param": "model", "code": 404,
        }})  # fmt: skip
        assert http_connection.chat(temperature=-1.0).json == {"error": {
            "message": "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)",
            "type": "BadRequestError", "param": "temperature", "code": 400,
        }}  # fmt: skip
        assert http_connection.chat(max_tokens=5000).json == {"error": {
            "message": "max_tokens=5000 cannot be greater than max_model_len=2048. Please request fewer output tokens. "
            "(parameter=max_tokens, value=5000)",
            "type": "BadRequestError", "param": "max_tokens", "code": 400,
        }}  # fmt: skip


def test_a_prompt_longer_than_the_model_takes_gets_400(http_to):
    """The message says what vLLM says, and names the parameter."""
    with SimulatedServer(max_model_len=100) as server:
        reply = http_to(server).chat("x" * 500)
    assert reply.status == 400
    assert "maximum context length is 100 tokens" in reply.json["error"]["message"]
    assert reply.json["error"]["param"] == "input_tokens"


@pytest.mark.parametrize("body", [b"{", b"[]", {"model": "sim"}, {"model": "sim", "messages": []}])
def test_a_body_that_is_no_request_gets_400(body, http_to):
    """Broken JSON, no object, no messages."""
    with SimulatedServer() as server:
        assert http_to(server).ask("POST", "/v1/chat/completions", body).status == 400


def test_unknown_routes_and_methods(http_to):
    """404 and 405, as JSON."""
    with SimulatedServer() as server:
        http_connection = http_to(server)
        assert http_connection.ask("GET", "/v2/nothing").json["error"]["code"] == 404
        assert http_connection.ask("GET", "/v1/chat/completions").json["error"]["code"] == 405


def test_accept_any_model(http_to):
    """The answer carries the name that was asked for."""
    with SimulatedServer(accept_any_model=True) as server:
        assert http_to(server).chat(model="whatever").json["model"] == "whatever"


def test_answers_are_cut_at_max_tokens_and_stop(http_to):
    """finish_reason tells which it was."""
    with SimulatedServer(answer=lambda body: "one two three") as server:
        http_connection = http_to(server)
        cut = http_connection.chat(max_tokens=2).json
        assert (
            cut["choices"][0]["message"]["content"],
            cut["choices"][0]["finish_reason"],
            cut["usage"]["completion_tokens"],
        ) == ("one two ", "length", 2)
        stopped = http_connection.chat(stop=[" three", " two"]).json["choices"][0]
        assert (stopped["message"]["content"], stopped["finish_reason"]) == ("one", "stop")


def test_answer_tokens_fill_the_answer_up(http_to):
    """The usual answer, then filler; the same each time."""
    with SimulatedServer(answer_tokens=100, answer_tokens_sigma=0.5) as server:
        first, again = http_to(server).chat(), http_to(server).chat()
    assert first.text.startswith(expected_answer([{"role": "user", "content": "hello"}]))
    assert first.text == again.text
    assert 30 < first.json["usage"]["completion_tokens"] < 300


def test_guided_choice_and_schema(http_to):
    """Constrained answers follow their constraint."""
    schema = {"type": "object", "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}}}
    with SimulatedServer() as server:
        http_connection = http_to(server)
        assert http_connection.chat(structured_outputs={"choice": ["good", "bad"]}).text in ("good", "bad")
        assert http_connection.chat(guided_choice=["yes", "no"]).text in ("yes", "no")
        response_format = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema}}
        assert 1 <= json.loads(http_connection.chat(response_format=response_format).text)["score"] <= 5
        response_format["json_schema"]["schema"] = {"type": "objekt"}
        bad = http_connection.chat(response_format=response_format)
        assert (bad.status, bad.json["error"]["message"]) == (400, "Grammar error: Invalid type: objekt")


def test_reasoning_and_logprobs(http_to):
    """Both come when asked for, in the shapes of the protocol."""
    with SimulatedServer(reasoning_field="reasoning_content", answer=lambda body: "yes, it is") as server:
        choice = http_to(server).chat(logprobs=True, top_logprobs=2).json["choices"][0]
        text_choice = http_to(server).ask("POST", "/v1/completions", {"prompt": "x", "logprobs": 1}).json["choices"][0]
    assert choice["message"]["reasoning_content"].startswith("Thinking")
    assert [token["token"] for token in choice["logprobs"]["content"]] == ["yes,", " it ", "is"]
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert text_choice["logprobs"]["text_offset"] == [0, 4, 8]


def test_startup_delay_answers_503_until_ready(http_to):
    """/health tells when the server is up."""
    with SimulatedServer(startup_delay_s=0.3) as server:
        http_connection = http_to(server)
        assert http_connection.chat().status == 503
        while http_connection.ask("GET", "/health").status == 503:
            pass
        assert http_connection.chat().status == 200


def test_metrics_have_the_names_of_vllm(http_to):
    """Gauges and counters in Prometheus text format, with vLLM's labels."""
    with SimulatedServer() as server:
        http_to(server).chat()
        lines = http_to(server).ask("GET", "/metrics").raw.decode().splitlines()
    values = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    assert 0 == values["vllm:num_requests_running"] == values["vllm:num_requests_waiting"]
    assert values["vllm:prompt_tokens_total"] > 0
    assert values["vllm:generation_tokens_total"] > 0
    assert {"vllm:kv_cache_usage_perc", "vllm:num_preemptions_total"} < values.keys()
    assert 'vllm:prefix_cache_hits_total{engine="0",model_name="sim"} 0.0' in lines


def test_what_the_server_saw(http_to):
    """Requests are recorded with headers, body and times; the same body again is a duplicate, paid for twice."""
    with SimulatedServer() as server:
        http_connection = http_to(server)
        http_connection.chat("a")
        http_connection.chat("b")
        http_connection.chat("a")
        first, _, again = server.requests
        stats = server.stats
    assert first.body["messages"][0]["content"] == "a"
    assert first.headers["host"].startswith("127.0.0.1")
    assert first.arrived_monotonic_s <= first.started_monotonic_s <= first.ended_monotonic_s
    assert (first.attempt, again.attempt, again.status) == (1, 2, 200)
    assert (stats.num_requests, stats.num_duplicates, stats.num_repaid) == (3, 1, 1)


def test_reset_forgets(http_to):
    """After a reset the counts start anew, by method and by HTTP."""
    with SimulatedServer() as server:
        http_connection = http_to(server)
        http_connection.chat()
        server.reset()
        assert (server.stats.num_requests, server.requests) == (0, [])
        http_connection.chat()
        assert http_connection.ask("POST", "/reset").status == 200
        assert http_connection.ask("GET", "/stats").json["num_requests"] == 0


def test_recording_is_bounded(http_to):
    """Only the latest requests are kept."""
    with SimulatedServer(max_recorded=2) as server:
        for content in "abc":
            http_to(server).chat(content)
        assert [request.body["messages"][0]["content"] for request in server.requests] == ["b", "c"]


def test_an_outage_refuses_connections_and_ends(http_to):
    """The server is gone within the block and back on the same port after it."""
    with SimulatedServer() as server:
        http_connection = http_to(server)
        http_connection.chat()
        with server.outage():
            with pytest.raises(ConnectionError):
                http_connection.chat()
            with pytest.raises(ConnectionRefusedError):
                http_to(server).chat()
        assert http_to(server).chat().status == 200


def test_exit_fault_comes_back_by_itself(http_to):
    """In a thread, a server that dies of a prompt refuses connections for `seconds`."""
    with SimulatedServer(faults=[Fault("exit", contains="poison", seconds=0.3)]) as server:
        with pytest.raises(ConnectionError):
            http_to(server).chat("poison")
        with pytest.raises(ConnectionRefusedError):
            http_to(server).chat()
        while True:
            try:
                assert http_to(server).chat().status == 200
                break
            except ConnectionRefusedError:
                continue


def test_servers_can_run_side_by_side(http_to):
    """Each has its own thread, port and counts, and all threads end."""
    with SimulatedServer() as one, SimulatedServer() as two:
        http_to(one).chat()
        assert (one.stats.num_requests, two.stats.num_requests) == (1, 0)
    assert "simulated-server" not in [thread.name for thread in threading.enumerate()]


def test_an_answer_function_that_raises_gives_500(http_to):
    """The client is told what went wrong, and the server goes on."""
    with SimulatedServer(answer=lambda body: {}["missing"]) as server:
        reply = http_to(server).chat()
        assert (reply.status, reply.json["error"]["message"]) == (500, "KeyError: 'missing'")
        assert http_to(server).ask("GET", "/health").status == 200
        assert server.stats.in_flight == 0


def test_a_taken_port_is_an_error_and_leaves_nothing_behind():
    """The start fails at once, and its thread has ended."""
    with SimulatedServer() as taken, pytest.raises(OSError, match="in use"), SimulatedServer(port=taken.port):
        pass
    assert "simulated-server" not in [thread.name for thread in threading.enumerate()]
