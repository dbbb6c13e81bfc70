"""
The command line: `nemo-llm-stage`, also `python -m nemo_llm_stage`.

Turns words into a `JobConfig` and errors into one message and an exit code: 0 all rows accounted for, 1 the run broke,
2 the settings or the input are wrong. Heavy things are imported where a command needs them.
"""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import click

from nemo_llm_stage import __version__
from nemo_llm_stage.cli.options import CONTEXT, EXIT_RUN, Command, Commands, job_options, merged_settings, options
from nemo_llm_stage.errors import ConfigError

if TYPE_CHECKING:
    from nemo_llm_stage.job.result import JobResult


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="nemo-llm-stage")
def main() -> None:
    """Add LLM-generated columns to a dataset of any size."""


_SHOW_OPTIONS = options(
    "This run",
    click.option("--progress/--no-progress", default=True, help="Show progress on stderr."),
    click.option("--restart", is_flag=True, help="Throw finished output away and make it anew."),
    click.option("--show-rows", type=int, default=5, show_default=True, help="Rows of the output to show at the end."),
)


@main.command()
@click.argument("job_file", required=False, type=click.Path(path_type=Path))
@job_options
@_SHOW_OPTIONS
def run(job_file: Path | None, progress: bool, restart: bool, show_rows: int, **flags: Any) -> None:
    """
    Run a job: read the input, ask the server for every row, write the rows with the new column.

    The settings come from JOB_FILE (YAML), from the options, or both; options win. Running the same job again goes on
    where it stopped: what is committed is not asked again.

    \b
    nemo-llm-stage run --input docs.parquet --output out \\
        --base-url http://localhost:8000/v1 --model my-model \\
        --prompt 'Summarize in one sentence: {{ text }}' --output-column summary
    """  # noqa: D301 - click's mark for a block that is not to be wrapped
    from nemo_llm_stage.config.load import read_job_file

    settings = read_job_file(job_file) if job_file else {}
    _run(
        merged_settings(settings, flags),
        str(job_file or "the command line"),
        progress=progress,
        restart=restart,
        show_rows=show_rows,
    )


def pipeline(description: str, *, demo_rows: int, **settings: Any) -> None:
    """
    Run a pipeline script: `settings` are its job, and every option of ``nemo-llm-stage run`` overrides one of them.

    Args:
        description: Shown by ``--help``.
        demo_rows: Without ``--input``, as many texts of this Python's own documentation are the input.
        settings: As in a job file.
    """

    @click.command(help=description, cls=Command, context_settings=CONTEXT)
    @click.option("--rows", type=int, default=demo_rows, show_default=True, help="Texts, where no --input is given.")
    @job_options
    @_SHOW_OPTIONS
    def command(rows: int, progress: bool, restart: bool, show_rows: int, **flags: Any) -> None:
        merged = merged_settings(settings, flags)
        if "input" not in merged:
            merged["input"] = _python_docs(Path(f"{merged['output']}_input_{rows}.parquet"), rows)
        _run(merged, "the pipeline", progress=progress, restart=restart, show_rows=show_rows)

    command(prog_name=Path(sys.argv[0]).name)


@main.command()
@click.argument("job_file", required=False, type=click.Path(path_type=Path))
@options(
    "This look",
    click.option("-n", "--rows", type=click.IntRange(1), default=5, show_default=True, help="How many rows."),
    click.option("--dry-run", is_flag=True, help="Render the prompts and ask nobody."),
    click.option("--full", is_flag=True, help="Show long texts to their end."),
    click.option("--price-input", type=float, help="Of a million input tokens, to estimate the cost."),
    click.option("--price-output", type=float, help="Of a million output tokens."),
)
@job_options
def preview(
    job_file: Path | None,
    rows: int,
    dry_run: bool,
    full: bool,
    price_input: float | None,
    price_output: float | None,
    **flags: Any,
) -> None:
    """
    Look before you run: the exact prompts of a few rows spread over the dataset, and what they are answered.

    Takes what `run` takes, writes nothing, and estimates tokens, time and cost of all rows from the few.
    """
    from rich.console import Console

    from nemo_llm_stage.config.load import make_config, read_job_file
    from nemo_llm_stage.job.preview import preview_job
    from nemo_llm_stage.report.preview_panels import estimates, row_panel

    settings = read_job_file(job_file) if job_file else {}
    config = make_config(merged_settings(settings, flags), str(job_file or "the command line"))
    seen = preview_job(config, rows, is_dry=dry_run)
    console = Console()
    for row in seen.rows:
        title = "a row" if row.number is None else f"row {row.number + 1:,} of {seen.num_rows:,}"
        console.print(row_panel(title, row.columns, is_dropped=row.is_dropped, is_full=full))
    if dry_run or not seen.rows:
        console.print(f"{seen.num_rows:,} rows{'' if seen.is_exact else ' or so'} in all; nobody was asked.")
        return
    results = [[column.result for column in row.columns if column.result is not None] for row in seen.rows]
    console.print(
        estimates(
            results,
            seen.num_rows,
            is_exact=seen.is_exact,
            max_concurrent_requests=seen.max_concurrent_requests,
            price_input=price_input,
            price_output=price_output,
        )
    )


@main.command()
@click.argument("job_file", default="job.yaml", type=click.Path(path_type=Path))
def init(job_file: Path) -> None:
    """Write a commented JOB_FILE [job.yaml] that runs as it is, and a few rows for it."""
    from nemo_llm_stage.config.starter import write_starter

    rows = write_starter(job_file)
    click.echo(f"{job_file} and {rows} are written. Next: nemo-llm-stage preview {job_file}")


@main.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors."""
    import json

    from nemo_llm_stage.config.load import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@main.command()
@click.argument("output")
@click.option("--rows", is_flag=True, help="Also read input and output again, and compare them row by row.")
def verify(output: str, rows: bool) -> None:
    """Prove that every row of a job's input is in OUTPUT exactly once; exit code 1 if not."""
    from rich.console import Console

    from nemo_llm_stage.report.summary import verification_table
    from nemo_llm_stage.run import verify_output

    verification = verify_output(output, compares_rows=rows)
    Console().print(verification_table(verification, output))
    sys.exit(0 if verification.is_complete else EXIT_RUN)


@main.command("retry-failed")
@click.argument("output")
@click.option("--kind", multiple=True, help="Only rows that failed so, e.g. timeout; may be given more than once.")
@click.option("--progress/--no-progress", default=True, help="Show progress on stderr.")
def retry_failed(output: str, kind: tuple[str, ...], progress: bool) -> None:
    """Ask only the failed rows of the job in OUTPUT again, and put what they come to in their places."""
    from nemo_llm_stage.run import retry_output

    _show_summary(retry_output(output, kind, progress=progress))


@main.command("serve-local")
@click.option(
    "--gguf", type=click.Path(path_type=Path), help="Model file [SmolLM2-135M-Instruct, fetched once, 98 MB]."
)
@click.option("--port", type=int, default=8080, show_default=True, help="0 takes a free one.")
def serve_local(gguf: Path | None, port: int) -> None:
    """Serve a small real model on this machine's CPU until Ctrl-C, with an OpenAI-compatible API."""
    from nemo_llm_stage.embedded.local_server import serve_forever

    serve_forever(gguf, port=port)


class _SimulateServer(Command):
    """Has an option for each field of `ServerConfig`, with that field's own words; looked up when they are needed."""

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        from nemo_llm_stage.testing.simulator.config import ServerConfig

        return [*_options_of(ServerConfig), *super().get_params(context)]


def _options_of(config: type[Any]) -> list[click.Parameter]:
    hints = get_type_hints(config)
    words = dict(re.findall(r"^ {4,}(\w+): (.+?)(?=^ {4,}\w+: |\Z)", config.__doc__ or "", re.MULTILINE | re.DOTALL))
    options: list[click.Parameter] = []
    for item in fields(config):
        kinds = get_args(hints[item.name]) or (hints[item.name],)
        flag = f"--{item.name.replace('_', '-')}"
        is_choice = isinstance(kinds[0], str)
        shown = "" if item.default is None or kinds[0] is bool else f" [{item.default}]"
        options.append(
            click.Option(
                [f"{flag}/--no-{flag[2:]}" if kinds[0] is bool else flag],
                type=click.Choice(kinds) if is_choice else kinds[0],
                default=item.default if kinds[0] is bool else None,
                multiple=any(get_origin(kind) is tuple for kind in kinds),
                help=" ".join(words.get(item.name, "").split()) + shown,
            )
        )
    return options


@main.command("simulate-server", cls=_SimulateServer)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8000, show_default=True, help="0 takes a free one.")
@click.option("--fault", multiple=True, help="KIND[:RATE][@TEXT], e.g. 429:0.2 or exit@poison; may be given again.")
def simulate_server(host: str, port: int, fault: tuple[str, ...], **settings: Any) -> None:
    """Serve answers without a model until Ctrl-C: an OpenAI-compatible server to try jobs, limits and faults on."""
    from nemo_llm_stage.testing import Fault, ServerConfig, serve

    config = ServerConfig(**{name: value for name, value in settings.items() if value is not None and value != ()})
    faults = [Fault.of(text) for text in fault]
    try:
        serve(config, host, port, faults=faults, on_ready=lambda url: click.echo(f"{url}  model {config.models[0]!r}"))
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}.") from error


@main.command()
@click.option("--rows", type=int, default=100, show_default=True, help="How many texts.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A .parquet or .jsonl file.")
def corpus(rows: int, output: Path) -> None:
    """Write real texts to try a job on: the documentation of this Python's standard library (PSF licence)."""
    from nemo_llm_stage.embedded.corpus import write_python_docs

    click.echo(f"{output}: {write_python_docs(output, num_rows=rows)} rows")


def _run(settings: dict[str, Any], source: str, *, progress: bool, restart: bool, show_rows: int) -> None:
    from rich.console import Console

    from nemo_llm_stage.config.load import make_config
    from nemo_llm_stage.report.summary import sample
    from nemo_llm_stage.run import head, run_config

    config = make_config(settings, source)
    result = run_config(config, restart=restart, progress=progress)
    console = Console()
    if show_rows > 0:
        console.print(sample(head(config.output, show_rows), result.columns, result.output_columns))
    _show_summary(result)


def _show_summary(result: JobResult) -> None:
    from rich.console import Console

    from nemo_llm_stage.report.summary import summary

    Console().print(
        summary(
            result.counters,
            output=result.output,
            num_partitions=result.num_partitions,
            elapsed_s=result.elapsed_s,
            num_rows_before=result.num_rows_before,
            left_out=result.left_out,
        )
    )


def _python_docs(path: Path, rows: int) -> str:
    from nemo_llm_stage.embedded.corpus import write_python_docs

    if not path.exists():  # a resumed job wants the very same file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_python_docs(path, num_rows=rows)
    return str(path)
