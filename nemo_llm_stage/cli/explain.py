"""`nemo-llm-stage explain`: one entry of the reference."""

from __future__ import annotations

import click

from nemo_llm_stage.cli.command import Command
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.suggest import did_you_mean


@click.command("explain", cls=Command)
@click.argument("name", metavar="[SETTING | ERROR KIND]", required=False)
def command(name: str | None) -> None:
    """
    Explain a setting (max_tokens, client.timeout) or a kind of error (rate_limit). Without a name, list them all.

    A kind of error is the word before the colon in an error column.
    """
    import shutil
    import textwrap

    from nemo_llm_stage.cli.entries import Entry, error_entries, find_entries, names_of, setting_entries

    width = min(shutil.get_terminal_size().columns, 110)

    def wrap(text: str, first: str, indent: str) -> str:
        return textwrap.fill(
            text, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
        )

    def show(entry: Entry) -> None:
        click.secho(entry.name, bold=True, nl=False)
        click.echo(f"  ({entry.heading})")
        for label, text in entry.facts.items():
            click.echo(wrap(text, f"  {label:<10}  ", " " * 14))

    if name is None:
        for title, entries in (("settings", setting_entries()), ("kinds of error", error_entries())):
            names = ", ".join(dict.fromkeys(entry.name for entry in entries))
            click.echo(f"{title}:\n{wrap(names, '  ', '  ')}")
        return
    found = find_entries(name)
    if not found:
        known = {word for entry in (*setting_entries(), *error_entries()) for word in names_of(entry)}
        hint = did_you_mean(name, known) or "`nemo-llm-stage explain` lists all names"
        raise ConfigError(f"there is no setting and no kind of error {name!r}; {hint}")
    for entry in found:
        show(entry)
