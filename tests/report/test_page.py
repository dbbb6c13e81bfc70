"""The report of a job: everything a person asks of it on one page that is safe to open."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from nemo_llm_stage import LLMStage, MultiColumnStage, run_job
from nemo_llm_stage.cli import main
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.errors import OutputConflictError, RowError
from nemo_llm_stage.report.page.facts import causes
from nemo_llm_stage.report.page.plots import histogram, label_bars
from nemo_llm_stage.report.page.render import MAX_BYTES, report_page, write_report
from nemo_llm_stage.testing import ScriptedClient

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-headless-shell")
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def answer(messages: list[dict[str, Any]]) -> str:
    text = messages[-1]["content"]
    if "row 7 " in text:
        raise RowError(f"refused {HOSTILE}")
    return "good" if text.startswith("Label") else f"about {text}"


def run(folder: Path, num_rows: int = 40, **settings: Any) -> str:
    rows = [{"id": number, "text": f"row {number} {HOSTILE}"} for number in range(num_rows)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
    client = ScriptedClient(answer)
    stages = [
        LLMStage(client=client, model="m", prompt="Say {{ text }}", output_column="x", system_prompt="Be brief."),
        LLMStage(client=client, model="m", prompt="Label {{ x }}", output_column="label", parser=["good", "bad"]),
    ]
    options = {"rows_per_partition": 10, "engine": "local", "progress": False} | settings
    run_job(stage=MultiColumnStage(stages), input=folder / "in.parquet", output=folder / "out", **options)
    return str(folder / "out")


def rows_of(page: str) -> dict[str, list[dict[str, Any]]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    lists: dict[str, list[dict[str, Any]]] = json.loads(found[1])
    return lists


def test_the_page_says_what_ran_and_how_it_ended(tmp_path: Path) -> None:
    """Verdict, prompt, failures with their words, and rows with their rendered prompts."""
    page = report_page(run(tmp_path))
    text = html.unescape(page)
    assert "Every row is accounted for." in text
    assert "Say {{ text }}" in text
    assert "Be brief." in text
    assert f"refused {HOSTILE}" in text
    lists = rows_of(page)
    assert lists["sample"][0]["answers"][0]["prompt"] == f"Be brief.\n\nSay row 0 {HOSTILE}"
    assert [row["place"] for row in lists["failed"]] == ["part-00000000.parquet, row 8"]
    assert "Values of label" in text


def test_row_text_is_never_markup(tmp_path: Path) -> None:
    """The only scripts are the page's own, and the policy names them by their hash."""
    page = report_page(run(tmp_path))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    assert "<img" not in page
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page or f"script-src 'sha256-{digest}'" in html.unescape(page)
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg|http-equiv", "", page)


def test_an_unfinished_job_says_how_to_continue(tmp_path: Path) -> None:
    """A killed job is reported on as it stands."""
    out = run(tmp_path)
    (Path(out) / "part-00000002.parquet").unlink()
    assert "30 of 40 rows are finished" in report_page(out)


def test_the_page_stays_small_however_long_the_rows(tmp_path: Path) -> None:
    """Long values are cut; rows beyond the bound are left out."""
    rows = [{"text": "word " * 20_000} for _ in range(400)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    stage = LLMStage(client=ScriptedClient(lambda _: "ok"), model="m", prompt="{{ text }}", output_column="x")
    run_job(stage=stage, input=tmp_path / "in.parquet", output=tmp_path / "out", engine="local", progress=False)
    assert len(report_page(str(tmp_path / "out"))) < MAX_BYTES + 100_000


def test_jsonl_and_a_prompt_that_is_a_function(tmp_path: Path) -> None:
    """Only the rendered prompts are missing then."""
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "in.parquet")
    stage = LLMStage(
        client=ScriptedClient(lambda _: "ok"), model="m", prompt=lambda row: row["text"], output_column="x"
    )
    options: dict[str, Any] = {"engine": "local", "progress": False, "output_format": "jsonl"}
    run_job(stage=stage, input=tmp_path / "in.parquet", output=tmp_path / "out", **options)
    row = rows_of(report_page(str(tmp_path / "out")))["sample"][0]
    assert row["answers"][0]["value"] == "ok"
    assert row["answers"][0]["prompt"] == ""
    assert row["values"] == [["text", "a"]]


def test_it_is_written_into_the_output_folder(tmp_path: Path) -> None:
    """Beside the record, where readers of datasets do not look."""
    out = run(tmp_path)
    path = Path(write_report(out))
    assert path.read_text("utf-8").startswith("<!doctype html>")
    assert len(pq.read_table(out)) == 40


def test_a_folder_of_no_job_is_refused(tmp_path: Path) -> None:
    """With the folder's name."""
    with pytest.raises(OutputConflictError, match="is not the output of a job"):
        report_page(str(tmp_path))


@pytest.mark.parametrize("numbers", [[1.0], [0, 0, 0], [1e-9, 1e9], [-5, 5]], ids=repr)
def test_a_histogram_of_odd_numbers(numbers: list[float]) -> None:
    """One value, equal values, far ones, negative ones."""
    assert histogram(numbers, "s").count("<rect") == 24


def test_waste_is_told_by_cause() -> None:
    """Only the causes that there were; what was not paid for is no waste."""
    counters = Counters(num_attempts=90, num_wasted_attempts=9, num_failed_answers=5, num_second_sends=1)
    assert [(num, cost) for _, num, cost in causes(counters)] == [(5, "wasted"), (3, "wasted"), (1, "wasted")]
    assert [num for _, num, _ in causes(Counters(num_rate_limited=4, num_refused_connections=2))] == [4, 2]
    assert causes(Counters()) == []


def test_labels_are_escaped() -> None:
    """In the drawing as well."""
    assert "&lt;b&gt;" in label_bars([("<b>", 3), ("c", 1)])


def browse(page: str, profile: Path) -> subprocess.CompletedProcess[str]:
    """Return the page as Chromium has it in the end, and what it logs."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--enable-logging=stderr", f"--user-data-dir={profile}", "--dump-dom", f"file://{page}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


VISITOR = """<script>
const field = document.getElementById("search"), which = document.getElementById("list");
field.value = "ROW 11 ";
field.dispatchEvent(new Event("input"));
document.body.dataset.found = document.getElementById("count").textContent;
field.value = "";
which.value = "failed";
which.dispatchEvent(new Event("change"));
document.body.dataset.failed = document.getElementById("count").textContent;
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_its_rows_can_be_searched(tmp_path: Path) -> None:
    """By a visitor, who types into the field and chooses another list; the policy would forbid the visitor's script."""
    page = report_page(run(tmp_path))
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", f"{VISITOR}</body>")
    for name, text in (("free", free), ("bound", page.replace("</body>", f"{VISITOR}</body>"))):
        (tmp_path / f"{name}.html").write_text(text)
    seen = browse(str(tmp_path / "free.html"), tmp_path / "profile").stdout
    assert 'data-found="1 of 40 rows"' in seen
    assert 'data-failed="1 of 1 rows"' in seen
    bound = browse(str(tmp_path / "bound.html"), tmp_path / "profile")
    assert "data-found" not in bound.stdout.partition("<main>")[0]
    assert "Content Security Policy" in bound.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_in_a_browser(tmp_path: Path) -> None:
    """It renders, shows rows, logs no error, and hostile rows change nothing."""
    page = write_report(run(tmp_path))
    result = browse(page, tmp_path / "profile")
    assert "<title>out · nemo_llm_stage</title>" in result.stdout
    assert result.stdout.count('<article class="row">') == 40
    assert result.stdout.count('<svg class="plot"') >= 3
    assert "40 of 40 rows" in result.stdout
    assert "CONSOLE" not in result.stderr


def test_the_command_writes_it_and_says_where(tmp_path: Path) -> None:
    """Every finished job has one already."""
    out = run(tmp_path)
    page = Path(out).parent.rglob("report.html")
    before = next(page)
    before.unlink()
    result = CliRunner().invoke(main, ["report", out])
    assert result.exit_code == 0
    assert Path(result.output.strip()) == before
    assert before.exists()
