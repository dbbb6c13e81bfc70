"""`nemo-llm-stage verify`: whether a job's output holds every row."""

from __future__ import annotations

import sys

import click

from nemo_llm_stage.cli.command import EXIT_RUN, Command


@click.command("verify", cls=Command)
@click.argument("output")
@click.option("--rows", is_flag=True, help="Also compare each row with the input; Parquet by DuckDB too, if installed.")
def command(output: str, rows: bool) -> None:
    """Check that every row of a job's input is in OUTPUT exactly once. The exit code is 1 if not, or not yet."""
    from nemo_llm_stage.job.state import is_live
    from nemo_llm_stage.report.console import PlainConsole
    from nemo_llm_stage.report.file_bar import file_bar
    from nemo_llm_stage.report.summary import verification_table
    from nemo_llm_stage.run import verify_output

    with file_bar("files read") as on_done:
        verification = verify_output(output, compares_rows=rows, on_done=on_done)
    PlainConsole().print(verification_table(verification, output, is_live=is_live(output)))
    sys.exit(0 if verification.is_complete else EXIT_RUN)
