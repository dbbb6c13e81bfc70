"""`nemo-llm-stage push`: a finished output on Hugging Face's hub."""

from __future__ import annotations

import click

from nemo_llm_stage.cli.command import Command


@click.command("push", cls=Command)
@click.argument("output")
@click.argument("target", metavar="hf://datasets/OWNER/NAME")
@click.option("--license", "license_id", default="unknown", help="License of the data, for the card, e.g. cc-by-4.0.")
@click.option("--private/--public", "is_private", default=True, help="Whether a new data set is private (default).")
@click.option("--dry-run", is_flag=True, help="Show what would be uploaded, and send nothing.")
def command(output: str, target: str, license_id: str, is_private: bool, dry_run: bool) -> None:
    """
    Upload the finished job in OUTPUT to the Hugging Face hub: its data files, and a dataset card.

    Needs `pip install 'nemo-llm-stage[hf]'` and a token as `hf auth login` or HF_TOKEN give it.
    """
    from nemo_llm_stage.report.hub import push, repo_of, uploads_of

    if not dry_run:
        click.echo(push(output, target, license_id, is_private=is_private))
        return
    repo = repo_of(target)
    uploads, _ = uploads_of(output, license_id)
    for upload in uploads:
        click.echo(f"{upload.num_bytes:>15,}  {upload.path}")
    click.echo(f"{len(uploads):,} files would go to the data set {repo}; nothing was sent.")
