"""Every command in the documents: those of nemo-llm-stage run, and the others exist with their options and files."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from doc_parts import ROOT, all_blocks, block_commands, span_commands

from nemo_llm_stage.cli import main
from nemo_llm_stage.testing import SimulatedServer

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
MARKERS = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}

HOW_BLOCKS_ARE_TESTED = {
    "python": "executed by test_docs.py",
    "py": "another package's program, run by test_migrating.py where that package is installed",
    "yaml": "read as job files by test_docs.py, those of PROVIDERS.md also run by client/test_providers.py",
    "sql": "executed by test_docs.py, with DuckDB in Spark's place",
    "sh": "each command by this file",
    "bash": "each command by this file; CI runs README's two",
    "text": "made by pipelines/cookbook/renew.py, compared by test_cookbook.py",
    "": "the tree of rooms, compared by test_docs.py",
}


def test_every_block_is_tested() -> None:
    """A block in another language needs a test of its own."""
    for block in all_blocks():
        assert block.language in HOW_BLOCKS_ARE_TESTED, f"{block.document}: {block.text[:60]}"
        if block.language == "text":
            assert block.document == "pipelines/README.md", block.text
        if block.language == "":
            assert block.text.startswith("nemo_llm_stage/\n"), block.text


def programs() -> list[tuple[str, list[str]]]:
    """The commands of other programs."""
    return [
        (document, words) for document, words in (*block_commands(), *span_commands()) if words[0] != "nemo-llm-stage"
    ]


@pytest.mark.parametrize(
    ("document", "words"), programs(), ids=lambda part: part if isinstance(part, str) else " ".join(part)[:60]
)
def test_a_command_of_another_program_is_right(document: str, words: list[str]) -> None:
    """Its options, extras and files are there. What is done in an environment V is done by hand, with a real vLLM."""
    if any(re.search(r"\bV\b", word) for word in words):
        return
    words = [word.removeprefix(".venv/bin/").removeprefix(".venv-curator/bin/") for word in words]
    if words[0].startswith("NEMO_FUZZ_S="):
        words = words[1:]
    CHECKS[words[0] if not words[0].startswith("bench_") else "python"](words, document)


def check_pip(words: list[str], _: str) -> None:
    assert words[1] == "install"
    if words[2].startswith(("distilabel", "data-designer")):
        return  # test_migrating.py
    for word in words[2:]:
        for extra in re.findall(r"\[([\w,]+)\]", word):
            assert set(extra.split(",")) <= EXTRAS.keys(), extra
    assert {word for word in words[2:] if word.startswith("-")} <= {"-q", "-e"}


def check_pytest(words: list[str], _: str) -> None:
    options = iter(words[1:])
    for word in options:
        if word == "-n":
            assert next(options) == "auto"
        elif word == "-m":
            assert set(re.findall(r"\w+", next(options))) - {"and", "not", "or"} <= MARKERS
        else:
            assert (ROOT / word).exists(), word


def check_python(words: list[str], _: str) -> None:
    """A script of the repository, `-m venv`, or a server that others make."""
    if words[1:3] in (["-m", "venv"], ["-m", "sglang.launch_server"]):
        return
    name, *options = words if words[0].endswith(".py") else words[1:]
    script = next(path for path in (ROOT / name, ROOT / "benchmarks" / name) if path.exists())
    source = script.read_text() + (ROOT / "benchmarks" / "_report.py").read_text()
    for option in options:
        assert not option.startswith("-") or f'"{option}"' in source, option
        assert not re.fullmatch("[a-z_]+", option) or f'"{option}"' in source, option


def check_ray(words: list[str], _: str) -> None:
    """By Ray's own command line."""
    from ray.scripts.scripts import cli

    command: click.Command = cli
    rest = words[1:]
    while isinstance(command, click.Group):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_parser(click.Context(command)).parse_args(rest)
    if "--runtime-env-json" in rest:
        from ray.runtime_env import RuntimeEnv

        RuntimeEnv(**yaml.safe_load(rest[rest.index("--runtime-env-json") + 1]))


def check_kubectl(words: list[str], document: str) -> None:
    """The manifest is beside the document, and the secret is the one that it names."""
    manifest = ((ROOT / document).parent / "rayjob.yaml").read_text()
    if words[1] == "apply":
        assert words[2:] == ["-f", "rayjob.yaml"]
    else:
        assert words[1:4] == ["create", "secret", "generic"]
        key = words[5].removeprefix("--from-literal=").partition("=")[0]
        assert f"secretKeyRef: {{name: {words[4]}, key: {key}}}" in manifest


def check_sbatch(words: list[str], _: str) -> None:
    """The script takes a job file and a model; `cluster/test_submit.py` runs it."""
    script = next(word for word in words if word.endswith(".sbatch"))
    text = (ROOT / script).read_text()
    assert len(words) - words.index(script) - 1 == len(set(re.findall(r"^\w+=\$(\d)$", text, re.MULTILINE)))


def check_tools(words: list[str], _: str) -> None:
    """Ruff and mypy are set up in pyproject.toml; CI runs both."""
    assert words[0] in PROJECT["tool"]
    assert " ".join(words) in (ROOT / ".ci" / "run").read_text()


def check_file(words: list[str], _: str) -> None:
    assert (ROOT / words[1]).exists() or words[1] == "activate"


def check_variables(words: list[str], _: str) -> None:
    """Those that Ray reads."""
    import ray

    names = {word.partition("=")[0] for word in words[1:]}
    source = (Path(ray.__file__).parent / "_private" / "authentication_test_utils.py").read_text()
    assert all(name in source for name in names)


CHECKS: dict[str, Callable[[list[str], str], None]] = {
    "pip": check_pip,
    "pytest": check_pytest,
    "python": check_python,
    "python3": check_python,
    "ray": check_ray,
    "kubectl": check_kubectl,
    "sbatch": check_sbatch,
    "ruff": check_tools,
    "mypy": check_tools,
    "bash": check_file,
    "source": check_file,
    "export": check_variables,
}
"""Program → its check. A command of another program fails until there is one."""


ELSEWHERE = {
    "submit": "cluster/test_submit.py",
    "serve": "cluster/test_serve.py",
    "serve-local": "embedded/test_server.py",
}
"""Commands that other tests run: here only their words are read, as those of the tutorial, which test_docs.py runs."""

ORDERS = {"pause", "resume", "drain"}
"""They are refused where no job is running; control/test_orders.py has them followed."""


TUTORIAL = [
    words[1:]
    for document, words in block_commands()
    if document == "pipelines/README.md" and words[0] == "nemo-llm-stage" and "job.yaml" not in words
]


def own_commands() -> list[list[str]]:
    commands = [words[1:] for _, words in (*block_commands(), *span_commands()) if words[0] == "nemo-llm-stage"]
    return [list(words) for words in dict.fromkeys(map(tuple, commands))]


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(model="my-model") as server:
        yield server


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, server: SimulatedServer) -> Path:
    """A folder with a job file, and the outputs of three runs of it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "docs").mkdir()
    source = folder / "docs" / "a.parquet"
    pd.DataFrame({"text": [f"row {i}" for i in range(6)]}).to_parquet(source)
    for name in ("OUT", "OUT1", "OUT2", "out"):
        settings = {"input": str(source), "output": name, "output_column": "summary", "model": "my-model"}
        settings |= {"client": {"base_url": server.base_url}, "prompt": f"{name}: {{{{ text }}}}", "engine": "local"}
        (folder / "job.yaml").write_text(yaml.safe_dump(settings))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            result = CliRunner().invoke(main, ["run", "job.yaml", "--no-progress"])
        assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("words", own_commands(), ids=" ".join)
def test_a_command_runs(
    words: list[str], finished: Path, server: SimulatedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a finished job with that output, with a server at the place of the one it names."""
    command = main.commands[words[0]]
    if words[0] in ELSEWHERE or words in TUTORIAL or "auto" in words:
        command.make_parser(click.Context(command)).parse_args([word for word in words[1:] if word != "--help"])
        return
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROWSER", "true")  # the program of that name
    monkeypatch.setenv("OLLAMA_HOST", server.base_url.removesuffix("/v1"))
    result = CliRunner().invoke(main, list(as_here(words, server.base_url)))
    assert result.exit_code == (2 if words[0] in ORDERS else 0), result.output
    assert (words[0] in ORDERS) == ("no run is in progress in 'OUT'" in result.output)


def as_here(words: list[str], base_url: str) -> Iterator[str]:
    """The words with what stands for something in its place."""
    places = {"FOLDER": ".", "KIND": "rate_limit", "http://localhost:8000/v1": base_url}
    for word in words:
        if word == ">":
            return
        yield places.get(word, word)
    if words[0] == "push":
        yield "--dry-run"
    if words == ["init"]:
        yield "other.yaml"
    if words == ["preview"]:
        yield "job.yaml"
    if words[0] == "run" and "--input" in words:
        yield from ("--engine", "local", "--restart")
