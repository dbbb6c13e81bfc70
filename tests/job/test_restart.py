"""Throwing finished output away takes a word; what was kept of it is not paid for again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nemo_llm_stage import AsyncHTTPClient, FatalError, OutputConflictError
from nemo_llm_stage.output import RegexOutput
from nemo_llm_stage.testing import Fault

Answers = Callable[..., list[str]]


def test_a_restart_asks_what_is_new(job: Any, answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    """And says before it starts how much is discarded, and why."""
    job.run()
    with pytest.raises(OutputConflictError, match=r"40 finished rows, paid for with 40 requests"):
        job.run(job.stage(prompt="Tell {{ text }}"))
    job.run(job.stage(prompt="Tell {{ text }}"), restart=True, progress=True)
    assert [row["x"] for row in job.rows()] == answers(range(40), "Tell")
    assert job.server.stats.num_requests == 80
    assert "discarded: 40 finished rows, paid for with 40 requests" in capsys.readouterr().err


def test_a_changed_parser_asks_nothing_where_raw_answers_are_kept(job: Any) -> None:
    """The new values come from the old answers, and the server may be gone but for the first look at it."""
    job.run(keep_raw=True)
    for pattern in (r"^\[(\w+)\]", r"row (\d+)$"):
        job.run(job.stage(parser=RegexOutput(pattern)), keep_raw=True, restart=True)
    assert [row["x"] for row in job.rows()] == [str(number) for number in range(40)]
    assert job.server.stats.num_requests == 40


def test_a_changed_parameter_asks_again_even_where_raw_answers_are_kept(job: Any) -> None:
    """They answer another request."""
    job.run(keep_raw=True)
    job.run(job.stage(generation_config={"max_tokens": 77}), keep_raw=True, restart=True)
    assert job.server.stats.num_requests == 80


def test_an_unfinished_job_with_another_prompt_needs_no_word(job: Any, answers: Answers) -> None:
    """Nothing is finished, so nothing is thrown away; requests that stay the same are taken from the journal."""
    job.server.faults = [Fault(401, contains=f"row {number}") for number in range(15, 40)]
    one_at_a_time = AsyncHTTPClient(job.server.base_url, max_concurrent_requests=1)
    with pytest.raises(FatalError):
        job.run(job.stage(client=one_at_a_time), rows_per_partition=100, input=job.folder / "in" / "a.parquet")
    num_answered = job.server.stats.by_status[200]
    job.server.faults = []
    job.server.reset()
    prompt = "{{ 'Say' if id < 10 else 'Tell' }} {{ text }}"
    job.run(job.stage(prompt=prompt), input=job.folder / "in" / "a.parquet")
    assert [row["x"] for row in job.rows()] == answers(range(10)) + answers(range(10, 25), "Tell")
    assert (num_answered, job.server.stats.num_requests) == (15, 15)


def test_a_changed_format_leaves_no_file_of_the_old_one(job: Any, answers: Answers) -> None:
    """A reader of the folder would see every row twice."""
    job.run()
    with pytest.raises(OutputConflictError, match="output_format: parquet there, jsonl now"):
        job.run(output_format="jsonl")
    job.run(output_format="jsonl", restart=True)
    assert {path.suffix for path in Path(job.folder / "out").glob("part-*")} == {".jsonl"}
    assert [row["x"] for row in job.rows()] == answers(range(40))
    job.run(restart=True)
    assert len(pd.read_parquet(job.folder / "out")) == 40
    assert not list((job.folder / "out").glob("*.jsonl"))
