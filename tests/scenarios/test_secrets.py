"""A key that is used in a whole run is found nowhere afterwards; a row's text and an input's types run no code."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from canary import CANARY, assert_clean, files_with_the_key, needles
from click.testing import CliRunner
from ray import cloudpickle
from ray_cluster import BIN, RayCluster

from nemo_llm_stage import AsyncHTTPClient, AsyncOpenAIClient, LLMStage, run_job
from nemo_llm_stage.cli import main
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.testing import Fault, SimulatedServer, expected_answer

STATE = ("actors", "tasks", "objects", "workers", "jobs", "nodes", "runtime_envs", "placement_groups")
"""What Ray's state listing knows, by the dashboard's names."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(120)]}), tmp_path / "in.parquet")
    return tmp_path


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    faults = [Fault(400, contains="row 7"), Fault(500, attempts=1, contains="row 8"), Fault("html", rate=0.1)]
    with SimulatedServer(api_key=CANARY, service_time_s=0.005, faults=faults) as server:
        yield server


def job(server: SimulatedServer, folder: Path, *more: str) -> list[str]:
    words = ["run", "--input", str(folder / "in.parquet"), "--output", str(folder / "out"), "--model", "sim"]
    words += ["--base-url", server.base_url, "--prompt", "Say {{ text }}", "--output-column", "x", "--keep-raw"]
    words += ["--rows-per-partition", "10", "--base-delay", "0.01", "--max-failed-rows", "50"]
    return [sys.executable, "-m", "nemo_llm_stage", *words, *more]


def run(command: list[str], env: dict[str, str]) -> tuple[int, str]:
    result = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("client", ["http", "openai"])
def test_the_key_is_nowhere_after_a_run_that_was_killed_and_went_on(
    server: SimulatedServer, folder: Path, client: str
) -> None:
    """In no output, journal, raw answer, record, message or summary; with failed rows, retries and another try."""
    words = job(server, folder, "--engine", "local", "--client", client, "--api-key-env", "CANARY_KEY")
    env = {"CANARY_KEY": CANARY}
    code, said = run(words, {**env, failpoints.VARIABLE: "commit.before_publish"})
    assert code == -9, said
    assert list(folder.glob(".out.nemo_llm_stage/journal/*/*"))
    assert files_with_the_key(folder) == []
    output = str(folder / "out")
    more = [
        CliRunner().invoke(main, arguments, env=env)
        for arguments in (words[3:], ["verify", output], ["retry-failed", output])
    ]
    assert [result.exit_code for result in more] == [0, 0, 0], more
    assert_clean("what was printed", said + "".join(result.output for result in more))
    assert files_with_the_key(folder) == []


@pytest.mark.parametrize("client", ["http", "openai"])
def test_a_wrong_key_is_not_repeated(folder: Path, client: str) -> None:
    """Not in the message either."""
    with SimulatedServer(api_key="another-key") as server:
        words = job(server, folder, "--engine", "local", "--client", client, "--api-key-env", "CANARY_KEY")
        result = CliRunner().invoke(main, words[3:], env={"CANARY_KEY": CANARY})
    assert (result.exit_code, "401" in result.output) == (1, True)
    assert_clean("the message", result.output)


@contextmanager
def indiscreet_server() -> Iterator[str]:
    """Refuses every other row, and tells the request's own headers in doing so; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"data": [{"id": "sim"}]})

        def do_POST(self) -> None:
            text = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][-1]["content"]
            if int(text.split()[-1]) % 2:
                self._answer(400, {"error": {"message": f"not with these headers: {dict(self.headers)}"}})
                return
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            self._answer(200, {"choices": [choice]})

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("make", [AsyncHTTPClient, AsyncOpenAIClient])
def test_a_server_that_repeats_the_key_does_not_get_it_into_the_output(folder: Path, make: Any) -> None:
    """Its words are in the error column, the key is not."""
    with indiscreet_server() as base_url:
        client = make(base_url=base_url, api_key=CANARY)
        stage = LLMStage(client=client, model="sim", prompt="Say {{ text }}", output_column="x")
        options: dict[str, Any] = {"input": folder / "in.parquet", "output": folder / "out", "engine": "local"}
        run_job(stage=stage, **options, max_failed_rows=None, keep_raw=True, progress=False)
    errors = pq.read_table(folder / "out").column("x_error").drop_null().to_pylist()
    assert len(errors) == 60
    assert all("not with these headers" in error for error in errors)
    assert files_with_the_key(folder) == []


TEAM, QUERY = "team-canary-0d9e8f7a6b5c4d3e", "query/canary+1a2b3c4d5e6f7081"


def spellings(secret: str) -> list[str]:
    """A secret as servers write it into texts of several kinds."""
    packed = [base64.b64encode(f"{before}{secret}".encode()).decode() for before in ("", "user:")]
    escaped = "".join(f"\\u{ord(char):04x}" for char in secret)
    return [
        secret,
        f"Bearer {secret}",
        quote(secret, safe=""),
        quote_plus(secret),
        secret.replace("/", "\\/"),
        escaped,
        *packed,
    ]


def answers_with(text: str, number: int) -> list[tuple[int, str, bytes]]:
    """Status, content type and body of answers that hold `text` in each field they have."""

    def whole(**more: Any) -> bytes:
        message = {"role": "assistant", "content": f"answer {number}", **more.pop("message", {})}
        choice = {"index": 0, "message": message, "finish_reason": "stop", **more.pop("choice", {})}
        return json.dumps({"id": f"{number}", "choices": [choice], **more}).encode()

    def stream(*events: Any) -> bytes:
        return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)

    error = {"message": text, "type": text, "code": text, "param": text}
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    token = {"token": text, "logprob": -1.0, "bytes": None, "top_logprobs": [{"token": text, "logprob": -1.0}]}
    html = f"<html><title>{text}</title><body>{text}</body></html>".encode()
    as_json, as_events = "application/json", "text/event-stream"
    return [
        (200, as_json, whole()),
        *((status, as_json, json.dumps({"error": error}).encode()) for status in (400, 404, 422, 429, 500, 503)),
        *((status, as_json, json.dumps({"detail": [{"loc": [text], "msg": text}]}).encode()) for status in (400, 422)),
        *((status, "text/html", html) for status in (200, 400, 502)),
        *((status, "text/plain", text.encode()) for status in (200, 400, 500)),
        (200, as_json, json.dumps({"error": error}).encode()),
        (200, as_json, json.dumps({"error": {**error, "code": 400}}).encode()),
        (200, as_json, json.dumps({"object": "error", "message": text}).encode()),
        (200, as_json, json.dumps({"id": text, "choices": []}).encode()),
        (200, as_json, json.dumps({"choices": [text]}).encode()),
        (200, as_json, whole(message={"content": None, "refusal": text})),
        (200, as_json, whole(choice={"finish_reason": text})),
        (200, as_json, whole(choice={"finish_reason": "error", "error": error})),
        (200, as_json, whole(model=text, system_fingerprint=text)),
        (200, as_json, whole(message={"content": text})),
        (200, as_json, whole(message={"content": [{"type": "text", "text": text}]})),
        (200, as_json, whole(message={"reasoning_content": text})),
        (200, as_json, whole(choice={"logprobs": {"content": [token]}})),
        (
            200,
            as_events,
            stream({"choices": [delta]}, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        ),
        (200, as_events, stream({"choices": [delta]}, {"error": error})),
        (200, as_events, b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n"),
        (302, as_json, b""),
    ]


NUM_ANSWERS = len(answers_with("", 0))


@contextmanager
def echoing_server() -> Iterator[str]:
    """Answers row n in way n of `answers_with`, with all that the request came with in every field; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            number = int(body["messages"][-1]["content"].split()[-1])
            echo = f"row {number} {dict(self.headers)} {self.path} " + " ".join(
                text for secret in (CANARY, TEAM, QUERY) for text in spellings(secret)
            )
            status, kind, data = answers_with(echo, number)[number % NUM_ANSWERS]
            self.send_response(status, f"No {CANARY}"[:40])
            for name, value in (("content-type", kind), ("content-length", str(len(data))), ("x-echo", echo)):
                self.send_header(name, value)
            self.send_header("location", f"http://elsewhere.invalid/{CANARY}/{quote(QUERY, safe='')}?key={TEAM}")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("client", ["http", "openai"])
def test_a_server_that_repeats_everything_in_every_field_gets_no_secret_out(
    tmp_path: Path, client: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Key, header and query parameter, in whichever notation: not in columns, files, logs and on no screen."""
    caplog.set_level("INFO")
    caplog.set_level("DEBUG", "nemo_llm_stage")
    for name, value in (("CANARY_KEY", CANARY), ("CANARY_TEAM", TEAM), ("CANARY_QUERY", QUERY)):
        monkeypatch.setenv(name, value)
    texts = [f"row {number}" for number in range(NUM_ANSWERS)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    settings = {
        "input": str(tmp_path / "in.parquet"),
        "output": str(tmp_path / "out"),
        "model": "sim",
        "prompt": "Say {{ text }}",
        "output_column": "x",
        "reasoning_column": True,
        "engine": "local",
        "keep_raw": True,
        "max_failed_rows": None,
        "give_up_after": 0,
        "generation_config": {"extra_kwargs": {"extra_headers": {"X-Title": "my job"}}},
    }
    with echoing_server() as base_url:
        settings["client"] = {
            "type": client,
            "base_url": base_url,
            "api_key_env": "CANARY_KEY",
            "headers": {"X-Team": {"env": "CANARY_TEAM"}},
            "query": {"key": {"env": "CANARY_QUERY"}},
            "max_retries": 0,
            "max_concurrent_requests": 1,
            "check_server": False,
        }
        (tmp_path / "job.yaml").write_text(json.dumps(settings))
        result = CliRunner().invoke(main, ["run", str(tmp_path / "job.yaml"), "--show-rows", str(NUM_ANSWERS)])
    assert result.exit_code in {0, 3}, result.output
    table = pq.read_table(tmp_path / "out").to_pylist()
    assert len(table) == NUM_ANSWERS
    assert sum(row["x"] is not None for row in table) > 5
    places = {
        "columns": json.dumps(table, default=str),
        "the screen": result.output,
        "the log": caplog.text,
        **{str(path): path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()},
    }
    for place, text in places.items():
        for secret in (CANARY, TEAM, QUERY):
            for written in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1].replace("/", "\\/")):
                assert written not in text, f"{written} is in {place}"
            for shift in range(3):
                assert base64.b64encode(b"x" * shift + secret.encode()).decode()[8:-8] not in text, place


def test_what_a_request_itself_brings_is_not_written_down(tmp_path: Path) -> None:
    """Headers and query parameters given in Python: a change of their values is no other job."""
    pq.write_table(pa.table({"text": ["row 1"]}), tmp_path / "in.parquet")
    with SimulatedServer() as server:
        for secret in (CANARY, TEAM):
            extra = {"extra_headers": {"X-Key": secret, "X-Title": "my job"}, "extra_query": {"key": secret}}
            stage = LLMStage(
                client=AsyncHTTPClient(server.base_url),
                model="sim",
                prompt="{{ text }}",
                output_column="x",
                generation_config={"extra_kwargs": extra},
            )
            options: dict[str, Any] = {"input": tmp_path / "in.parquet", "output": tmp_path / "out", "engine": "local"}
            run_job(stage=stage, **options, progress=False)
            record = (tmp_path / ".out.nemo_llm_stage" / "job.json").read_text()
            assert secret not in record
            assert "my job" in record


@pytest.mark.parametrize("make", [AsyncHTTPClient, AsyncOpenAIClient])
def test_a_stage_that_was_used_takes_no_key_along(
    server: SimulatedServer, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pickle holds the variable's name; its repr not even that of a key given in words."""
    monkeypatch.setenv("CANARY_KEY", CANARY)
    stages = [
        LLMStage(client=make(base_url=server.base_url, **key), model="sim", prompt="{{ text }}", output_column="x")
        for key in ({"api_key_env": "CANARY_KEY"}, {"api_key": CANARY})
    ]
    for stage in stages:
        stage.process(pa.table({"text": ["a"]}))
        assert_clean("a repr", f"{stage!r} {stage.client!r} {stage.describe()} {vars(stage)}")
    assert_clean("the pickle", pickle.dumps(stages[0]) + cloudpickle.dumps(stages[0]))


SCRIPT = """
import os, sys
from nemo_llm_stage import AsyncHTTPClient, LLMStage, run_job
base_url, folder = sys.argv[1:]
client = AsyncHTTPClient(base_url, api_key=os.environ["CANARY_KEY"], base_delay=0.01)
stage = LLMStage(client=client, model="sim", prompt="Say {{ text }}", output_column="x")
run_job(stage=stage, input=f"{folder}/in.parquet", output=f"{folder}/out", rows_per_partition=10, max_failed_rows=50)
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("way", ["env", "file", "literal"])
def test_the_key_is_nowhere_in_ray(folder: Path, shared_cluster: RayCluster, way: str) -> None:
    """In none of its logs, state listings, job infos and messages, while a submitted job runs and afterwards."""
    key_file = folder.parent / f"key-{way}"
    key_file.write_text(CANARY)
    (folder / "job.py").write_text(SCRIPT)
    cluster = shared_cluster
    found: list[str] = []
    listed: list[bytes] = []
    has_looked = threading.Event()

    def look() -> None:
        has_looked.set()
        listings = [f"/api/v0/{name}?detail=1&limit=10000" for name in STATE]
        for path in (*listings, "/api/jobs/", "/logical/actors", "/nodes?view=summary"):
            listed.append(cluster.ask(path))
            if any(needle in listed[-1] for needle in needles()):
                found.append(path)

    def answer(body: dict[str, Any]) -> str:
        if not has_looked.is_set():
            look()
        return expected_answer(body["messages"])

    with SimulatedServer(api_key=CANARY, answer=answer, faults=[Fault(400, contains="row 7")]) as server:
        if way == "literal":
            words = [sys.executable, str(folder / "job.py"), server.base_url, str(folder)]
        else:
            key = {"env": ["--api-key-env", "CANARY_KEY"], "file": ["--api-key-file", str(key_file)]}[way]
            words = job(server, folder, *key)
        submit = [str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--", *words]
        code, said = run(submit, cluster.env)
    assert code == 0, said
    look()
    assert len(listed) == 2 * (len(STATE) + 3)
    assert b"PartitionActor" in listed[0]
    assert found == []
    assert_clean("what was printed", said)
    assert pq.read_table(folder / "out").column("x").null_count == 11
    assert len(list(cluster.folder.rglob("*.log"))) > 5
    assert files_with_the_key(cluster.folder) + files_with_the_key(folder) == []


ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{{ cycler.__init__.__globals__.os.system('touch OWNED') }}",
    "{{ row.update({'text': 1}) }}",
    "{text.__class__} %(text)s ${text} #{7*7} {{ 7 * 7 }}",
    "__import__('os').system('touch OWNED')",
    "!!python/object/apply:os.system ['touch OWNED']",
]


def test_a_rows_text_runs_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to the server, and out again, letter for letter."""
    monkeypatch.chdir(folder)
    pq.write_table(pa.table({"text": ATTACKS}), folder / "in.parquet")
    with SimulatedServer(answer=lambda body: body["messages"][-1]["content"]) as server:
        stage = LLMStage(
            client=AsyncHTTPClient(server.base_url),
            model="sim",
            prompt="{{ text }}|{{ row['text'] }}",
            system_prompt="{{ text | upper }}",
            output_column="x",
        )
        run_job(stage=stage, input=folder / "in.parquet", output=folder / "out", engine="local", progress=False)
    assert pq.read_table(folder / "out").column("x").to_pylist() == [f"{text}|{text}" for text in ATTACKS]
    assert not (folder / "OWNED").exists()


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["arrow.py_extension_type", "ray.data.arrow_pickled_object"])
def test_an_inputs_extension_types_run_nothing(folder: Path, name: str) -> None:
    """A type that is made by unpickling is carried as bytes, and is what the input's reader would make of it."""
    import ray.data  # noqa: F401 - registers its types

    pickled = pickle.dumps(Bomb(str(folder / "OWNED")))
    metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": pickled}
    storage = {"ray.data.arrow_pickled_object": pa.large_binary()}.get(name, pa.binary())
    schema = pa.schema([pa.field("text", pa.string()), pa.field("evil", storage, metadata=metadata)])
    pq.write_table(pa.table([["row 1"], [pickled]], schema=schema), folder / "in.parquet")
    with SimulatedServer() as server:
        stage = LLMStage(client=AsyncHTTPClient(server.base_url), model="sim", prompt="{{ text }}", output_column="x")
        run_job(stage=stage, input=folder / "in.parquet", output=folder / "out", engine="local", progress=False)
    before, after = (pq.read_schema(path).field("evil") for path in (folder / "in.parquet", output_of(folder)))
    assert (after.type, after.metadata) == (before.type, before.metadata)
    assert not (folder / "OWNED").exists()


@pytest.mark.parametrize(
    "kind",
    [
        pa.uuid(),
        pa.list_(pa.uuid()),
        pa.large_list(pa.uuid()),
        pa.list_(pa.uuid(), 1),
        pa.struct([("id", pa.list_(pa.uuid()))]),
        pa.map_(pa.string(), pa.uuid()),
    ],
    ids=str,
)
def test_extension_types_inside_others_are_carried_too(folder: Path, kind: pa.DataType) -> None:
    """A column of lists or structs of them."""
    column = pa.nulls(1, type=kind)
    if pa.types.is_fixed_size_list(kind):  # Arrow writes a null one that it cannot read
        column = pa.FixedSizeListArray.from_arrays(pa.nulls(1, type=kind.value_type), 1)
    pq.write_table(pa.table({"text": ["row 1"], "id": column}), folder / "in.parquet")
    with SimulatedServer() as server:
        stage = LLMStage(client=AsyncHTTPClient(server.base_url), model="sim", prompt="{{ text }}", output_column="x")
        run_job(stage=stage, input=folder / "in.parquet", output=folder / "out", engine="local", progress=False)
    before, after = (pq.read_schema(path).field("id") for path in (folder / "in.parquet", output_of(folder)))
    assert after.equals(before, check_metadata=True)


def output_of(folder: Path) -> Path:
    return next((folder / "out").glob("part-*.parquet"))
