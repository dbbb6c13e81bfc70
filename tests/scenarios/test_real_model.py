"""Everyday jobs on a real model: typed answers hold what they declare, whatever a small model makes of the question."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import (
    AsyncHTTPClient,
    ChoiceOutput,
    HFChatTemplateFormatter,
    LLMStage,
    MultiColumnStage,
    run_job,
)
from nemo_llm_stage.config.load import make_config
from nemo_llm_stage.embedded.corpus import write_python_docs
from nemo_llm_stage.embedded.local_server import LocalServer
from nemo_llm_stage.job.preview import preview_job
from nemo_llm_stage.run import verify_output

pytestmark = pytest.mark.local_model

CHAT_ML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Of SmolLM2-135M-Instruct. Source: its tokenizer_config.json."""

FACT = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["function", "class", "module"]},
        "about": {
            "type": "object",
            "properties": {"size": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["size"],
            "additionalProperties": False,
        },
    },
    "required": ["kind", "about"],
    "additionalProperties": False,
}
NUM_DOCS, NUM_STRUCTS = 6, 60
FACT_TYPE = pa.struct([("kind", pa.string()), ("about", pa.struct([("size", pa.int64())]))])


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


@pytest.fixture
def column(server: LocalServer) -> Any:
    """Make stages that ask the model."""
    client = AsyncHTTPClient(server.base_url, max_concurrent_requests=4, timeout=600)

    def make(name: str, prompt: str, **settings: Any) -> LLMStage:
        common: dict[str, Any] = {"client": client, "model": server.model, "output_column": name, "prompt": prompt}
        return LLMStage(**{**common, "generation_config": {"max_tokens": 24}, **settings})

    return make


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    path = tmp_path / "docs.parquet"
    write_python_docs(path, num_rows=NUM_DOCS)
    return path


def test_a_label_is_one_of_the_choices(column: Any, docs: Path) -> None:
    """Guided, so that the model can write nothing else."""
    output = ChoiceOutput(["science", "computing", "cooking"], guided="json")
    stage = column("topic", "The topic of this text: {{ text | truncate_chars(300) }}", parser=output)
    table = stage.process(pq.read_table(docs))
    stage.close()
    assert table.column("topic_error").null_count == NUM_DOCS
    assert set(table.column("topic").to_pylist()) <= {"science", "computing", "cooking"}


def test_a_base_model_is_asked_by_its_chat_template(column: Any) -> None:
    """The same text as the server makes of the chat, so the same answer."""
    settings = {"generation_config": {"max_tokens": 12, "temperature": 0.0}}
    formatted = HFChatTemplateFormatter(CHAT_ML)
    stage = MultiColumnStage(
        [
            column("chat", "{{ text }}", **settings),
            column("completed", "{{ text }}", conversation_formatter=formatted, **settings),
        ]
    )
    table = stage.process(pa.table({"text": ["Name a colour of the sky.", "Count to three."]}))
    stage.close()
    assert table.column("completed_error").null_count == 2
    assert table.column("completed").to_pylist() == table.column("chat").to_pylist()


def test_a_chain_is_answered_row_by_row(column: Any, docs: Path, tmp_path: Path) -> None:
    """Each column from the answers before it, each kept row with all of them."""
    stages = [
        column("summary", "Sum up in one sentence: {{ text | truncate_chars(400) }}"),
        column("question", "Ask one question about this: {{ summary }}"),
        column("score", "Rate from 1 to 3: {{ question }}", parser=ChoiceOutput(["1", "2", "3"], guided="json")),
    ]
    stage = MultiColumnStage(stages, keep_if="score | int >= 2")
    result = run_job(stage=stage, input=docs, output=tmp_path / "out", engine="local", progress=False)
    counters = result.counters
    assert counters.num_rows == NUM_DOCS == counters.num_answered + counters.num_dropped
    assert verify_output(result.output).is_complete
    for row in pq.read_table(tmp_path / "out").to_pylist():
        assert row["summary"]
        assert row["question"]
        assert row["score"] in {"2", "3"}


def test_a_preview_shows_real_answers(server: LocalServer, docs: Path, tmp_path: Path) -> None:
    """With the tokens that the server counted."""
    config = make_config(
        {
            "input": str(docs),
            "output": str(tmp_path / "out"),
            "client": {"base_url": server.base_url, "max_concurrent_requests": 2},
            "model": server.model,
            "prompt": "Name the subject: {{ text | truncate_chars(200) }}",
            "output_column": "subject",
            "generation_config": {"max_tokens": 8},
        }
    )
    rows = preview_job(config, 3).rows
    assert len(rows) == 3
    for row in rows:
        [column] = row.columns
        assert column.result is not None
        assert column.result.value
        assert column.result.usage is not None
        assert (column.result.usage.output_tokens or 0) > 0


@pytest.mark.slow
def test_structs_are_valid(column: Any, tmp_path: Path) -> None:
    """Or the row says what was wrong with its answer; every file declares the exact types."""
    write_python_docs(tmp_path / "docs.parquet", num_rows=NUM_STRUCTS)
    stage = column(
        "fact",
        "Describe in JSON: {{ id }}",
        parser=FACT,
        max_reasks=1,
        generation_config={"max_tokens": 32},
    )
    result = run_job(
        stage=stage,
        input=tmp_path / "docs.parquet",
        output=tmp_path / "out",
        engine="local",
        max_failed_rows=None,
        progress=False,
    )
    assert result.counters.num_rows == NUM_STRUCTS
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert all(pq.read_schema(path).field("fact").type == FACT_TYPE for path in files)
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert len(rows) == NUM_STRUCTS
    for row in rows:
        if row["fact_error"] is None:
            jsonschema_rs.validate(FACT, row["fact"])
        else:
            assert row["fact_error"].partition(":")[0] in {"parse", "truncated"}
            assert row["fact"] is None
            assert json.dumps(row["fact_meta"]["raw"])
    assert result.counters.num_answered >= 0.9 * NUM_STRUCTS
