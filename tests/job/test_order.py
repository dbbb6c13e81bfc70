"""In which order the rows of a job are sent, and where that is told."""

from __future__ import annotations

import io
import json
import random
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_fixtures import JobRunner
from rich.console import Console

from nemo_llm_stage import AsyncHTTPClient
from nemo_llm_stage.dataset.state.timeline import read_timelines
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.report.summary import summary

QUESTIONS = [f"{f'document {number % 5} ' * 30}question {number}" for number in range(40)]
OWN = [f"{random.Random(number).getrandbits(900):x}" for number in range(40)]


@pytest.mark.parametrize(
    ("texts", "words"),
    [(QUESTIONS, "grouped by the beginning of their prompts"), (OWN, "as in the input")],
    ids=["shared", "own"],
)
def test_a_run_tells_in_which_order_it_sends_rows(job: JobRunner, texts: list[str], words: str) -> None:
    """In its result, in the table at its end, and among the events of its report."""
    (job.folder / "in" / "b.jsonl").unlink()
    pq.write_table(pa.table({"text": texts}), job.folder / "in" / "a.parquet")
    result = job.run(rows_per_partition=40)
    assert result.order.words.startswith(words)
    shown = io.StringIO()
    Console(file=shown, width=200).print(summary(result))
    assert words in shown.getvalue()
    [timeline] = read_timelines(Folder(f"{job.folder}/.out.nemo_llm_stage"))
    assert [event.text for event in timeline.events if event.kind == "order"] == [f"rows are sent {result.order.words}"]


def test_rows_are_ordered_over_several_chunks(job: JobRunner) -> None:
    """A chunk of lines is 4 MiB; once an order has helped, the chunks after it are ordered together."""
    (job.folder / "in" / "a.parquet").unlink()
    texts = [f"{f'document {number % 7} ' * 3000}question {number}" for number in range(360)]
    (job.folder / "in" / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    one_at_a_time = job.stage(client=AsyncHTTPClient(job.server.base_url, max_concurrent_requests=1))
    result = job.run(one_at_a_time, rows_per_partition=360)
    assert (result.order.num_windows, result.order.num_ordered) == (2, 2)
    assert [row["text"] for row in job.rows()] == texts
    asked = [request.body["messages"][0]["content"] for request in job.server.requests]
    assert sum(one[:20] != other[:20] for one, other in pairwise(asked[-200:])) < 20


def test_a_job_that_keeps_the_order_of_the_input_says_nothing_of_it(job: JobRunner) -> None:
    """By `order: input`."""
    assert job.run(order="input").order.words == ""
