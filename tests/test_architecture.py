"""Imports go one way, and each heavy dependency has its room."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import nemo_llm_stage

ROOT = Path(nemo_llm_stage.__file__).parent
BASE = {"advice", "core", "counters", "errors", "fields", "identity", "suggest", "text"}
ROWS = BASE | {"client", "prompt", "output"}
STAGE = ROWS | {"rows"}
CONFIG = STAGE | {"stage", "embedded", "servers"}
JOB = CONFIG | {"config", "dataset"}
WORKER = JOB | {"job"}
CLUSTER = WORKER | {"worker"}
MAY_IMPORT = {
    "client": BASE,
    "prompt": BASE,
    "output": BASE,
    "rows": ROWS,
    "stage": STAGE,
    "embedded": BASE,
    "servers": BASE,
    "config": CONFIG,
    "dataset": BASE,
    "job": JOB,
    "worker": WORKER,
    "cluster": CLUSTER,
    "report": CLUSTER | {"cluster"},
    "cli": CLUSTER | {"cluster", "report", "run", "serving", "testing"},
    "testing": BASE | {"client"},
}
FACADES = {
    ("stage/doors.py", "cluster"),
    ("stage/doors.py", "interactive"),
    ("job/result.py", "report"),
    ("job/preview.py", "report"),
}
"""`Stage.map` and `Stage.process` only hand over when they are called, and so do results that a notebook shows."""

HEAVY = {
    "ray": {"cluster"},
    "openai": {"client"},
    "httptools": {"client"},
    "tenacity": {"client"},
    "jinja2": {"prompt", "client", "report"},
    "xllamacpp": {"embedded"},
    "yaml": {"config"},
    "pydantic": {"config", "output", "cli"},
    "rich": {"report", "cli"},
    "click": {"cli"},
    "huggingface_hub": {"report"},
    "prometheus_client": {"report"},
    "opentelemetry": {"report"},
}


@cache
def imports(path: Path) -> tuple[str, ...]:
    return tuple(imports_of(path))


def imports_of(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    type_checking = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in type_checking:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


MODULES = [path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py"))]


@pytest.mark.parametrize("room", sorted({module.parts[0] for module in MODULES if len(module.parts) > 1}))
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    """Left may import right, never back."""
    back = [
        f"{module} imports {name}"
        for module in MODULES
        if module.parts[0] == room
        for name in imports(ROOT / module)
        if (other := _room_of(name)) not in {None, room} | MAY_IMPORT[room]
        if (module.as_posix(), other) not in FACADES
    ]
    assert not back, "\n".join(back)


def _room_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "nemo_llm_stage" and len(parts) > 1 else None


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_dependencies_stay_in_their_rooms(name: str) -> None:
    """One room knows Ray, one knows HTTP."""
    users = {module.parts[0]: str(module) for module in MODULES if name in _tops_of(ROOT / module)}
    assert {room: module for room, module in users.items() if room not in HEAVY[name]} == {}


@cache
def _tops_of(path: Path) -> frozenset[str]:
    return frozenset(name.partition(".")[0] for name in imports(path))


def test_importing_the_package_loads_nothing_heavy() -> None:
    """The clients, and what each name needs, are imported when the name is; a client needs no Arrow and no files."""
    code = (
        "import sys; from nemo_llm_stage import AsyncHTTPClient, AsyncOpenAIClient, OpenAIClient, PlainFormatter; "
        "heavy = 'ray', 'pandas', 'openai', 'pydantic', 'numpy', 'pyarrow', 'fsspec'; "
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


SAME_NAMES = {
    *("foreign", "json_text", "metrics", "orders", "pool", "schema", "servers", "source", "state", "status"),
    *("figures", "health", "host", "plan", "process", "summary", "trail", "words"),
}
"""Names that files in several rooms have; a further one would make the search for a file longer."""


def test_no_further_rooms_have_a_file_of_the_same_name() -> None:
    """A command of the CLI has the name of what it runs, and the simulator has names of its own."""
    names = [module.stem for module in MODULES if module.parts[0] not in {"cli", "testing"} and module.stem[0] != "_"]
    assert {name for name in names if names.count(name) > 1} == SAME_NAMES


def test_a_job_from_python_loads_nothing_that_it_does_not_need() -> None:
    """Each worker would pay for it: pydantic, pandas, Arrow's compute functions and the reader of CSV."""
    code = (
        "import sys, nemo_llm_stage; nemo_llm_stage.run_job; "
        "print([m for m in ('ray', 'pandas', 'pydantic', 'pyarrow.compute', 'pyarrow.csv') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
