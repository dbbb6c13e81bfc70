"""A pipeline script: a job whose settings are a literal in Python, with the options of `nemo-llm-stage run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from nemo_llm_stage.cli.command import CONTEXT
from nemo_llm_stage.cli.options import JobCommand, merged_settings
from nemo_llm_stage.cli.run import resuming, run_settings, show_options
from nemo_llm_stage.text import printable


def pipeline(description: str, *, demo_rows: int, **settings: Any) -> None:
    """
    Run a pipeline script: `settings` are its job; every option of ``nemo-llm-stage run`` overrides one of them.

    Args:
        description: Shown by ``--help``.
        demo_rows: Without ``--input``, the input is this many texts of this Python's own documentation.
        settings: As in a job file.
    """

    @click.command(help=description, cls=JobCommand, context_settings=CONTEXT)
    @click.option("--rows", type=int, default=demo_rows, show_default=True, help="Texts to use without --input.")
    @show_options
    def command(rows: int, progress: bool, restart: bool, takeover: bool, show_rows: int, **flags: Any) -> None:
        merged = merged_settings(settings, flags)
        is_demo = "input" not in merged
        if is_demo:
            merged["input"] = _python_docs(Path(f"{merged['output']}_input_{rows}.parquet"), rows)
            click.echo(printable(_demo_words(merged, rows)), err=True)
        command_line = resuming("python", sys.argv[0], "--rows", str(rows), **flags)
        run_settings(
            merged,
            "the pipeline",
            command_line,
            progress=progress,
            restart=restart,
            takeover=takeover,
            show_rows=show_rows,
        )
        if is_demo:
            from nemo_llm_stage.report.program import program

            click.echo(f"next     {program()} init   writes a job file for your own data and server")

    command(prog_name=Path(sys.argv[0]).name)


def _demo_words(settings: dict[str, Any], rows: int) -> str:
    """Say what is about to happen, in a line."""
    client = settings["client"]
    is_embedded = "local" in (client, client.get("type") if isinstance(client, dict) else None)
    model = "the embedded model, 135 million parameters on this machine's CPU" if is_embedded else "your server"
    return f"input    {rows:,} texts of this Python's documentation\nmodel    {model}\noutput   {settings['output']}"


def _python_docs(path: Path, rows: int) -> str:
    from nemo_llm_stage.embedded.corpus import write_python_docs

    if not path.exists():  # a resumed job needs the very same file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_python_docs(path, num_rows=rows)
    return str(path)
