"""`nemo-llm-stage serve-local`: the embedded model as a server."""

from __future__ import annotations

from pathlib import Path

import click

from nemo_llm_stage.cli.command import Command, port_option


@click.command("serve-local", cls=Command)
@click.option(
    "--gguf", type=click.Path(path_type=Path), help="Model file [SmolLM2-135M-Instruct, downloaded once, 98 MB]."
)
@port_option(default=8080)
def command(gguf: Path | None, port: int) -> None:
    """Serve a small real model on this machine's CPU until Ctrl-C, with an OpenAI-compatible API."""
    from nemo_llm_stage.embedded.local_server import serve_forever

    serve_forever(gguf, port=port)
