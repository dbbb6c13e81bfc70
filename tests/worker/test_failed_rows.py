"""`retry_failed` asks the failed rows again, and those only, and merges what they come to."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import OutputConflictError, RunError
from nemo_llm_stage.job.failures import group_failures
from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import Fault
from nemo_llm_stage.worker.samples import words_of

Answers = Callable[..., list[str]]


def refuse(job: Any, *words: str, kind: Any = 400) -> None:
    job.server.faults = [Fault(kind, contains=word) for word in words]


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_only_failed_rows_are_asked_again(job: Any, answers: Answers, output_format: str) -> None:
    """And stand in their old places afterwards."""
    refuse(job, "row 7", "row 31")
    job.run(output_format=output_format)
    before = job.rows()
    refuse(job)
    job.server.reset()
    counters = job.retry().counters
    assert job.server.stats.num_requests == 2
    assert [row["x"] for row in job.rows()] == answers(range(40))
    assert [row for row in job.rows() if row["id"] not in (7, 31)] == [row for row in before if row["x_error"] is None]
    assert (counters.num_rows, counters.num_failed, counters.errors) == (40, 0, {})
    assert (counters.num_attempts, counters.num_wasted_attempts) == (42, 2)
    assert (job.folder / "out" / ".nemo_llm_stage" / "_SUCCESS").exists()


def test_only_failures_of_the_given_kinds_are_asked_again(job: Any) -> None:
    """The others keep their errors."""
    job.server.faults = [Fault(400, contains="row 7"), Fault("content_filter", contains="row 31")]
    job.run()
    refuse(job)
    job.server.reset()
    counters = job.retry(kinds=["content_filter"]).counters
    assert job.server.stats.num_requests == 1
    assert counters.errors == {"bad_request": 1}
    assert [row["id"] for row in job.rows() if row["x_error"]] == [7]


def test_a_row_that_fails_again_tells_its_latest_error(job: Any) -> None:
    """And counts once."""
    refuse(job, "row 7")
    job.run()
    refuse(job, "row 7", kind="content_filter")
    assert job.retry().counters.errors == {"content_filter": 1}
    assert job.rows()[7]["x_error"].startswith("content_filter: ")


def test_without_failed_rows_nothing_is_asked(job: Any) -> None:
    """No server is needed; skipped rows have not failed."""
    job.run(job.stage(prompt="{% if id == 3 %}{{ nothing }}{% endif %}{{ text }}"), input=with_null(job))
    job.server.reset()
    with job.server.outage():
        counters = job.retry(job.stage(prompt="{% if id == 3 %}{{ nothing }}{% endif %}{{ text }}")).counters
    assert (job.server.stats.num_requests, counters.num_skipped) == (0, 1)


def test_a_skipped_row_that_is_shown_has_not_failed() -> None:
    """In `tail`, and in the line on the first row."""
    sample = {"values": {"a": "yes"}, "errors": {"b": "skipped: skip_when is true", "c": "timeout: slow"}}
    assert words_of(sample) == ["a: yes", "b skipped: skip_when is true", "c failed: timeout: slow"]


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_a_skip_is_no_error_and_has_a_column_of_its_own(job: Any, output_format: str) -> None:
    """What has no value says why: in the one column or in the other. A retry leaves skips as they are."""
    path = job.folder / "null.parquet"
    pq.write_table(pa.table({"id": [0, 1, 2], "text": ["fine", None, "refused"]}), path)
    refuse(job, "refused")
    counters = job.run(input=path, output_format=output_format, max_failed_rows=None).counters
    reasons = [(row["x_error"] and row["x_error"].partition(":")[0], row["x_skipped"]) for row in job.rows()]
    assert reasons == [(None, None), (None, "column 'text' is null"), ("bad_request", None)]
    assert (counters.num_failed, counters.num_skipped) == (1, 1)
    assert [group.kind for group in group_failures(str(job.folder / "out"))] == ["bad_request"]
    refuse(job)
    counters = job.retry().counters
    assert (counters.num_failed, counters.num_skipped) == (0, 1)
    assert [(row["x_error"], row["x_skipped"]) for row in job.rows()] == [(None, reason) for _, reason in reasons]
    assert verify_output(str(job.folder / "out"), compares_rows=True).is_complete


def with_null(job: Any) -> Any:
    path = job.folder / "null.parquet"
    pq.write_table(pa.table({"id": range(9), "text": ["t"] * 9, "nothing": pa.nulls(9, pa.string())}), path)
    return path


def test_another_stage_is_refused(job: Any) -> None:
    """Its answers would not go with the others."""
    refuse(job, "row 7")
    job.run()
    with pytest.raises(OutputConflictError, match="prompt"):
        job.retry(job.stage(prompt="Tell {{ text }}"))


def test_an_unfinished_job_is_told(job: Any) -> None:
    """Run it to its end first."""
    refuse(job, "row 7")
    job.run()
    (job.folder / "out" / "part-00000002.parquet").unlink()
    refuse(job)
    with pytest.raises(RunError, match="1 partitions are not committed yet; run the job again"):
        job.retry()


def test_a_kept_answer_that_could_not_be_used_is_not_used_again(job: Any) -> None:
    """It is asked for anew, and the new one is kept."""
    job.server.faults = [Fault("broken_json", contains="row 7")]
    whole = r"row (\d+)$"
    first = job.run(job.stage(parser=matching(whole)), keep_raw=True)
    assert first.counters.errors == {"parse": 1}
    refuse(job)
    job.server.reset()
    assert job.retry(job.stage(parser=matching(whole))).counters.num_failed == 0
    assert job.server.stats.num_requests == 1
    job.run(job.stage(parser=matching(r"^\[(\w+)\]")), keep_raw=True, restart=True)
    assert job.server.stats.num_requests == 1
    assert all(row["x_error"] is None for row in job.rows())


def matching(pattern: str) -> Any:
    from nemo_llm_stage.output import RegexOutput

    return RegexOutput(pattern)


def test_jsonl_rows_of_any_type_come_through(job: Any) -> None:
    """Dates, decimals and bytes are as before, and the prompt sees them as in the first run."""
    table = pa.table(
        {
            "when": pa.array([dt.datetime(2026, 1, 2, tzinfo=dt.UTC), None, dt.datetime(2026, 3, 4, tzinfo=dt.UTC)]),
            "price": [Decimal("1.10"), Decimal("2.20"), None],
            "data": [b"a", b"\xff", b"c"],
            "text": ["a", "b", "c"],
        }
    )
    (job.folder / "in" / "b.jsonl").unlink()
    pq.write_table(table, job.folder / "in" / "a.parquet")
    stage = {"prompt": "{{ text }} {{ when }} {{ price }}", "on_null": "empty"}
    job.server.faults = [Fault(400, contains="c 2026")]
    job.run(typed_stage(job, **stage), output_format="jsonl", max_failed_rows=None)
    before = job.rows()
    asked = [request.body["messages"] for request in job.server.requests]
    [refused] = [messages for messages in asked if "c 2026" in messages[-1]["content"]]
    job.server.faults = []
    job.retry(typed_stage(job, **stage))
    after = job.rows()
    assert [row["x_error"] for row in after] == [None, None, None]
    for old, new in zip(before, after, strict=True):
        assert [old[name] for name in table.schema.names] == [new[name] for name in table.schema.names]
    assert job.server.requests[-1].body["messages"] == refused


def typed_stage(job: Any, prompt: str, on_null: str) -> Any:
    from nemo_llm_stage import Prompt

    return job.stage(prompt=Prompt(prompt, on_null=on_null))
