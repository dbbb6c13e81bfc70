"""`nemo-llm-stage submit`: a job file on a Ray cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_llm_stage.cli.command import Command
from nemo_llm_stage.errors import ConfigError

if TYPE_CHECKING:
    from nemo_llm_stage.config.job import JobConfig


@click.command("submit", cls=Command)
@click.argument("job_file", type=click.Path(path_type=Path))
@click.option("--address", envvar="RAY_API_SERVER_ADDRESS", required=True, help="The dashboard: http://HEAD:8265.")
@click.option("--follow", is_flag=True, help="Show the job's log until it ends; the exit code is the job's.")
@click.option(
    "--working-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(),
    help="Folder to upload, with the job file in it [the current one].",
)
@click.option(
    "--python", default="python", show_default=True, help="The Python of the head node that has nemo_llm_stage."
)
@click.option("--pip", multiple=True, help="Package to install on the cluster for this job. May be repeated.")
@click.option("--env", multiple=True, help="NAME=VALUE to set for this job, no secret: Ray shows it. May be repeated.")
@click.option("--submission-id", help="Name of the job on the cluster, instead of a random one.")
def command(
    job_file: Path,
    address: str,
    follow: bool,
    working_dir: Path,
    python: str,
    pip: tuple[str, ...],
    env: tuple[str, ...],
    submission_id: str | None,
) -> None:
    """
    Run JOB_FILE on a Ray cluster: upload the working directory, and start `nemo-llm-stage run` there as a Ray job.

    Keys stay where they are: the variable that `api_key_env` names must be set on the cluster, where `ray start` ran.
    Submit the same file again to resume.
    """
    from nemo_llm_stage.cluster.submit import JobSubmission, check_paths
    from nemo_llm_stage.config.load import make_config, read_job_file

    config = make_config(read_job_file(job_file), str(job_file))
    check_paths(_paths_of(config))
    runtime_env: dict[str, Any] = {"working_dir": str(working_dir.resolve())}
    if pip:
        runtime_env["pip"] = list(pip)
    if env:
        runtime_env["env_vars"] = dict(_assignment(text) for text in env)
    entrypoint = [python, "-m", "nemo_llm_stage", "run", _inside(job_file, working_dir)]
    submission = JobSubmission(address)
    job_id = submission.submit(entrypoint, runtime_env, submission_id)
    click.echo(f"submitted as {job_id}")
    if follow:
        sys.exit(submission.follow(job_id, lambda text: click.echo(text, nl=False)))
    click.echo(f"log:  ray job logs --follow --address {address} {job_id}")
    click.echo(f"stop: ray job stop --address {address} {job_id}")


def _paths_of(config: JobConfig) -> list[str]:
    inputs = [config.input] if isinstance(config.input, str) else list(config.input)
    return [*inputs, config.output]


def _inside(job_file: Path, working_dir: Path) -> str:
    """Return the job file's path from the working directory."""
    try:
        return job_file.resolve().relative_to(working_dir.resolve()).as_posix()
    except ValueError:
        raise ConfigError(
            f"the job file {str(job_file)!r} is not in the working directory {str(working_dir)!r}, which is what is "
            "uploaded; give --working-dir."
        ) from None


def _assignment(text: str) -> tuple[str, str]:
    from nemo_llm_stage.text import names_a_secret

    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ConfigError(f"--env {text!r} is not NAME=VALUE.")
    if names_a_secret(name):
        raise ConfigError(f"--env {name}: Ray shows the variables of a job to everyone; set it where `ray start` runs.")
    return name, value
