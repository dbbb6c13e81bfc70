"""Jobs of several columns, and of rows that get fewer or more: committed, resumed, mended and proved like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from nemo_llm_stage import AsyncHTTPClient, FatalError, JobResult, LLMStage, MultiColumnStage, OutputConflictError
from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import Fault, SimulatedServer


def text_of(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


@pytest.fixture(params=["parquet", "jsonl"])
def output_format(request: pytest.FixtureRequest) -> str:
    return request.param


class Servers:
    """A server that answers in brackets, and stages that ask it."""

    def __init__(self, *faults: Fault) -> None:
        self.server = SimulatedServer(answer=lambda body: f"[{text_of(body)}]", faults=faults)

    def __enter__(self) -> Self:
        self.server.__enter__()
        self.client = AsyncHTTPClient(self.server.base_url, max_concurrent_requests=8, base_delay=0.01, max_retries=0)
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.__exit__()

    def stage(self, name: str, prompt: str, **settings: Any) -> LLMStage:
        return LLMStage(client=self.client, model="sim", output_column=name, prompt=prompt, **settings)

    def chain(self, **settings: Any) -> MultiColumnStage:
        """`a` of the text, `b` of `a`, `c` of the text."""
        prompts = {"a": "A {{ text }}", "b": "B {{ a }}", "c": "C {{ text }}"}
        return MultiColumnStage([self.stage(name, prompt) for name, prompt in prompts.items()], **settings)

    @property
    def asked(self) -> list[str]:
        return [text_of(request.body) for request in self.server.requests]


@pytest.fixture
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


def expected(number: int) -> dict[str, str]:
    return {"a": f"[A row {number}]", "b": f"[B [A row {number}]]", "c": f"[C row {number}]"}


def check(job: Any, result: JobResult) -> None:
    """All forty rows are there with the answers of each column."""
    rows = job.rows()
    assert [row["id"] for row in rows] == list(range(40))
    for number, row in enumerate(rows):
        assert {name: row[name] for name in "abc"} == expected(number)
        assert [row[f"{name}_error"] for name in "abc"] == [None] * 3
    assert (result.counters.num_rows, result.counters.num_answered) == (40, 40)
    assert verify_output(result.output).is_complete


def test_all_columns_of_a_row_are_in_its_file(job: Any, servers: Servers, output_format: str) -> None:
    """Proved like a job of one column; a list of stages is one stage."""
    result = job.run(list(servers.chain().stages), output_format=output_format)
    check(job, result)
    assert len(servers.asked) == 120
    assert result.output_columns == ("a", "b", "c")


def test_each_column_goes_on_where_it_stopped(job: Any, output_format: str) -> None:
    """Answers are journaled column by column: nothing is asked twice."""
    with Servers(Fault(401, contains="B ")) as broken:
        with pytest.raises(FatalError):
            job.run(broken.chain(), output_format=output_format)
        before = {text for text in broken.asked if not text.startswith("B")}
    with Servers() as servers:
        check(job, job.run(servers.chain(), output_format=output_format))
        # What was under way when the run broke had been asked and was thrown away.
        assert len(set(servers.asked) & before) <= 8
        assert len(servers.asked) < 120


def test_only_what_failed_is_asked_again(job: Any, output_format: str) -> None:
    """The failed column, and those that use it; what the others had been answered stays."""
    with Servers(Fault(400, contains="A row 7"), Fault(400, contains="C row 9")) as broken:
        result = job.run(broken.chain(), output_format=output_format, max_failed_rows=None)
    assert (result.counters.num_failed, result.counters.num_answered) == (2, 38)
    assert result.counters.errors == {"bad_request": 2, "dependency": 1}
    kept = job.rows()
    assert kept[7]["b_error"] == "dependency: column 'a' failed"
    with Servers() as servers:
        result = job.retry(servers.chain())
        check(job, result)
        assert sorted(servers.asked) == ["A row 7", "B [A row 7]", "C row 9"]
    assert result.counters.errors == result.counters.errors_by_column == {}
    rows = job.rows()
    assert rows[7]["c_meta"] == kept[7]["c_meta"]
    assert rows[8] == kept[8]


def test_only_one_kind_is_asked_again(job: Any) -> None:
    """And the columns that wait for it."""
    with Servers(Fault(400, contains="A row 7"), Fault("content_filter", contains="A row 9")) as broken:
        job.run(broken.chain(), max_failed_rows=None)
    with Servers() as servers:
        counters = job.retry(servers.chain(), kinds=["content_filter"]).counters
        assert sorted(servers.asked) == ["A row 9", "B [A row 9]"]
    assert (counters.num_failed, counters.errors) == (1, {"bad_request": 1, "dependency": 1})


def test_another_column_is_another_job(job: Any, servers: Servers) -> None:
    """Told by its name; with restart, answers that are kept serve the columns that stayed."""
    job.run(servers.chain(), keep_raw=True)
    more = MultiColumnStage([*servers.chain().stages, servers.stage("d", "D {{ b }}")])
    with pytest.raises(OutputConflictError, match=r"columns\.d"):
        job.run(more, keep_raw=True)
    num_asked = len(servers.asked)
    assert job.run(more, keep_raw=True, restart=True).counters.num_answered == 40
    assert {text[0] for text in servers.asked[num_asked:]} == {"D"}


def test_dropped_rows_are_counted(job: Any, servers: Servers, output_format: str) -> None:
    """Rows in = rows out + dropped, proved from the files."""
    stage = servers.stage("x", "{{ text }}", keep_if="id % 4 == 0 and x")
    result = job.run(stage, output_format=output_format)
    assert [row["id"] for row in job.rows()] == list(range(0, 40, 4))
    counters = result.counters
    assert (counters.num_rows, counters.num_dropped, counters.num_answered, counters.num_written) == (40, 30, 10, 10)
    assert verify_output(result.output).is_complete


def test_a_failed_row_that_is_answered_may_be_dropped_then(job: Any, output_format: str) -> None:
    """It had stayed as long as nobody could tell."""
    settings = {"prompt": "{{ text }}", "keep_if": "x == '[row 3]' or id > 35"}
    with Servers(Fault(400, contains="row 1")) as broken:
        result = job.run(broken.stage("x", **settings), output_format=output_format, max_failed_rows=None)
    failed = [1, *range(10, 20)]
    assert [row["id"] for row in job.rows()] == sorted([*failed, 3, 36, 37, 38, 39])
    with Servers() as servers:
        result = job.retry(servers.stage("x", **settings))
    assert [row["id"] for row in job.rows()] == [3, 36, 37, 38, 39]
    assert (result.counters.num_failed, result.counters.num_dropped, result.counters.num_rows) == (0, 35, 40)
    assert verify_output(result.output).is_complete


def test_each_answer_may_have_a_row(job: Any, output_format: str) -> None:
    """In the rows' order; failed rows have one, and more once they are answered."""
    settings: dict[str, Any] = {"prompt": "{{ text }}", "explode": True, "generation_config": {"n": 3}}
    with Servers(Fault(400, contains="row 5")) as broken:
        job.run(broken.stage("x", **settings), output_format=output_format, max_failed_rows=None)
    assert sum(row["id"] == 5 for row in job.rows()) == 1
    with Servers() as servers:
        result = job.retry(servers.stage("x", **settings))
    rows = job.rows()
    assert [(row["id"], row["x_choice"]) for row in rows] == [(i, choice) for i in range(40) for choice in range(3)]
    assert {row["x"] for row in rows if row["id"] == 5} == {"[row 5]"}
    assert (result.counters.num_rows, result.counters.num_written) == (40, 120)
    assert verify_output(result.output).is_complete


@pytest.mark.parametrize("settings", [{"keep_if": "id > 20"}, {"explode": True, "generation_config": {"n": 2}}])
def test_lost_counts_of_such_files_are_counted_anew(job: Any, servers: Servers, settings: dict[str, Any]) -> None:
    """Where a worker died between a JSONL file and its counts."""
    result = job.run(servers.stage("x", "{{ text }}", **settings), output_format="jsonl")
    for path in (Path(result.output).parent / f".{Path(result.output).name}.nemo_llm_stage" / "commits").iterdir():
        path.unlink()
    verification = verify_output(result.output)
    assert verification.is_complete, verification.problems
    counters = verification.counters
    assert (counters.num_rows, counters.num_dropped) == (result.counters.num_rows, result.counters.num_dropped)


def test_several_workers_share_such_rows(job: Any, output_format: str) -> None:
    """Pieces of partitions too: each request is counted as often as it was sent, whatever fails or is dropped."""
    with Servers(Fault(400, contains="B [A row 7")) as broken:
        stage = broken.chain(keep_if="c != '[C row 8]'")
        result = job.run(stage, actors=3, rows_per_partition=25, output_format=output_format, max_failed_rows=None)
        assert result.counters.num_attempts == broken.server.stats.num_requests
    assert [row["id"] for row in job.rows()] == [number for number in range(40) if number != 8]
    counters = result.counters
    assert (counters.num_answered, counters.num_failed, counters.num_dropped) == (38, 1, 1)
    assert counters.errors_by_column == {"b": 1}


def test_several_workers_share_rows_that_become_several(job: Any, servers: Servers) -> None:
    """In their order."""
    stage = servers.stage("x", "{{ text }}", explode=True, generation_config={"n": 2})
    result = job.run(stage, actors=3, rows_per_partition=25)
    assert [(row["id"], row["x_choice"]) for row in job.rows()] == [(i, choice) for i in range(40) for choice in (0, 1)]
    assert (result.counters.num_rows, result.counters.num_written) == (40, 80)
