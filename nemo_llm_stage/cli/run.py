"""`nemo-llm-stage run`: a whole job."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_llm_stage.cli.command import options
from nemo_llm_stage.cli.options import JobCommand, read_settings

if TYPE_CHECKING:
    from nemo_llm_stage.job.result import JobResult

show_options = options(
    "This run",
    click.option("--progress/--no-progress", default=True, help="Show progress on stderr."),
    click.option("--restart", is_flag=True, help="Discard the finished output and make it again."),
    click.option("--takeover", is_flag=True, help="Stop another run of the job, and take its place."),
    click.option("--show-rows", type=int, default=5, show_default=True, help="Rows of the output to show at the end."),
)


@click.command("run", cls=JobCommand)
@click.argument("job_file", required=False, type=click.Path(path_type=Path))
@show_options
def command(job_file: Path | None, progress: bool, restart: bool, takeover: bool, show_rows: int, **flags: Any) -> None:
    """
    Run a job: read the input, send every row to the server, and write the rows with the new column.

    The settings come from JOB_FILE (YAML), from the options, or from both; options win. Run the same job again to
    resume it: finished rows are not sent again.

    \b
    nemo-llm-stage run --input docs.parquet --output out \\
        --base-url http://localhost:8000/v1 --model my-model \\
        --prompt 'Summarize in one sentence: {{ text }}' --output-column summary
    """  # noqa: D301 - click's mark for a block that is not to be wrapped
    settings = read_settings(job_file, flags)
    source = str(job_file or "the command line")
    command_line = resuming("nemo-llm-stage", "run", *([str(job_file)] if job_file else []), **flags)
    run_settings(
        settings, source, command_line, progress=progress, restart=restart, takeover=takeover, show_rows=show_rows
    )


def resuming(*words: str, **flags: Any) -> str:
    """Return the command line of `words` and the given options, which resumes a job; without logins in URLs."""
    parts = list(words)
    for name, value in flags.items():
        option = "set" if name == "assignments" else name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(f"--{'' if value else 'no-'}{option}")
        elif value is not None:
            for one in value if isinstance(value, tuple) else (value,):
                parts += [f"--{option}", f"{one}"]
    return _LOGIN.sub("://", shlex.join(parts))


_LOGIN = re.compile(r"://[^/@\s]+@")
"""User and password of a URL."""


def run_settings(
    settings: dict[str, Any],
    source: str,
    command_line: str,
    *,
    progress: bool,
    restart: bool,
    takeover: bool,
    show_rows: int,
) -> None:
    """
    Run the job that `settings` describe; show a few rows and the summary.

    Args:
        settings: As in a job file.
        source: Names them in messages.
        command_line: What to run to resume the job.
        progress: Whether to show progress.
        restart: See `run_job`.
        takeover: See `run_job`.
        show_rows: Rows of the output to show at the end.
    """
    from nemo_llm_stage.config.load import make_config
    from nemo_llm_stage.report.console import PlainConsole
    from nemo_llm_stage.report.rows_table import sample
    from nemo_llm_stage.run import head, run_config

    config = make_config(settings, source)
    result = run_config(config, restart=restart, takeover=takeover, progress=progress, command=command_line)
    if show_rows > 0:
        PlainConsole().print(sample(head(config.output, show_rows), result.columns, result.output_columns))
    show_summary(result)


def show_summary(result: JobResult) -> None:
    """Print what a job's output holds and what the run took."""
    from nemo_llm_stage.report.console import PlainConsole
    from nemo_llm_stage.report.summary import summary

    PlainConsole().print(summary(result))
