"""`nemo-llm-stage corpus`: real texts to try a job on."""

from __future__ import annotations

from pathlib import Path

import click

from nemo_llm_stage.cli.command import Command
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.text import printable


@click.command("corpus", cls=Command)
@click.option("--rows", type=click.IntRange(1), default=100, show_default=True, help="How many texts.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A .parquet or .jsonl file.")
def command(rows: int, output: Path) -> None:
    """Write real texts to try a job on: the documentation of this Python's standard library (PSF licence)."""
    from nemo_llm_stage.embedded.corpus import write_python_docs

    if output.exists():
        raise ConfigError(f"{str(output)!r} already exists; choose another name.")
    num_rows = write_python_docs(output, num_rows=rows)
    all_of_them = f", which are all that this Python has ({rows:,} were wanted)" if num_rows < rows else ""
    click.echo(printable(f"{output}: {num_rows:,} rows{all_of_them}"))
