"""`nemo-llm-stage dashboard`: a Grafana dashboard of a job's metrics."""

from __future__ import annotations

import json

import click

from nemo_llm_stage.cli.command import Command


@click.command("dashboard", cls=Command)
def command() -> None:
    """
    Print a Grafana dashboard as JSON, to be imported there.

    It shows the metrics of jobs with `metrics_port`, or, with `ray` as its prefix, those that Ray gives to Prometheus.
    """
    from nemo_llm_stage.report.metrics.dashboard import dashboard

    click.echo(json.dumps(dashboard(), indent=2))
