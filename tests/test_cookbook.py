"""The cookbook says what the pipelines' settings say, with rows that a model has answered."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from nemo_llm_stage.testing import SimulatedServer, expected_answer

SCRIPT = Path(__file__).parents[1] / "pipelines" / "cookbook" / "renew.py"


@pytest.fixture(scope="module")
def renew() -> ModuleType:
    spec = importlib.util.spec_from_file_location("renew", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cookbook_is_made_from_the_settings_as_they_are(renew: ModuleType) -> None:
    """A changed prompt needs a row that was answered with it; see `pipelines/cookbook/renew.py --help`."""
    readme = renew.README.read_text()
    assert renew.text_with(readme) == readme, "renew it with `python pipelines/cookbook/renew.py --text`"


def test_every_pipeline_has_an_entry(renew: ModuleType) -> None:
    """With all of its columns, and an input that is among the texts."""
    answers = json.loads(renew.ANSWERS.read_text())
    assert list(answers.keys()) == renew.scripts()
    for script, answer in answers.items():
        settings = renew.settings_of(script)
        columns = [column["output_column"] for column in settings.get("columns", [settings])]
        assert list(answer["row"]) == ["id", "text", *columns]
        assert f"### {script}" in renew.README.read_text()


def test_no_answer_is_a_simulated_servers(renew: ModuleType) -> None:
    """Those hold a fingerprint of the request."""
    fingerprint = expected_answer("x").split()[0]
    assert re.fullmatch(r"\[[0-9a-f]{12}\]", fingerprint)
    assert not re.search(r"\[[0-9a-f]{12}\]", renew.ANSWERS.read_text())


@pytest.mark.slow
def test_a_pipeline_is_run_for_its_row(renew: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here on a simulated server, whose answers nothing keeps."""
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parents[2]))
    with SimulatedServer(model="my-model") as server:
        row = renew.answered_row("translate.py", server.base_url, "my-model")
    assert set(row) == {"id", "text", "french"}
    assert len(row["text"]) <= renew.MAX_CHARS
