"""`nemo-llm-stage schema`: the JSON Schema of job files."""

from __future__ import annotations

import click

from nemo_llm_stage.cli.command import Command


@click.command("schema", cls=Command)
def command() -> None:
    """Print the JSON Schema of job files, for completion in editors."""
    import json

    from nemo_llm_stage.config.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
