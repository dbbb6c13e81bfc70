"""`nemo-llm-stage doctor`: can a job run here, and if not, why."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_llm_stage.cli.command import EXIT_RUN
from nemo_llm_stage.cli.options import JobCommand, read_settings
from nemo_llm_stage.text import printable

if TYPE_CHECKING:
    from nemo_llm_stage.cli.findings import Finding
    from nemo_llm_stage.config.job import JobConfig


@click.command("doctor", cls=JobCommand)
@click.argument("job_file", required=False, type=click.Path(path_type=Path))
def command(job_file: Path | None, **flags: Any) -> None:
    """
    Check that a job can run here: versions, extras, open files, the Ray cluster, and the server with its key and model.

    Give a JOB_FILE, or a server alone with --base-url and --model. Each line says ok or what to do; the exit code is 1
    if there is a problem. It sends a request for a few tokens, and writes nothing.
    """
    is_ok = True
    for finding in _findings(read_settings(job_file, flags), str(job_file or "the command line")):
        click.secho("ok       " if finding.is_ok else "problem  ", fg="green" if finding.is_ok else "red", nl=False)
        click.echo(f"{finding.name:<12}{printable(finding.text)}")
        is_ok = is_ok and finding.is_ok
    sys.exit(0 if is_ok else EXIT_RUN)


def _findings(settings: Mapping[str, Any], source: str) -> Iterator[Finding]:
    from nemo_llm_stage.cli.findings import cluster, extras, open_files, versions
    from nemo_llm_stage.client.governor.governor import START_LIMIT
    from nemo_llm_stage.config.load import make_config

    yield versions()
    if not settings.get("client") and len(settings) <= 1:
        yield extras()
        yield open_files(START_LIMIT)
        yield cluster(None, 1, 0.0)
        return
    is_server_only = not settings.keys() & {"input", "output", "prompt", "prompt_file", "messages_column", "columns"}
    placeholders = {"input": ".", "output": ".", "prompt": "-", "output_column": "x"} if is_server_only else {}
    config = make_config({**placeholders, **settings}, source)
    yield extras(_extras_of(config))
    num_processes = config.settings.planned_actors if config.settings.engine == "local" else 1
    yield open_files(config.max_concurrent_requests * num_processes)
    run = config.settings
    if run.engine == "ray":
        yield cluster(run.address, run.planned_actors, run.num_cpus_per_actor)
    yield from _servers(config)


def _servers(config: JobConfig) -> Iterator[Finding]:
    from nemo_llm_stage.cli.findings import Finding
    from nemo_llm_stage.cli.server_findings import server_findings
    from nemo_llm_stage.config.clients import ServerSettings
    from nemo_llm_stage.config.servers import has_servers

    for client, model in config.clients_and_models:
        if has_servers(client):
            yield _started(config)
        elif isinstance(client, ServerSettings):
            urls = client.base_url if isinstance(client.base_url, tuple) else (client.base_url or "",)
            yield from server_findings(client.make(), model or "", ", ".join(urls))
        else:
            yield Finding("server", "client: local starts the embedded model with the job")


def _started(config: JobConfig) -> Finding:
    """Return whether the program that the job starts as a server is here; on Ray its nodes must have it too."""
    from nemo_llm_stage.cli.findings import Finding

    assert config.servers is not None
    program, where = config.servers.command[0], "on every node" if config.settings.engine == "ray" else "here"
    if shutil.which(program) is None:
        return Finding("servers", f"there is no program {program!r} here; it must be {where}", is_ok=False)
    return Finding("servers", f"the job starts {config.servers.count} with {program!r}, which must be {where}")


def _extras_of(config: JobConfig) -> set[str]:
    from nemo_llm_stage.config.clients import LocalClientConfig
    from nemo_llm_stage.dataset.store_calls import EXTRA_OF

    inputs = (config.input,) if isinstance(config.input, str) else config.input
    wanted = {EXTRA_OF.get(url.partition("://")[0]) for url in (*inputs, config.output) if "://" in url}
    if any(isinstance(client, LocalClientConfig) for client, _ in config.clients_and_models):
        wanted.add("local")
    return {name for name in wanted if name is not None}
