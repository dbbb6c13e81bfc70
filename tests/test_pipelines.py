"""Every pipeline runs as it stands; here against a simulated server in place of the embedded model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from nemo_llm_stage.run import verify_output
from nemo_llm_stage.testing import SimulatedServer

ROOT = Path(__file__).parent.parent
PIPELINES = sorted(path for path in (ROOT / "pipelines").glob("*.py") if "curator" not in path.name)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_a_pipeline_accounts_for_every_row(path: Path, tmp_path: Path) -> None:
    """And says in its help what it does; it is a literal of well under 80 lines."""
    assert len(path.read_text().splitlines()) < 80
    with SimulatedServer() as server:
        command = [sys.executable, str(path), "--client", "http", "--base-url", server.base_url, "--model", "sim"]
        command += ["--engine", "local", "--output", str(tmp_path / "out"), "--rows", "5"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    verification = verify_output(str(tmp_path / "out"))
    assert verification.is_complete
    assert verification.counters.num_rows == 5
    out = pd.read_parquet(tmp_path / "out")
    columns = [name.removesuffix("_error") for name in out.columns if name.endswith("_error")]
    assert columns
    for column in columns:
        assert (out[column].notna() | out[f"{column}_error"].notna()).all()
