"""Every pipeline runs as it stands; here against a simulated server in place of the embedded model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import SimulatedServer

ROOT = Path(__file__).parent.parent
PIPELINES = sorted(path for path in (ROOT / "pipelines").glob("*.py") if "curator" not in path.name)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_a_pipeline_accounts_for_every_row(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says in its help what it does; it is a literal of well under 80 lines."""
    assert len(path.read_text().splitlines()) < 80
    with SimulatedServer() as server:
        words = ["--client", "http", "--base-url", server.base_url, "--model", "sim"]
        words += ["--engine", "local", "--output", str(tmp_path / "out"), "--rows", "5"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(path), *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0, capsys.readouterr().err
    verification = verify_output(str(tmp_path / "out"))
    assert verification.is_complete
    assert verification.counters.num_rows == 5
    out = pd.read_parquet(tmp_path / "out")
    columns = [name.removesuffix("_error") for name in out.columns if name.endswith("_error")]
    assert columns
    for column in columns:
        assert (out[column].notna() | out[f"{column}_error"].notna()).all()
