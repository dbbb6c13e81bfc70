"""`nemo-llm-stage serve`: inference servers that stay up between jobs."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from nemo_llm_stage.cli.command import Command

if TYPE_CHECKING:
    from nemo_llm_stage.servers.fleet import Fleet

LOOK_S = 0.5


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
    model = settings.get("model") if "servers" in settings else None
    servers = make_servers(override(settings.get("servers", settings), assignments), str(servers_file))
    signal.signal(signal.SIGTERM, _interrupt)
    file = EndpointsFile(endpoints)
    file.write(())
    fleet = make_fleet(servers, model, engine or ("ray" if address else "local"), address)
    fleet.start()
    try:
        with Progress(title="servers") as shown:
            fleet.wait(shown.wait_for_servers, shown.note)
        click.echo(f"{len(fleet.urls)} of {fleet.num_servers} servers are up. Use them with base_url: {endpoints}")
        _keep(fleet, file)
    except KeyboardInterrupt:
        click.echo("ending the servers …")
    finally:
        fleet.close()
        file.write(())


def _keep(fleet: Fleet, file: Any) -> None:
    waits = threading.Event()
    while True:
        file.write(fleet.urls)
        fleet.check(lambda text: click.echo(text, err=True))
        waits.wait(LOOK_S)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
