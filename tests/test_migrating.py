"""
MIGRATING.md's programs of other packages do what the program beside them does: the same prompts, the same answers.

Each runs where its package is installed: in this environment, or in the one whose Python an environment variable names,
`DISTILABEL_PYTHON` or `DATA_DESIGNER_PYTHON`. Elsewhere the test is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from doc_parts import all_blocks

from nemo_llm_stage.testing import Fault, SimulatedServer

BLOCKS = [block for block in all_blocks() if block.document == "pipelines/MIGRATING.md"]
(AFTER,) = [block.text for block in BLOCKS if block.language == "python"]
BEFORE = {
    name: next(block.text for block in BLOCKS if block.language == "py" and f"{name}." in block.text)
    for name in ("distilabel", "data_designer")
}


def python_with(package: str) -> str:
    python = os.environ.get(f"{package.upper()}_PYTHON", sys.executable)
    if subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode != 0:
        pytest.skip(f"{package} is not installed; {package.upper()}_PYTHON names a Python that has it")
    return python


def summaries(python: str, program: str, folder: Path, base_url: str) -> dict[str, str | None]:
    """Run a program over two texts, and return what it wrote."""
    folder.mkdir()
    pd.DataFrame({"text": ["one", "two"]}).to_parquet(folder / "docs.parquet")
    (folder / "program.py").write_text(program.replace("http://localhost:8000/v1", base_url))
    subprocess.run([python, "program.py"], cwd=folder, check=True, capture_output=True)
    frame = pd.read_parquet(folder / "summaries.parquet")
    return dict(zip(frame["text"], frame["summary"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("package", BEFORE)
def test_before_and_after_are_the_same(package: str, tmp_path: Path) -> None:
    """The server's answers name the prompt, the model and the parameters."""
    python = python_with(package)
    with SimulatedServer(model="my-model") as server:
        before = summaries(python, BEFORE[package], tmp_path / "before", server.base_url)
        after = summaries(sys.executable, AFTER, tmp_path / "after", server.base_url)
    assert before == after
    assert len(after) == 2


@pytest.mark.slow
def test_what_becomes_of_a_row_that_fails(tmp_path: Path) -> None:
    """As the tables say: distilabel loses the batch, Data Designer drops the row; here the other row is answered."""
    pythons = {package: python_with(package) for package in BEFORE}
    with SimulatedServer(model="my-model") as server:
        server.faults = [Fault(400, contains="two")]
        found = {
            package: summaries(python, BEFORE[package], tmp_path / package, server.base_url)
            for package, python in pythons.items()
        }
        after = summaries(sys.executable, AFTER, tmp_path / "after", server.base_url)
    assert found["distilabel"] == {"one": None, "two": None}
    assert found["data_designer"].keys() == {"one"}
    assert after["one"] is not None
    assert pd.isna(after["two"])
