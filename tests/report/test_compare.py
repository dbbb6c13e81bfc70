"""Two jobs over the same rows, side by side."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from nemo_llm_stage import LLMStage, OutputConflictError, run_job
from nemo_llm_stage.cli import main
from nemo_llm_stage.report.compare.figures import agreement_of, differences
from nemo_llm_stage.report.compare.page import comparison_page
from nemo_llm_stage.report.compare.sides import read_sides
from nemo_llm_stage.testing import ScriptedClient

HOSTILE = "<script>alert(1)</script>"


def run(folder: Path, name: str, answer: Callable[[str], str], **changes: Any) -> str:
    rows = folder / "in.parquet"
    if not rows.exists():
        pq.write_table(pa.table({"text": [f"row {i} {HOSTILE}" for i in range(40)]}), rows)
    stage: dict[str, Any] = {"prompt": "Label {{ text }}", "output_column": "label", "model": "m"}
    client = ScriptedClient(lambda messages: answer(messages[-1]["content"]))
    options: dict[str, Any] = {"engine": "local", "progress": False, "rows_per_partition": changes.pop("size", 10)}
    run_job(
        stage=LLMStage(client=client, **(stage | changes)),
        input=rows,
        output=folder / name,
        max_failed_rows=None,
        **options,
    )
    return str(folder / name)


def number_in(text: str) -> int:
    return int(text.split()[2])


def first(text: str) -> str:
    return "cat" if number_in(text) % 2 else "dog"


def second(text: str) -> str:
    """Like the first, but for every tenth row."""
    return "bird" if number_in(text) % 10 == 0 else first(text)


def test_labels_agree_as_often_as_they_do(tmp_path: Path) -> None:
    """Rows are matched by their input, however the files are cut."""
    sides = read_sides(run(tmp_path, "a", first), run(tmp_path, "b", second, model="other", size=7))
    assert len(sides.pairs) == 40
    one = agreement_of(sides, "label", "label")
    assert (one.num_both, one.num_same, len(one.different)) == (40, 36, 4)
    assert one.table[("dog", "bird")] == 4
    assert one.kappa == pytest.approx((0.9 - (0.5 * 0.5 + 0.5 * 0.4)) / (1 - (0.5 * 0.5 + 0.5 * 0.4)))
    assert one.means["characters"] == (3.0, 3.1)
    assert differences(sides.left, sides.right) == [("model", "m", "other")]


def test_the_page_and_the_table_say_so(tmp_path: Path) -> None:
    """Row text is text in both; the page has no script and needs no network."""
    left, right = run(tmp_path, "a", first), run(tmp_path, "b", second, output_column="kind", prompt="Kind {{ text }}")
    result = CliRunner().invoke(main, ["report", "--compare", left, right])
    assert result.exit_code == 0, result.output
    assert "90.00 %" in result.output
    path = Path(result.output.splitlines()[-1])
    page = path.read_text("utf-8")
    assert "<script" not in page
    assert f"row 0 {HOSTILE}" in html.unescape(page)
    assert "Kind {{ text }}" in html.unescape(page)
    assert "label: 90.00 % of 40 rows have the same answer" in page
    assert "http" not in page.replace("http-equiv", "")
    assert pq.read_table(right).num_rows == 40  # readers of the data do not see it


def test_rows_that_only_one_has_answered_are_told(tmp_path: Path) -> None:
    """With the reason of the other."""
    only = {"parser": ["cat", "dog"], "max_reasks": 0}
    sides = read_sides(run(tmp_path, "a", first), run(tmp_path, "b", second, **only))
    one = agreement_of(sides, "label", "label")
    assert (one.num_both, one.num_same, one.only_left, one.only_right) == (36, 36, 4, 0)
    assert "bird" in comparison_page(sides)  # in the words of the error


def test_jobs_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    """Other rows."""
    left = run(tmp_path, "a", first)
    (tmp_path / "in.parquet").unlink()
    pq.write_table(pa.table({"text": ["other 1", "other 2"]}), tmp_path / "in.parquet")
    right = run(tmp_path, "b", lambda _: "cat")
    with pytest.raises(OutputConflictError, match="no row of the input in common"):
        read_sides(left, right)


def test_one_output_is_not_two() -> None:
    """Nor the other way round."""
    result = CliRunner().invoke(main, ["report", "--compare", "a"])
    assert (result.exit_code, "takes two" in result.stderr) == (2, True)
