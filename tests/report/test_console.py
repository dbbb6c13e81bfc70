"""What is shown is text: no markup, nothing that acts on a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rich.console import Console

from nemo_llm_stage.cli import main
from nemo_llm_stage.client.endpoint_status import EndpointStatus
from nemo_llm_stage.core import Completion, RowResult
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.job.preview import PreviewedColumn
from nemo_llm_stage.job.result import JobResult
from nemo_llm_stage.report.console import PlainConsole
from nemo_llm_stage.report.preview_panels import row_panel
from nemo_llm_stage.report.progress.progress import Progress
from nemo_llm_stage.report.progress.view import JobTitle
from nemo_llm_stage.report.rows_table import sample
from nemo_llm_stage.report.summary import failures, summary
from nemo_llm_stage.stage.status import Outage, StageStatus
from nemo_llm_stage.testing import Fault, SimulatedServer
from nemo_llm_stage.worker.engine import RunStatus

NASTY = "[/INST] [bold]x[/bold] :smile: \x1b]0;owned\x07 \x1b[2J \x9b31m \u202egnp.exe"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def assert_plain(text: str) -> None:
    """No control character is left, and markup stands as it was written."""
    assert ACTS.findall(text) == []
    assert "[/INST] [bold]x[/bold] :smile:" in text
    assert r"\x1b]0;owned\x07" in text
    assert r"\u202egnp.exe" in text


def shown_on(make: Callable[..., Console], *things: Any) -> str:
    console = make(file=io.StringIO(), width=400)
    for thing in things:
        console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_reader_that_has_read_enough_ends_nothing() -> None:
    """As `| head` does: a job goes on, and what it writes goes nowhere."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        console = PlainConsole(file=stream)
        with Progress(console=console) as progress:
            progress.note("one")
            progress.note("two")
        console.print("three")
        assert Path(f"/proc/self/fd/{writer}").readlink() == Path(os.devnull)


@pytest.mark.slow
def test_a_character_that_a_terminal_does_not_know_is_replaced(tmp_path: Path) -> None:
    """In place of an error."""
    words = [sys.executable, "-m", "nemo_llm_stage", "jobs", str(tmp_path / "schön…")]
    result = subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"}, check=False)
    assert (result.returncode, result.stdout.decode("latin-1")[-8:]) == (0, "schön?.\n"), result.stderr


@pytest.fixture
def counters() -> Counters:
    return Counters(
        num_rows=1, num_failed=1, errors={"bad_request": 1}, examples={"bad_request": f"bad_request: {NASTY}"}
    )


def test_a_string_is_shown_as_it_stands() -> None:
    """On its own, and as a table's cell."""
    assert_plain(shown_on(PlainConsole, NASTY))


def test_an_example_of_a_failure_is_text(counters: Counters) -> None:
    """On any console."""
    assert_plain(shown_on(Console, failures(counters)))


def test_the_summary_is_text(counters: Counters) -> None:
    """With what was left out of the input, and where the output is."""
    left_out = [BadInput(f"{NASTY}.jsonl", 3, 1, NASTY)]
    result = JobResult(NASTY, counters, num_partitions=1, elapsed_s=1.0, left_out=tuple(left_out))
    assert_plain(shown_on(PlainConsole, summary(result)))
    assert ACTS.findall(result._repr_html_()) == []


def test_a_sample_is_text() -> None:
    """Names of columns, values, answers and errors."""
    row = {NASTY: NASTY, "x": NASTY, "y_error": NASTY}
    assert_plain(shown_on(PlainConsole, sample([row], [NASTY], ["x", "y"])))


def test_a_preview_is_text() -> None:
    """Titles, roles, prompts, answers, finish reasons and errors."""
    completion = Completion((NASTY,), (NASTY,), (NASTY,))
    column = PreviewedColumn(NASTY, [{"role": NASTY, "content": NASTY}], None, RowResult(None, NASTY, completion))
    assert_plain(shown_on(PlainConsole, row_panel(NASTY, [column, column]), row_panel(NASTY, [column])))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_text(is_terminal: bool) -> None:
    """Notes, and why rows wait; what is left of escapes on a terminal is the bar's own."""
    console = PlainConsole(file=io.StringIO(), width=400, force_terminal=is_terminal, color_system=None)
    with Progress(console=console) as progress:
        progress.wait_for(NASTY)
        progress.begin(JobTitle((NASTY,), (NASTY,), 10), Counters())
        progress.note(NASTY)
        endpoint = EndpointStatus(f"http://{NASTY}/v1", state="resting", since=0.0, reason=NASTY)
        outage = Outage(NASTY, 0.0, 0.0, 0.0)
        failed = Counters(num_rows=1, num_failed=1, errors={NASTY: 1}, examples={NASTY: f"{NASTY}: {NASTY}"})
        progress.update(RunStatus(stage=StageStatus(outage=outage, endpoints=(endpoint,))), failed)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("\x1b]0;owned", "\x1b[2J \x9b", "\u202e"):
        assert words not in text
    assert "[/INST] [bold]x[/bold] :smile:" in text


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    def answer(body: dict[str, Any]) -> str:
        return f"answer {NASTY}"

    faults = [Fault(400, contains="refused")]
    with SimulatedServer(answer=answer, faults=faults) as server:
        yield server


def test_a_run_over_hostile_rows_ends_well(server: SimulatedServer, tmp_path: Path) -> None:
    """Rows, errors, answers, and names of columns and files hold markup and escape sequences: exit code 0."""
    name = "in [bold] \u202e.parquet"
    rows = [f"{NASTY} {'refused' if number % 2 else number}" for number in range(8)]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": rows, "[/INST]\x1b[1m": rows}), tmp_path / "in" / name)
    (tmp_path / "job.yaml").write_text(
        json.dumps(
            {
                "input": str(tmp_path / "in"),
                "output": str(tmp_path / "out [red]"),
                "client": {"base_url": server.base_url},
                "model": "sim",
                "prompt": "{{ text }} {{ row['[/INST]\x1b[1m'] }}",
                "output_column": "x [/bold]",
                "engine": "local",
                "max_failed_rows": 8,
                "keep_if": "true",
            }
        )
    )
    for command in (
        ["preview", str(tmp_path / "job.yaml"), "-n", "8"],
        ["run", str(tmp_path / "job.yaml"), "--show-rows", "8"],
        ["verify", str(tmp_path / "out [red]")],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        assert ACTS.findall(result.output) == []
        if command[0] != "verify":
            assert "[/INST] [bold]" in result.output
            assert "\\x1b" in result.output


def test_an_error_of_the_command_line_is_text() -> None:
    """A name that does not exist is repeated, its escape sequences are not."""
    result = CliRunner().invoke(main, ["run", "no\x1b[2J\u202e.yaml"])
    assert result.exit_code == 2
    assert ACTS.findall(result.output) == []
    assert r"no\x1b[2J\u202e.yaml" in result.output
