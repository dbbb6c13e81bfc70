"""What the documents say is true: their Python runs, their job files are valid, their links and rooms exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import duckdb
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

import nemo_llm_stage
from nemo_llm_stage import AsyncHTTPClient, LLMStage, run_job
from nemo_llm_stage.cli import main
from nemo_llm_stage.cli import reference as made
from nemo_llm_stage.config.load import make_config
from nemo_llm_stage.config.servers import make_servers
from nemo_llm_stage.testing import Fault, SimulatedServer

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    path
    for folder in ("", ".github", "nemo_llm_stage", "pipelines", "benchmarks", "tests")
    for path in sorted((ROOT / folder).glob("*.md"))
]
TEXT = "\n".join(path.read_text() for path in DOCUMENTS)
USING = (ROOT / "pipelines" / "README.md").read_text()
SOURCE = "\n".join(path.read_text() for path in (ROOT / "nemo_llm_stage").rglob("*.py"))
ROOMS = (ROOT / "nemo_llm_stage" / "README.md").read_text()


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


READING = blocks("python", USING[USING.index("## Reading the output") : USING.index("## When something fails")])


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job with one failed row of 20, and one that was cut off."""
    folder = tmp_path_factory.mktemp("job")
    rows = pd.DataFrame({"text": [f"row {i}" for i in range(20)], "limit": [1 if i == 7 else 900 for i in range(20)]})
    rows.to_parquet(folder / "docs.parquet")
    with SimulatedServer(model="my-model") as server:
        server.faults = [Fault(400, contains="row 3")]
        stage = LLMStage(
            client=AsyncHTTPClient(server.base_url),
            model="my-model",
            prompt="{{ text }}",
            output_column="summary",
            generation_config={"max_tokens": "{{ limit }}"},
        )
        run_job(stage=stage, input=folder / "docs.parquet", output=folder / "out", engine="local", progress=False)
    return folder


@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")  # of datasets, with pyarrow 25
@pytest.mark.parametrize("code", READING, ids=lambda code: code.split()[1])
def test_the_output_is_read(code: str, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each library finds the failed row, the one that was cut off, and the ten longest and dearest."""
    monkeypatch.chdir(output)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(code, names)
    nums = [len(names[name]) for name in ("rows", "failed", "cut_off", "longest", "dearest")]
    assert nums == [20, 1, 1, 10, 10]


def test_the_output_is_read_in_sql(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark's statements, by DuckDB in its place, which names the files in another way."""
    monkeypatch.chdir(output)
    statements = [line for block in blocks("sql") for line in block.splitlines()]
    files = "FROM 'out/*.parquet'"
    nums = [len(duckdb.sql(line.replace("FROM parquet.`out`", files)).fetchall()) for line in statements]
    assert nums == [1, 10, 10, 1]


@pytest.mark.parametrize(
    "code",
    [code for code in blocks("python") if code not in READING],
    ids=lambda code: code.strip().splitlines()[-1][:40],
)
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a simulated server at the place of the one they name."""
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"text": ["one", "two"]}).to_parquet("docs.parquet")
    with SimulatedServer(model="my-model") as server:
        exec(code.replace("http://localhost:8000/v1", server.base_url), {"__name__": "readme"})


@pytest.mark.parametrize("text", blocks("yaml"), ids=lambda text: text.splitlines()[0][:40])
def test_job_files_are_valid(text: str) -> None:
    """Every key is known; so are those of a section that stands alone."""
    settings = yaml.safe_load(text)
    if "servers" in settings and "input" not in settings:
        make_servers(settings["servers"], "the section")
    else:
        make_config(settings)


def test_the_first_two_shell_blocks_are_the_two_commands() -> None:
    """CI runs them from here; the scripts they name exist."""
    first, second = blocks("bash", (ROOT / "README.md").read_text())
    assert "pytest" in second
    script = re.search(r"python (pipelines/\S+)", first)
    assert script
    assert (ROOT / script[1]).exists()


def test_the_tree_of_rooms_is_the_packages() -> None:
    """Both ways."""
    tree = re.findall(r"^[├└]── (\S+?)/? ", ROOMS, re.MULTILINE)
    package = Path(nemo_llm_stage.__file__).parent
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= set(tree)
    assert all((package / name).exists() for name in tree)


def test_the_reference_is_made_from_the_code_as_it_is() -> None:
    """Settings, commands, columns, errors and names in Python."""
    assert made.PATH.read_text() == made.make_reference(), f"REFERENCE.md is stale; renew it with `{made.RENEW}`"


def test_every_command_and_option_named_exists() -> None:
    """Of the command line."""
    for command, rest in re.findall(r"nemo-llm-stage ([a-z-]+)((?:.*\\\n)*.*)", TEXT):
        assert command in main.commands, command
        parameters = main.commands[command].get_params(click.Context(main.commands[command]))
        known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
        assert set(re.findall(r"(?<![\w-])--[a-z-]+", rest.partition("`")[0])) <= known


def table_settings() -> list[str]:
    """The settings in code marks in the table of prompts and answers."""
    section = USING[USING.index("## Prompts and answers") : USING.index("## The output's columns")]
    return [line.replace("\\|", "|") for line in re.findall(r"^\|.*?\| `(\w+:.*?)`(?:,| \|)", section, re.MULTILINE)]


@pytest.mark.parametrize("text", table_settings())
def test_settings_in_the_table_are_valid(text: str) -> None:
    """Each line is one of a job file's."""
    settings = {"input": "a", "output": "b", "client": {"base_url": "http://x"}, "model": "m", "output_column": "c"}
    given = yaml.safe_load(text)
    if not {"prompt", "prompt_file", "messages", "messages_column"} & given.keys():
        settings["prompt"] = "{{ text }}"
    if "columns" in given:
        del settings["prompt"], settings["output_column"]
    make_config(settings | given)


def symptoms() -> list[tuple[str, str]]:
    """The headings and the texts of the entries of TROUBLESHOOTING.md."""
    entries = (ROOT / "pipelines" / "TROUBLESHOOTING.md").read_text().split("\n### ")[1:]
    return [(heading, text) for heading, _, text in (entry.partition("\n") for entry in entries)]


@pytest.mark.parametrize(("heading", "text"), symptoms(), ids=lambda text: text[:30])
def test_a_symptom_quotes_a_message_and_says_what_to_do(heading: str, text: str) -> None:
    """The message is the package's; what to do names a command, a setting or a document."""
    for words in re.findall('^"(.*)"$', heading):
        assert words in SOURCE, words
    assert re.search(r"`[^`]+`|\]\(", text)


def commands_in(block: str) -> list[list[str]]:
    """The words of each `nemo-llm-stage` command of a shell block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("nemo-llm-stage ")]


def test_the_readmes_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for the shell, in a folder with data, on a simulated server in the place of the one they name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    pd.DataFrame({"text": ["one", "two"]}).to_parquet("docs/a.parquet")
    commands = [words for block in blocks("sh", (ROOT / "README.md").read_text()) for words in commands_in(block)]
    assert [words[0] for words in commands] == ["init", "preview", "run", "run"]
    with SimulatedServer(model="my-model") as server:
        monkeypatch.setenv("OLLAMA_HOST", server.base_url.removesuffix("/v1"))
        for words in commands:
            here = [word.replace("http://localhost:8000/v1", server.base_url) for word in words]
            result = CliRunner().invoke(main, [*here, *(["--engine", "local"] if "--input" in words else [])])
            assert result.exit_code == 0, result.output
    assert pd.read_parquet("out")["summary"].notna().all()


def anchors_of(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_anchors_lead_to_headings() -> None:
    """In the document itself or another one."""
    for path in DOCUMENTS:
        for file, anchor in re.findall(r"\]\(([\w./-]*)#([^)]+)\)", path.read_text()):
            target = path.parent / file if file else path
            assert anchor in anchors_of(target), f"{path.name}: {file}#{anchor}"


def links() -> list[tuple[Path, str]]:
    return [(path, link) for path in DOCUMENTS for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())]


@pytest.mark.parametrize(("path", "link"), [item for item in links() if "://" not in item[1]], ids=str)
def test_links_lead_somewhere(path: Path, link: str) -> None:
    """Relative ones, from the document that holds them."""
    assert (path.parent / link).exists()


KNOWN_HOSTS = {
    # documents
    *("ray.io", "keepachangelog.com", "semver.org"),
    # servers in the recipes of PROVIDERS.md; client/test_providers.py runs each
    *("api.openai.com", "my-resource.openai.azure.com", "RESOURCE.openai.azure.com", "api.mistral.ai", "openrouter.ai"),
    *("generativelanguage.googleapis.com", "api.groq.com", "api.together.ai", "integrate.api.nvidia.com"),
    # examples
    *("localhost", "example.org", "head", "HEAD", "name", "node", "DRIVER", "collector", "{node_ip}"),
}
"""Hosts that were looked at by a person; a new one is looked at once and set here. No test goes to the network."""


def test_every_host_named_is_a_known_one() -> None:
    """A mistyped address would be found by nobody else."""
    for url in re.findall(r"https?://[^][ )`'\",>|]+", TEXT):
        assert url.split("/")[2].partition(":")[0] in KNOWN_HOSTS, url


def test_every_script_named_exists() -> None:
    """Of the benchmarks, the pipelines and the tests."""
    for name in re.findall(r"\b((?:benchmarks|pipelines|tests)/[\w/]+\.py)\b", TEXT):
        assert (ROOT / name).exists(), name


def test_every_pipeline_is_described() -> None:
    """In the table of pipelines."""
    assert {path.name for path in (ROOT / "pipelines").glob("*.py")} == set(
        re.findall(r"^\| `(\w+\.py)` ", USING, re.MULTILINE)
    )


def test_every_file_named_in_the_architecture_exists() -> None:
    """In the package, or from the root."""
    package = Path(nemo_llm_stage.__file__).parent
    for name in re.findall(r"`([a-z_]+(?:/[a-z_0-9]+)*\.py)`", ROOMS):
        assert (package / name).exists() or (ROOT / name).exists(), name


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of it, on a server that `init` finds by itself."""
    monkeypatch.chdir(tmp_path)
    (commands,) = blocks("sh", USING[USING.index("## Tutorial") : USING.index("## In a notebook")])
    with SimulatedServer(model="my-model") as server:
        monkeypatch.setenv("OLLAMA_HOST", server.base_url.removesuffix("/v1"))
        for command in commands.splitlines():
            result = CliRunner().invoke(main, command.split()[1:])
            assert result.exit_code == 0, f"{command}\n{result.output}"
    assert len(pd.read_parquet("job_output")) == 30
