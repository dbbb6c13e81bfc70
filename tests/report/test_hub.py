"""The dataset card, and a finished output on a hub."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from nemo_llm_stage import LLMStage, run_job
from nemo_llm_stage.cli import main
from nemo_llm_stage.errors import RowError
from nemo_llm_stage.job.state import read_state
from nemo_llm_stage.report.card import card
from nemo_llm_stage.testing import ScriptedClient

PROMPT = "Describe ```{{ text }}``` in one word"


def answer(messages: list[dict[str, Any]]) -> str:
    if "row 7`" in messages[-1]["content"]:
        raise RowError("refused")
    return "word"


def run(folder: Path, name: str = "out", **settings: Any) -> str:
    rows = [{"id": i, "text": f"row {i}", "tags": ["a"], "size": {"x": 1.5}} for i in range(40)]
    if not (folder / "in.parquet").exists():
        pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
    stage = LLMStage(client=ScriptedClient(answer), model="my-model", prompt=PROMPT, output_column="x")
    options: dict[str, Any] = {"engine": "local", "progress": False, "rows_per_partition": 10} | settings
    run_job(stage=stage, input=folder / "in.parquet", output=folder / name, **options)
    return str(folder / name)


def front_matter(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_the_card_is_one_that_the_hub_understands(tmp_path: Path) -> None:
    """Its features are those that `datasets` finds in the files, and prompts cannot leave their block."""
    out = run(tmp_path)
    result = CliRunner().invoke(main, ["report", "--card", out, "--license", "cc-by-4.0"])
    assert result.exit_code == 0, result.output
    text = Path(result.stdout.strip()).read_text()
    meta = front_matter(text)
    assert (meta["license"], meta["size_categories"]) == ("cc-by-4.0", ["n<1K"])
    assert meta["dataset_info"]["splits"] == [{"name": "train", "num_examples": 40}]
    schema = pq.read_schema(f"{out}/part-00000000.parquet")
    features = datasets.Features._from_yaml_list(meta["dataset_info"]["features"])  # noqa: SLF001 - theirs, no other
    assert features.arrow_schema.remove_metadata().equals(
        datasets.Features.from_arrow_schema(schema).arrow_schema.remove_metadata()
    )
    assert meta["configs"][0]["data_files"] == [{"split": "train", "path": "data/part-*.parquet"}]
    assert f"````text\n{PROMPT}\n````" in text
    for words in ("`my-model`", "answered | 39 (97.50 %)", "failed with `row_error`", "`in.parquet`", "`x_error`"):
        assert words in text
    assert str(tmp_path) not in text
    assert pq.read_table(out).num_rows == 40  # it does not lie among the data


TYPES = [
    *(pa.list_(pa.list_(pa.int64())), pa.list_(pa.list_(pa.struct([("a", pa.int64())]))), pa.large_list(pa.int8())),
    *(pa.list_(pa.float32(), 3), pa.struct([("a", pa.list_(pa.list_(pa.string())))]), pa.list_(pa.list_(pa.int8(), 2))),
    *(pa.binary(4), pa.float16(), pa.decimal128(5, 2), pa.timestamp("us", "UTC"), pa.string_view(), pa.null()),
]


def test_the_card_tells_types_as_the_hub_does(tmp_path: Path) -> None:
    """One that it cannot read would make the whole data set unreadable."""
    columns = {f"c{number}": pa.nulls(1, kind) for number, kind in enumerate(TYPES)}
    pq.write_table(pa.table({"text": ["a"], "no": ["a word"], "x_pos": [1], **columns}), tmp_path / "in.parquet")
    text = card(run(tmp_path, rows_per_partition=None), "unknown")
    told = datasets.Features._from_yaml_list(front_matter(text)["dataset_info"]["features"])  # noqa: SLF001 - theirs
    schema = pq.read_schema(tmp_path / "out" / "part-00000000.parquet")
    assert dict(told) == dict(datasets.Features.from_arrow_schema(schema))
    assert "`x_error`" in text
    assert "`x_pos`" not in text  # a column of the input


def test_a_summary_for_programs(tmp_path: Path) -> None:
    """It counts the whole job, and stays when there is nothing to do."""
    out = run(tmp_path, price_input=1.0, price_output=1.0)
    path = tmp_path / ".out.nemo_llm_stage" / "summary.json"
    first = json.loads(path.read_text())
    assert first["rows"] == {
        "total": 40,
        "answered": 39,
        "failed": 1,
        "skipped": 0,
        "dropped": 0,
        "cut_off": 0,
        "left_out": 0,
    }
    assert first["version"] == 1
    assert (first["columns"], first["models"], first["num_files"]) == (["x"], ["my-model"], 4)
    assert first["failures"] == {"row_error": 1}
    assert first["this_run"]["rows"] == 40
    assert read_state(out).state == "finished"
    run(tmp_path, price_input=1.0, price_output=1.0)
    assert json.loads(path.read_text()) == first


class Hub:
    """A hub that keeps what is committed."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.repos: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hub.tokens.add(self.headers.get("Authorization", ""))
                self.answer(hub.take(self.path, body))

            def do_GET(self) -> None:
                self.answer({"sha": "0" * 40, "id": "me/words"})

            def answer(self, values: dict[str, Any]) -> None:
                data = json.dumps(values).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *words: Any) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def take(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/repos/create":
            self.repos.append(json.loads(body))
            return {"url": f"{self.url}/datasets/me/words", "name": "me/words"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        if "/commit/" not in path:  # e.g. whether the card's metadata are valid
            return {}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.url}/datasets/me/words/commit/1"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def push(hub: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "nemo_llm_stage", "push", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_an_output_is_pushed_with_its_card(tmp_path: Path, hub: Hub) -> None:
    """Every data file, byte for byte, into a private data set."""
    out = run(tmp_path)
    result = push(hub, out, "hf://datasets/me/words", "--license", "mit")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("datasets/me/words")
    names = [f"part-0000000{i}.parquet" for i in range(4)]
    assert sorted(hub.files) == ["README.md", *(f"data/{name}" for name in names)]
    assert all(hub.files[f"data/{name}"] == Path(out, name).read_bytes() for name in names)
    assert front_matter(hub.files["README.md"].decode())["license"] == "mit"
    assert hub.repos[0]["type"] == "dataset"
    assert hub.repos[0].get("visibility") == "private" or hub.repos[0]["private"]
    assert hub.tokens == {"Bearer hf_test"}


def test_what_would_be_pushed_is_listed(tmp_path: Path) -> None:
    """And nothing is sent."""
    out = run(tmp_path)
    result = CliRunner().invoke(main, ["push", out, "hf://datasets/me/words", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "data/part-00000000.parquet" in result.stdout
    assert "5 files would go to the data set me/words; nothing was sent." in result.stdout


@pytest.mark.parametrize(
    ("target", "words"), [("s3://bucket/x", "is no data set of the hub"), ("hf://datasets/me/words", "is not pushed")]
)
def test_what_cannot_be_pushed_is_told(tmp_path: Path, target: str, words: str) -> None:
    """An address of something else, and a job that is not finished."""
    out = run(tmp_path)
    (Path(out) / "part-00000002.parquet").unlink()
    result = CliRunner().invoke(main, ["push", out, target])
    assert result.exit_code == 2
    assert words in result.stderr
