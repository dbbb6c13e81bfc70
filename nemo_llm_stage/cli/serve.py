"""`nemo-llm-stage serve`: inference servers that stay up between jobs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from nemo_llm_stage.cli.command import Command
from nemo_llm_stage.errors import ConfigError

if TYPE_CHECKING:
    from nemo_llm_stage.servers.fleet import Fleet
    from nemo_llm_stage.serving import EndpointsFile

LOOK_S = 0.5
ENDS = (signal.SIGTERM, signal.SIGHUP)
"""Beside Ctrl-C."""


@click.command("serve", cls=Command)
@click.argument("servers_file", type=click.Path(path_type=Path))
@click.option(
    "--endpoints",
    type=click.Path(path_type=Path),
    default=Path("endpoints.txt"),
    show_default=True,
    help="File that names the healthy servers, one address a line; a job's base_url follows it.",
)
@click.option("--engine", type=click.Choice(["ray", "local"]), help="Where they run [local; ray with --address].")
@click.option("--address", envvar="RAY_ADDRESS", help="Ray cluster to join; auto for the one of this machine.")
@click.option("--set", "assignments", multiple=True, help="A setting of the file: KEY=VALUE. May be repeated.")
def command(
    servers_file: Path,
    endpoints: Path,
    engine: Literal["ray", "local"] | None,
    address: str | None,
    assignments: tuple[str, ...],
) -> None:
    """
    Start the servers that SERVERS_FILE (YAML) describes and keep them up until Ctrl-C or SIGTERM.

    The file has the settings of a job file's `servers`, or is a job file that has them. A server that dies is started
    again. Jobs use the servers with base_url: endpoints.txt, one after another or at once.
    """
    from nemo_llm_stage.config.load import override, read_job_file
    from nemo_llm_stage.config.servers import make_servers
    from nemo_llm_stage.report.progress.progress import Progress
    from nemo_llm_stage.serving import EndpointsFile, make_fleet

    settings = read_job_file(servers_file)
    servers = make_servers(override(_section(settings, servers_file), assignments), str(servers_file))
    fleet = make_fleet(servers, settings.get("model"), engine or ("ray" if address else "local"), address)
    for signum in ENDS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
            signal.signal(signum, _interrupt)
    file = EndpointsFile(endpoints)
    file.take()
    try:
        fleet.start()
        with Progress(title="servers") as shown:
            fleet.wait(shown.wait_for_servers, shown.note)
        click.echo(f"{len(fleet.urls)} of {fleet.num_servers} servers are up. Use them with base_url: {endpoints}")
        _keep(fleet, file)
    except KeyboardInterrupt:
        click.echo("ending the servers …")
    finally:
        try:
            file.write(())
        finally:
            fleet.close()


def _section(settings: Mapping[str, Any], source: Path) -> Mapping[str, Any]:
    section = settings.get("servers", settings)
    if not isinstance(section, Mapping):
        raise ConfigError(f"{source}: `servers` has no settings, e.g. `command: vllm serve org/model --port {{port}}`.")
    return section


def _keep(fleet: Fleet, file: EndpointsFile) -> None:
    waits, told = threading.Event(), ""
    while True:
        try:
            file.write(fleet.urls)
            told = ""
        except ConfigError as error:  # a full disk is no reason to end servers that jobs use
            if str(error) != told:
                told = str(error)
                _tell(told)
        fleet.check(_tell)
        waits.wait(LOOK_S)


def _tell(text: str) -> None:
    """Show a line; a terminal that is gone ends no server."""
    from nemo_llm_stage.report.console import PlainConsole

    PlainConsole(stderr=True).print(text, soft_wrap=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
