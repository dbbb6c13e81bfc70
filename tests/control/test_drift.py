"""Answers that change during a run are noticed; answers that vary are not."""

from __future__ import annotations

import logging
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.client.throttle import Spending
from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.state.timeline import Timeline
from nemo_llm_stage.errors import RunStoppedError
from nemo_llm_stage.testing import Fault
from nemo_llm_stage.worker.control.control import RunControl
from nemo_llm_stage.worker.control.drift import Drift
from nemo_llm_stage.worker.control.scripts import ScriptDrift, script_of
from nemo_llm_stage.worker.orders import Need


def watch(*parts: tuple[int, float, float]) -> list[str]:
    """Return what is told of rows in parts of (rows, share that failed, mean output tokens)."""
    drift, rng, texts, counts = Drift(), random.Random(5), [], Counters()
    for num, failed, tokens in parts:
        for _ in range(num // 10):
            counts = Counters(
                num_rows=counts.num_rows + 10,
                num_failed=counts.num_failed + sum(rng.random() < failed for _ in range(10)),
                num_attempts=counts.num_attempts + 10,
                output_tokens=counts.output_tokens + sum(int(rng.uniform(0.2, 1.8) * tokens) for _ in range(10)),
            )
            texts += drift.look(counts)
    return texts


@pytest.mark.parametrize("failed", [0.0, 0.03, 0.3])
def test_a_steady_run_is_no_drift(failed: float) -> None:
    """Whatever its rate of failures, over fifty thousand rows."""
    assert watch((50_000, failed, 100)) == []


def test_rows_with_the_same_request_are_no_shorter_answers() -> None:
    """Nothing is sent for them: four of five rows from the thousandth on."""
    drift, counts = Drift(), Counters()
    for place in range(500):
        num_sent = 10 if place < 100 else 2
        counts = Counters(
            num_rows=counts.num_rows + 10,
            num_shared=counts.num_shared + 10 - num_sent,
            num_attempts=counts.num_attempts + num_sent,
            output_tokens=counts.output_tokens + 14 * num_sent,
        )
        assert drift.look(counts) == []


def test_more_failures_than_at_first_are_told_once() -> None:
    """With both rates."""
    (text,) = watch((3000, 0.02, 100), (3000, 0.3, 100))
    assert "rows failed; of the first 500 it was" in text


def test_fewer_failures_are_no_news() -> None:
    """The servers have recovered."""
    assert watch((3000, 0.3, 100), (3000, 0.02, 100)) == []


def test_other_lengths_are_told() -> None:
    """Twice as long, or a third."""
    for tokens in (200, 30):
        (text,) = watch((2000, 0.0, 100), (2000, 0.0, tokens))
        assert "output tokens on average now" in text


def test_a_short_run_says_nothing() -> None:
    """There is nothing to compare with."""
    assert watch((400, 0.0, 100), (90, 1.0, 100)) == []


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("A summary of the text.", "Latin"),
        ("Zusammenfassung für Öl", "Latin"),
        ("这篇文章讨论了机器学习的基础知识 (ML)", "Chinese or Japanese"),
        ("機械学習についての文章です", "Chinese or Japanese"),
        ("Краткое содержание", "Cyrillic"),
        ("요약: 기계 학습에 관한 글", "Korean"),
        ("positive", None),
        ("12345678901234", None),
        ("", None),
    ],
)
def test_the_script_of_a_text(text: str, script: str | None) -> None:
    """That of most of its letters; a label has none."""
    assert script_of(text) == script


def samples(num: int, share_of_chinese: float) -> list[dict[str, Any]]:
    chosen = random.Random(3)
    texts = ["这篇文章讨论了机器学习的基础知识" if chosen.random() < share_of_chinese else "A summary of the text"]
    texts += [
        "这篇文章讨论了机器学习的基础知识" if chosen.random() < share_of_chinese else "A summary" for _ in range(num)
    ]
    return [{"at": "", "values": {"x": text + " of a text", "label": "good"}, "errors": {}} for text in texts]


def test_another_script_is_told_once() -> None:
    """Of the sampled answers; some of them were in it before."""
    drift = ScriptDrift()
    drift.note(samples(300, 0.05))
    assert drift.look() == []
    drift.note(samples(100, 0.6))
    (text,) = drift.look()
    assert "in another script than Latin, most of them in Chinese or Japanese; of the first 100 it was" in text
    assert drift.look() == []


def test_a_run_warns_of_another_script(caplog: pytest.LogCaptureFixture) -> None:
    """As of any other drift."""
    control = RunControl(JobSettings(on_drift="stop"), Spending(), 8, Timeline("2026-11-29T00:00:00Z"))
    for share in (0.0, 0.0, 1.0):
        control.orders_of("0", Need(rows=tuple(samples(110, share))))
    control.check(Counters())
    assert "the answers have changed" in caplog.text
    assert control.is_draining
    assert [event.kind for event in control.timeline.events] == ["drift"]


@pytest.mark.slow
def test_a_run_warns_or_stops(job: Any, caplog: pytest.LogCaptureFixture) -> None:
    """As `on_drift` says; it can be resumed."""
    path = job.folder / "many.parquet"
    texts = [f"row {i}" if i < 1500 else f"odd {i}" for i in range(4000)]
    pq.write_table(pa.table({"text": texts}), path)
    job.server.faults = [Fault(400, contains="odd")]
    options: dict[str, Any] = {"input": path, "max_failed_rows": None, "rows_per_partition": 100, "order": "input"}
    stage = job.stage()
    with pytest.raises(RunStoppedError, match=r"the answers have changed: .*rows failed.* \(on_drift: stop\)"):
        job.run(stage, on_drift="stop", requests_per_minute=40_000, **options)
    job.server.faults = []
    with caplog.at_level(logging.WARNING):
        assert job.run(**options).counters.num_rows == 4000
