"""`nemo-llm-stage init`: a job file to start from, about the user's own data and server where there are some."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_llm_stage.cli.command import Command
from nemo_llm_stage.errors import ConfigError, LLMStageError
from nemo_llm_stage.text import one_line, printable

if TYPE_CHECKING:
    from nemo_llm_stage.cli.nearby import FoundServer
    from nemo_llm_stage.cli.own_data import OwnData
    from nemo_llm_stage.config.starter_tasks import Task

_EXAMPLE_CHARS = 48


@click.command("init", cls=Command)
@click.argument("job_file", default="job.yaml", type=click.Path(path_type=Path))
@click.option("--input", "inputs", help="Parquet, JSONL, CSV or Arrow: a file, a pattern in quotes, a folder or a URL.")
@click.option("--column", help="The column that the prompt uses.")
@click.option("--base-url", help="The server's address, e.g. http://localhost:8000/v1.")
@click.option("--model", help="The model's name on the server.")
@click.option("--api-key-env", help="Name of the environment variable that holds the key.")
@click.option("--client", type=click.Choice(["http", "local"]), help="A server, or the embedded model.")
@click.option("--prompt", help="The prompt, a template over the columns, e.g. 'Translate to French: {{ text }}'.")
@click.option("--output-column", help="Name of the column to add.")
@click.option("--yes", is_flag=True, help="Ask nothing: take the first offer for what no option says.")
def command(job_file: Path, yes: bool, **given: Any) -> None:
    """
    Write a commented job file that runs as it is. JOB_FILE is job.yaml by default.

    Asks for the file, the column and the server; offers the files in this folder and the servers that run on this
    machine (Ollama, llama.cpp, vLLM, SGLang, LM Studio). Asks nothing where an option gives the answer, where stdin is
    no terminal, and with --yes. Without a file of your own the job runs on eight sample texts.
    """
    from nemo_llm_stage.client.secret import check_variable
    from nemo_llm_stage.config.starter import Starter, write_starter

    if job_file.exists():
        raise ConfigError(f"{str(job_file)!r} already exists; choose another name.")
    if given["api_key_env"]:
        check_variable(given["api_key_env"], "--api-key-env")
    answers = Answers(given, may_ask=not yes and sys.stdin.isatty())
    inputs = answers.input()
    data = _look_at_data(inputs) if inputs else None
    column = answers.column(data) if data else ""
    server = answers.server()
    task = answers.task(data, column, is_embedded=server is None)
    starter = Starter(input=inputs, task=task)
    if server is not None:
        model = answers.model(server)
        limit = server.kind.max_concurrent_requests
        starter = replace(
            starter,
            base_url=server.base_url,
            model=model,
            api_key_env=server.api_key_env,
            max_concurrent_requests=limit,
        )
    rows = write_starter(job_file, starter)
    click.echo(printable("\n".join(_farewell(job_file, starter, rows))))


def _farewell(job_file: Path, starter: Any, rows: Path | None) -> list[str]:
    where = "the embedded model" if starter.base_url is None else f"{starter.model} at {starter.base_url}"
    about = "" if rows is None else ", which holds eight short texts"
    from nemo_llm_stage.report.program import program

    run = f"{program()} run {job_file}"
    is_too_small = starter.base_url is None and rows is None
    note = ["", "note: the embedded model shows that the job runs; it is too small for good answers about your texts."]
    return [
        f"Wrote {job_file}.",
        f"  input    {starter.input or rows}{about}",
        f"  server   {where}",
        f"  adds     the column {starter.task.output_column}",
        "Next:",
        f"  {program()} preview {job_file}   shows prompts and answers of a few rows",
        f"  {run}       runs the job",
        *(note if is_too_small else []),
    ]


@dataclass(frozen=True, slots=True)
class Answers:
    """
    What the user wants, from the options or asked.

    Attributes:
        given: The options.
        may_ask: Whether somebody is there to answer.
    """

    given: Mapping[str, Any]
    may_ask: bool

    def input(self) -> str:
        """Return the input; empty for the sample texts."""
        from nemo_llm_stage.cli.own_data import data_files

        if self.given["inputs"]:
            return str(self.given["inputs"])
        if not self.may_ask:
            return ""
        offers = {name: name for name in data_files(Path.cwd())} | {"": "eight sample texts"}
        return self._choose("Which data? A number, or another path, pattern or URL", offers, _look_at_data)

    def server(self) -> FoundServer | None:
        """
        Return the server; None for the embedded model.

        Raises:
            ConfigError: The address that is given does not answer, and no model is given either.
        """
        from nemo_llm_stage.cli.nearby import find_servers, server_of_environment

        if self.given["client"] == "local":
            return None
        if self.given["base_url"]:
            return self._look_at(self.given["base_url"])
        found = find_servers()
        if not self.may_ask:
            if self.given["client"] == "http" and not found:
                raise ConfigError("no server runs at the usual ports of this machine; give --base-url.")
            return found[0] if found else None
        named = server_of_environment()
        servers = {server.base_url: server for server in [*found, *([named] if named else [])]}
        offers = {url: f"{server.kind.name} at {url}, {_some(server.models)}" for url, server in servers.items()}
        offers[""] = "the embedded model, small, on this machine's CPU"
        url = self._choose("Which server? A number, or another address", offers, self._look_at)
        return servers.get(url) or self._look_at(url) if url else None

    def model(self, server: FoundServer) -> str:
        """Return the model to ask."""
        if self.given["model"]:
            return str(self.given["model"])
        if not server.models:
            raise ConfigError(f"{server.base_url} lists no models; give --model.")
        if not self.may_ask or len(server.models) == 1:
            return server.models[0]
        return self._choose("Which model? A number, or another name", {name: name for name in server.models[:8]})

    def column(self, data: OwnData) -> str:
        """
        Return the column that the prompt uses.

        Raises:
            InputError: The one that is given is not there.
        """
        names = [*data.texts] or [*data.columns]
        column = self.given["column"]
        if not column and self.may_ask and not self.given["prompt"] and len(names) > 1:
            width = max(map(len, names))
            offers = {name: f"{name:<{width}}  {one_line(data.texts.get(name, ''), _EXAMPLE_CHARS)}" for name in names}
            column = self._choose("Which column? A number, or another name", offers, data.check)
        if column:
            data.check(column)
        return column or names[0]

    def task(self, data: OwnData | None, column: str, *, is_embedded: bool) -> Task:
        """
        Return what is asked about each row; without data about the sample texts.

        Raises:
            ConfigError: The prompt is no template, or uses a column that is not there; or the output column is there.
        """
        from nemo_llm_stage.config.starter_tasks import TOPIC, Task, first_task
        from nemo_llm_stage.prompt import Prompt

        task = TOPIC if data is None else first_task(column, is_embedded=is_embedded)
        taken, wanted = ("id", "text") if data is None else data.columns, self.given["output_column"]
        if self.given["prompt"]:
            task = Task(output_column="answer", prompt=self.given["prompt"])
            Prompt(task.prompt).check_columns(taken)
        if wanted in taken:
            raise ConfigError(f"the input already has a column {wanted!r}; choose another --output-column.")
        free = f"{task.output_column}_2" if task.output_column in taken else task.output_column
        return replace(task, output_column=wanted or free)

    def _look_at(self, url: str) -> FoundServer:
        from nemo_llm_stage.cli.nearby import look_at, unseen_server

        try:
            return look_at(url, self.given["api_key_env"])
        except ConfigError as error:
            if not self.given["model"]:
                raise ConfigError(f"{error} To write the job file all the same, give --model too.") from error
            click.echo(printable(f"note: {error}"), err=True)
            return unseen_server(url, self.given["api_key_env"])

    def _choose(
        self, question: str, offers: Mapping[str, str], check: Callable[[str], object] = lambda typed: None
    ) -> str:
        """Return the key of the offer whose number is typed, or the text that is typed, once `check` takes that."""
        keys = [*offers]
        click.echo()
        for number, words in enumerate(offers.values(), 1):
            click.echo(printable(f"  {number}  {words}"))
        while True:
            typed = str(click.prompt(question, default="1")).strip()
            if typed.isdecimal() and 1 <= int(typed) <= len(keys):
                return keys[int(typed) - 1]
            try:
                check(typed)
            except LLMStageError as error:
                click.echo(printable(f"  {error}"))
            else:
                return typed


def _some(models: Sequence[str]) -> str:
    more = f" and {len(models) - 1} more" if len(models) > 1 else ""
    return f"{models[0]}{more}" if models else "no models"


def _look_at_data(inputs: str) -> OwnData:
    from nemo_llm_stage.cli.own_data import look_at_data

    return look_at_data(inputs)
