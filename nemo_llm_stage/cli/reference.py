"""
REFERENCE.md, made from the code. Renew it with `python -m nemo_llm_stage.cli.reference`.

Knows what the reference shows and in which order; the words are those of the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from inspect import cleandoc
from pathlib import Path

import click

import nemo_llm_stage
from nemo_llm_stage.cli import main
from nemo_llm_stage.cli.command import EXIT_CODES
from nemo_llm_stage.cli.entries import Entry, error_entries, setting_entries
from nemo_llm_stage.cli.options import JobCommand
from nemo_llm_stage.report.metrics.figures import FAMILIES, OUTPUT, prometheus_word
from nemo_llm_stage.stage.output_columns import META_TYPE

PATH = Path(nemo_llm_stage.__file__).parent / "REFERENCE.md"
RENEW = "python -m nemo_llm_stage.cli.reference"

_INTRODUCTION = f"""\
# Reference

Made from the code by `{RENEW}`; do not edit. In the terminal, `nemo-llm-stage explain max_tokens` shows one
entry. Tutorial and cookbook: [pipelines/README.md](../pipelines/README.md).
"""
_SETTINGS_WORDS = """\
A dot stands for a level: `client.timeout` is `timeout` under `client`. On the command line the last key is an
option with dashes (`--timeout 60`), and `--set KEY.KEY=VALUE` writes any other. `LLMStage`, `AsyncHTTPClient` and
`run_job` take the same words."""
_COLUMNS = (
    ("`X`", "text, a list for `n` > 1, or the type of `answer`", "the answer; null where the row failed"),
    ("`X_FIELD`", "the field's type", "with `field_columns`, instead of `X`: one column for each field of a struct"),
    ("`X_choice`", "int32", "with `explode`: the answer's number, from 0"),
    ("`X_error`", "text", "null where the row did not fail, else `kind: message`"),
    ("`X_skipped`", "text", "null where the row was not skipped, else why"),
    ("`X_reasoning`", "text", "with `reasoning_column`: the model's thinking"),
    ("`X_meta`", "struct", "what is known of the row's requests; without it: `has_meta: false`"),
)
_META = {
    "finish_reason": "`stop`, or `length` for an answer cut off at `max_tokens`; with `n` > 1 all, joined by commas",
    "attempts": "sends that reached the server, the failed ones included; 0 where nothing was sent",
    "input_tokens": "tokens of all requests of the row, as the server counted them",
    "cached_tokens": "of these, tokens from the server's prefix cache",
    "output_tokens": "tokens of all answers to the row, unusable ones included",
    "latency_s": "seconds from sending the last request to its whole answer",
    "model": "the model's name in the answer",
    "endpoint": "the server that answered",
    "recovery": "repair steps used, joined by `+`; null for none",
    "raw": "the answer of a row that failed after one; with `n` > 1 a JSON list",
}


def make_reference() -> str:
    """Return the text of REFERENCE.md."""
    parts = [_INTRODUCTION, "## Settings\n", _SETTINGS_WORDS, "", *_settings(), *_commands(), *_columns(), *_errors()]
    return "\n".join([*parts, *_metrics(), *_api()])


def _settings() -> Iterator[str]:
    sections: dict[str, list[Entry]] = {}
    for entry in setting_entries():
        sections.setdefault(entry.heading.removeprefix("setting, "), []).append(entry)
    for section, entries in sections.items():
        yield f"### {section}\n"
        rows = [(f"`{e.name}`", e.facts["type"], e.facts["default"], e.facts["meaning"]) for e in entries]
        yield from _table(("setting", "type", "default", "meaning"), rows)


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    yield "`python -m nemo_llm_stage` is the same as `nemo-llm-stage`. `-h` and `--help` show a command's help.\n"
    for name, command in sorted(main.commands.items()):
        context = click.Context(command, info_name=f"nemo-llm-stage {name}")
        yield f"### `nemo-llm-stage {name}`\n"
        yield f"`{' '.join([context.command_path, *command.collect_usage_pieces(context)])}`\n"
        yield _first_paragraph(command.help or "") + "\n"
        if isinstance(command, JobCommand):
            yield "It takes every setting as an option, and:\n"
        own = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        records = [record for option in own if (record := option.get_help_record(context))]
        if records:
            yield from _table(("option", "meaning"), [(f"`{words}`", text) for words, text in records])
    yield "### Exit codes\n"
    yield from _table(("code", "meaning"), [(str(code), words) for code, words in EXIT_CODES.items()])


def _columns() -> Iterator[str]:
    yield "## Output columns\n"
    yield "For `output_column: X`, beside all columns of the input:\n"
    yield from _table(("column", "type", "meaning"), _COLUMNS)
    yield "The fields of `X_meta`:\n"
    rows = [(f"`{field.name}`", str(field.type), _META[field.name]) for field in META_TYPE]
    yield from _table(("field", "type", "meaning"), rows)


def _errors() -> Iterator[str]:
    yield "## Kinds of error\n"
    yield "The word before the colon in `X_error`. `nemo-llm-stage retry-failed OUT --kind KIND` retries such rows.\n"
    rows = [
        (f"`{e.name}`", f"`{e.heading.rpartition(' ')[2]}`", e.facts["cause"], e.facts["what to do"])
        for e in error_entries()
    ]
    yield from _table(("kind", "class", "cause", "what to do"), rows)


def _metrics() -> Iterator[str]:
    yield "## Metrics\n"
    yield (
        f"As Prometheus reads them on `metrics_port`; every one has the label `{prometheus_word(OUTPUT)}`. Through Ray "
        "`ray_` comes before the names, over OTLP the words are joined by dots and have no `_total` and no unit.\n"
    )
    rows = [
        (
            f"`{family.prometheus_name}`",
            family.kind,
            ", ".join(f"`{prometheus_word(name)}`" for name in family.labels),
            family.help,
        )
        for family in FAMILIES
    ]
    yield from _table(("metric", "kind", "labels", "meaning"), rows)


def _api() -> Iterator[str]:
    yield "## Python\n"
    yield "`from nemo_llm_stage import …`; `help(NAME)` shows the rest.\n"
    names = ((name, getattr(nemo_llm_stage, name)) for name in nemo_llm_stage.__all__)
    yield from _table(("name", "what it is"), [(f"`{name}`", _first_paragraph(thing.__doc__)) for name, thing in names])


def _first_paragraph(text: str) -> str:
    return " ".join(cleandoc(text).partition("\n\n")[0].replace("``", "`").split())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _row(head)
    yield _row(["---"] * len(head))
    yield from (_row(row) for row in rows)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


if __name__ == "__main__":
    PATH.write_text(make_reference(), encoding="utf-8")
