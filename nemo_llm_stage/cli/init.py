"""`nemo-llm-stage init`: a job file to start from."""

from __future__ import annotations

from pathlib import Path

import click

from nemo_llm_stage.cli.command import Command
from nemo_llm_stage.text import printable


@click.command("init", cls=Command)
@click.argument("job_file", default="job.yaml", type=click.Path(path_type=Path))
def command(job_file: Path) -> None:
    """Write a commented job file that runs as it is, and a few rows for it. JOB_FILE is job.yaml by default."""
    from nemo_llm_stage.config.starter import write_starter

    rows = write_starter(job_file)
    click.echo(printable(f"Wrote {job_file} and {rows}. Next: nemo-llm-stage preview {job_file}"))
