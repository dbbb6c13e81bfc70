"""`nemo-llm-stage simulate-server`: a server without a model."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

import click

from nemo_llm_stage.cli.command import Command, port_option
from nemo_llm_stage.errors import ConfigError


class _SimulateServer(Command):
    """Has an option for each field of `ServerConfig`, with that field's words. They are made when they are needed."""

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


@click.command("simulate-server", cls=_SimulateServer)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@port_option(default=8000)
@click.option("--fault", multiple=True, help="KIND[:RATE][@TEXT], e.g. 429:0.2 or exit@poison. May be repeated.")
def command(host: str, port: int, fault: tuple[str, ...], **settings: Any) -> None:
    """Serve answers without a model until Ctrl-C: an OpenAI-compatible server to try jobs, limits and faults on."""
    from nemo_llm_stage.testing import Fault, ServerConfig, serve

    config = ServerConfig(**{name: value for name, value in settings.items() if value is not None and value != ()})
    faults = [Fault.of(text) for text in fault]
    try:
        serve(config, host, port, faults=faults, on_ready=lambda url: click.echo(f"{url}  model {config.models[0]!r}"))
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}.") from error
