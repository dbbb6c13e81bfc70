"""
What commands have in common: how they end, how `--help` looks, and the options of a job.

The options' names are those of a job file's settings; what a setting means is `job.schema`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from nemo_llm_stage.errors import ConfigError, LLMStageError

EXIT_RUN, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130


class Command(click.Command):
    """Shows a user's mistake as one message, never as a traceback."""

    def invoke(self, context: click.Context) -> Any:
        """Run it, and end with a message and an exit code where it fails."""
        try:
            return super().invoke(context)
        except LLMStageError as error:
            click.secho(f"error: {error}", fg="red", err=True)
            context.exit(EXIT_INPUT if isinstance(error, ConfigError) else EXIT_RUN)
        except KeyboardInterrupt:
            click.echo("stopped; the same command goes on from here.", err=True)
            context.exit(EXIT_INTERRUPTED)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of their sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)
        if isinstance(self, click.Group):
            self.format_commands(context, formatter)


class Commands(Command, click.Group):
    """Likewise, for all commands of the group."""

    command_class = Command


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def options(section: str, *options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator for all `options`, which ``--help`` shows under the heading `section`."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
            command.__click_params__[-1].section = section
        return command

    return decorate


_JOB_OPTIONS = options(
    "What is asked of what",
    click.option("--input", multiple=True, help="Parquet or JSONL file, glob or folder; may be given more than once."),
    click.option("--output", help="Folder to write; made if it is not there."),
    click.option("--prompt", help="Jinja2 template over the columns, e.g. 'Summarize: {{ text }}'."),
    click.option("--prompt-file", help="File with the template, in place of --prompt."),
    click.option("--system-prompt", help="System message, likewise a template."),
    click.option("--output-column", help="Name of the column to add."),
    click.option("--model", help="The model's name on the server."),
    click.option("--messages-column", help="Column of chat turns that come before the prompt, or are all of it."),
    click.option("--images", multiple=True, help="Column of images; may be given more than once."),
    click.option(
        "--on-null", type=click.Choice(["skip", "error", "empty"]), help="Rows whose prompt uses a null [skip]."
    ),
    click.option("--skip-when", help="Expression; rows for which it is true are left unasked, e.g. \"lang != 'en'\"."),
    click.option("--keep-if", help="Expression over columns and answers; rows for which it is false are dropped."),
    click.option("--set", "assignments", multiple=True, help="Any setting of a job file: KEY.KEY=VALUE, in YAML."),
)
_ANSWER_OPTIONS = options(
    "What an answer must be",
    click.option("--choices", multiple=True, help="One of these: A,B,C, or given once for each."),
    click.option("--json-schema", help="JSON of this schema: a file."),
    click.option("--explode", is_flag=True, default=None, help="One row for each of --n answers."),
    click.option("--reasoning-column", is_flag=True, default=None, help="Add the model's thinking as a column."),
    click.option("--max-reasks", type=int, help="Times a row is asked again for a better answer [2]."),
    click.option(
        "--on-truncated",
        type=click.Choice(["accept", "error", "retry_longer", "continue"]),
        help="Answers cut off at --max-tokens [accept].",
    ),
    click.option(
        "--on-overflow",
        type=click.Choice(
            ["error", "shrink_output", "truncate_input_head", "truncate_input_tail", "truncate_input_middle"]
        ),
        help="Prompts longer than the model takes [error].",
    ),
)
_CLIENT_OPTIONS = options(
    "Which server, and how hard",
    click.option("--base-url", multiple=True, help="Server, e.g. http://host:8000/v1; several are asked in turn."),
    click.option(
        "--client", type=click.Choice(["http", "openai", "local"]), help="'local' runs the embedded model [http]."
    ),
    click.option("--gguf", help="Model file for --client local, in place of the embedded one."),
    click.option("--api-key-env", help="Environment variable that holds the key."),
    click.option("--api-key-file", help="File that holds the key."),
    click.option("--api-key-header", help="Header for the key, e.g. api-key for Azure [Authorization]."),
    click.option("--max-concurrent-requests", type=int, help="In flight at once, for each actor [64]."),
    click.option("--max-retries", type=int, help="Sends after the first, for failures that may pass [3]."),
    click.option("--base-delay", type=float, help="Seconds; first retry waits up to this, then twice as long … [1]."),
    click.option("--timeout", type=float, help="Seconds for one request [600]."),
    click.option("--connect-timeout", type=float, help="Seconds to connect [10]."),
    click.option(
        "--check-server/--no-check-server", default=None, help="Ask the server for the model before the job [check]."
    ),
)
_GENERATION_OPTIONS = options(
    "How it generates",
    click.option("--max-tokens", type=int, help="Most output tokens [2048]."),
    click.option("--temperature", type=float, help="0 is greedy [0]."),
    click.option("--top-p", type=float, help="Nucleus sampling mass [0.95]."),
    click.option("--top-k", type=int, help="For servers that take it."),
    click.option("--n", type=int, help="Answers per row; more than one makes the column a list [1]."),
    click.option("--seed", type=int, help="Same for every row [0]."),
    click.option("--stop", multiple=True, help="Text that ends the answer; may be given more than once."),
)


class _Number(click.ParamType[int | float]):
    """A whole number stays one: 5 rows and the fraction 0.05 are told apart by the point."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int | float:
        try:
            return int(value) if str(value).isdigit() else float(value)
        except ValueError:
            self.fail(f"{value!r} is no number", param, context)


_NUMBER = _Number()
_RUN_OPTIONS = options(
    "How the job runs",
    click.option(
        "--engine", type=click.Choice(["ray", "local"]), help="'local' runs in this process, without Ray [ray]."
    ),
    click.option("--actors", type=int, help="Ray actors, each with a limit of its own [1]."),
    click.option("--num-cpus-per-actor", type=float, help="Reserved in Ray [0.5]."),
    click.option("--address", help="Ray cluster to join [RAY_ADDRESS, else Ray is started here]."),
    click.option("--output-format", type=click.Choice(["parquet", "jsonl"]), help="[parquet]"),
    click.option("--rows-per-partition", type=int, help="Rows of one output file [about 64 files of 1,000 to 10,000]."),
    click.option("--max-failed-rows", type=_NUMBER, help="Stop at so many failed rows, or at this fraction [0.05]."),
    click.option("--keep-raw", is_flag=True, default=None, help="Keep raw answers: a new parser needs no request."),
    click.option("--give-up-after", type=float, help="Seconds a row is asked again after passing failures [21600]."),
    click.option("--scan-input", type=click.Choice(["auto", "full", "sample"]), help="JSONL read beforehand [auto]."),
    click.option(
        "--on-bad-input", type=click.Choice(["stop", "skip"]), help="A broken line or file; skip leaves it out [stop]."
    ),
    click.option("--flush-interval", type=float, help="Seconds of answers at risk on an object store [2]."),
)
_CLIENT_KEYS = {
    "base_url", "gguf", "api_key_env", "api_key_file", "api_key_header", "check_server",
    "max_concurrent_requests", "max_retries", "base_delay", "timeout", "connect_timeout",
}  # fmt: skip
_GENERATION_KEYS = {"max_tokens", "temperature", "top_p", "top_k", "n", "seed", "stop"}


def job_options(command: Any) -> Any:
    """Give `command` an option for every setting that is used often; `merged_settings` takes them."""
    for decorate in (_RUN_OPTIONS, _GENERATION_OPTIONS, _CLIENT_OPTIONS, _ANSWER_OPTIONS, _JOB_OPTIONS):
        command = decorate(command)
    return command


def merged_settings(settings: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return a job file's settings with the options that were given put over them.

    Raises:
        ConfigError: Options contradict each other, or one of ``--set`` is no assignment.
    """
    given = {name: _value(value) for name, value in flags.items() if value is not None and value != ()}
    assignments = given.pop("assignments", ())
    client = settings.get("client", {})
    client = {"type": client} if isinstance(client, str) else dict(client)
    if "client" in given:
        from nemo_llm_stage.config.clients import settings_of_type

        client = settings_of_type(client, given.pop("client"))
    client |= {name: given.pop(name) for name in sorted(_CLIENT_KEYS & given.keys())}
    generation = dict(settings.get("generation_config") or {})
    generation |= {name: given.pop(name) for name in sorted(_GENERATION_KEYS & given.keys())}
    answer = _answer(given.pop("choices", None), given.pop("json_schema", None))
    merged = {**settings, "client": client, "generation_config": generation, **answer, **given}
    if not assignments:
        return merged
    from nemo_llm_stage.config.load import override

    return override(merged, [assignments] if isinstance(assignments, str) else assignments)


def _answer(choices: str | list[str] | None, json_schema: str | None) -> dict[str, Any]:
    if choices is not None and json_schema is not None:
        raise ConfigError("give one of --choices and --json-schema.")
    if choices is not None:
        labels = [label.strip() for label in choices.split(",")] if isinstance(choices, str) else choices
        return {"answer": {"type": "choices", "choices": labels}}
    if json_schema is not None:
        return {"answer": {"type": "json", "schema_file": json_schema}}
    return {}


def _value(value: Any) -> Any:
    if isinstance(value, tuple):
        return value[0] if len(value) == 1 else list(value)
    return value
