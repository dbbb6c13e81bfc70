"""`nemo-llm-stage completion`: the script that lets a shell complete commands, options and their values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from nemo_llm_stage.cli.command import Command

_NAME = "nemo-llm-stage"
_VARIABLE = "_NEMO_LLM_STAGE_COMPLETE"


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """
    Print the script that lets SHELL complete commands and options.

    \b
    bash, in ~/.bashrc:                   eval "$(nemo-llm-stage completion bash)"
    zsh, in ~/.zshrc:                     eval "$(nemo-llm-stage completion zsh)"
    fish, in ~/.config/fish/config.fish:  nemo-llm-stage completion fish | source
    """  # noqa: D301 - click's mark for a block that is not to be wrapped
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(context.find_root().command, {}, _NAME, _VARIABLE).source())
