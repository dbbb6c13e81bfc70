"""`nemo-llm-stage serve-local`: the embedded model as a server."""

from __future__ import annotations

from pathlib import Path

import click

from nemo_llm_stage.cli.command import Command


@click.command("serve-local", cls=Command)
@click.option(
    "--gguf", type=click.Path(path_type=Path), help="Model file [SmolLM2-135M-Instruct, downloaded once, 98 MB]."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
def command(gguf: Path | None, port: int) -> None:
    """Serve a small real model on this machine's CPU until Ctrl-C, with an OpenAI-compatible API."""
    from nemo_llm_stage.embedded.local_server import serve_forever

    serve_forever(gguf, port=port)
