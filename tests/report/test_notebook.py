"""In a notebook a job has one output that renews itself and ends with the summary. IPython is stood in for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage import AsyncHTTPClient, JobResult, LLMStage, run_job
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.testing import SimulatedServer


class Cell:
    """What a notebook's cell shows: each output as the last bundle that it was given."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, str]] = []
        self.num_updates = 0

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert (raw, display_id) == (True, True)
        self.outputs.append(bundle)

        def update(bundle: dict[str, str], *, raw: bool) -> None:
            self.num_updates += 1
            self.outputs[-1] = bundle

        return SimpleNamespace(update=update)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    cell, ipython, display = Cell(), ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=None, execution_count=3)  # type: ignore[attr-defined]
    display.display = cell.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return cell


def test_a_job_has_one_output_that_ends_with_the_summary(
    cell: Cell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As text and as HTML; nothing is written to stderr."""
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(40)]}), tmp_path / "in.parquet")
    with SimulatedServer(service_time_s=0.1) as server:
        stage = LLMStage(
            client=AsyncHTTPClient(server.base_url, max_concurrent_requests=4),
            model="sim",
            prompt="{{ text }}",
            output_column="x",
        )
        run_job(stage=stage, input=tmp_path / "in.parquet", output=tmp_path / "out", engine="local")
    (output,) = cell.outputs
    assert cell.num_updates >= 1
    assert "answered   40   100.00 %" in output["text/plain"]
    assert output["text/html"].startswith("<pre")
    assert capsys.readouterr().err == ""


def test_a_result_is_shown_as_its_summary() -> None:
    """What looks like HTML in it is text."""
    failed = Counters(num_rows=3, num_failed=1, errors={"timeout": 1}, examples={"timeout": "timeout: <script>"})
    html = JobResult("out", failed)._repr_html_()
    assert "66.66 %" in html or "66.67 %" in html
    assert "&lt;script&gt;" in html
    assert "<script" not in html
