"""One import line serves a user."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path

import nemo_llm_stage
from nemo_llm_stage import errors


def test_all_is_sorted_and_there() -> None:
    """Every public name can be imported from the top."""
    assert nemo_llm_stage.__all__ == sorted(nemo_llm_stage.__all__)
    assert all(hasattr(nemo_llm_stage, name) for name in nemo_llm_stage.__all__)


def test_a_name_that_is_not_there_is_told_as_of_any_module() -> None:
    """The package imports a name when it is asked for, and `dir` names all of them before."""
    assert not hasattr(nemo_llm_stage, "AsyncHTTPCleint")
    assert set(nemo_llm_stage.__all__) <= set(dir(nemo_llm_stage))


def test_public_names_have_docstrings() -> None:
    """The first thing a user reads in an editor."""
    for name in nemo_llm_stage.__all__:
        assert inspect.getdoc(getattr(nemo_llm_stage, name)), name


def test_every_request_error_has_a_kind_of_its_own() -> None:
    """Summaries group by it."""
    kinds = [cls.kind for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, errors.RequestError)]
    assert len(kinds) == len(set(kinds))


def test_the_version_is_written_once() -> None:
    """The package's own is the distribution's."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "nemo_llm_stage/__init__.py"
