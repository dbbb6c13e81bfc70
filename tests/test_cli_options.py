"""Options come from the settings' schema: what it says is what the command line says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from nemo_llm_stage.cli import main
from nemo_llm_stage.cli.options import help_of, merged_settings
from nemo_llm_stage.config.load import make_config
from nemo_llm_stage.config.schema import SECTIONS, Setting, job_settings, json_schema

SETTINGS = {".".join(setting.path): setting for setting in job_settings()}
NO_OPTION = {
    *("messages", "columns", "client.headers", "client.query", "generation_config.extra_kwargs", "column_types"),
    *("answer", "generation_config", "servers"),
}
"""Settings that are lists or mappings of their own; --set takes them."""

VALUES: dict[Any, str] = {int: "3", float: "3", str: "http://localhost/v1"}


def parameters(command: str) -> dict[str, click.Parameter]:
    made = main.commands[command].get_params(click.Context(main.commands[command]))
    return {str(parameter.name): parameter for parameter in made}


def option_name(setting: Setting) -> str:
    return f"--{setting.name.replace('_', '-')}"


@pytest.mark.parametrize("path", sorted(SETTINGS.keys() - NO_OPTION))
@pytest.mark.parametrize("command", ["run", "preview"])
def test_every_simple_setting_is_an_option(command: str, path: str) -> None:
    """Its help is the setting's words and default, under the setting's heading."""
    setting = SETTINGS[path]
    option = parameters(command)[setting.name]
    assert isinstance(option, click.Option)
    assert option_name(setting) in option.opts
    assert (option.help or "").startswith(help_of(setting))
    assert option.section == setting.section  # type: ignore[attr-defined]
    assert option.default is None or not option.default  # what is not given is not set


@pytest.mark.parametrize("path", sorted(NO_OPTION))
def test_other_settings_have_no_option(path: str) -> None:
    """A list of mappings cannot be written as a word."""
    assert SETTINGS[path].name not in parameters("run")


@pytest.mark.parametrize("path", SETTINGS)
def test_every_setting_is_in_the_json_schema(path: str) -> None:
    """With its words and default."""
    schema = json_schema()
    setting = SETTINGS[path]
    if setting.path[0] == "client" and len(setting.path) > 1:
        parts = [part for name, part in schema["$defs"].items() if name.endswith("ClientConfig")]
        part = next(part for part in parts if setting.name in part["properties"])
    else:
        part = schema if len(setting.path) == 1 else schema["$defs"]["GenerationSettings"]
    property_ = part["properties"][setting.name]
    assert property_["description"] == setting.words
    assert setting.words
    if isinstance(setting.default, str | int | float):
        assert property_["default"] == setting.default


@pytest.mark.parametrize("path", sorted(SETTINGS.keys() - NO_OPTION - {"client"}))
def test_an_option_reaches_its_setting(path: str) -> None:
    """At its place in the job file."""
    setting = SETTINGS[path]
    option = parameters("run")[setting.name]
    assert isinstance(option, click.Option)
    value: Any = True
    if isinstance(option.type, click.Choice):
        value = option.type.choices[-1]
    elif setting.kinds != (bool,):
        value = option.type.convert(VALUES.get(setting.kinds[0], "3"), option, None)
    merged = merged_settings({}, {setting.name: (value,) if option.multiple else value})
    place = merged if len(setting.path) == 1 else merged[setting.path[0]]
    assert place[setting.name] == value


def test_sections_stand_in_the_order_of_reading() -> None:
    """Each once, in plain words."""
    text = CliRunner().invoke(main, ["run", "--help"]).stdout
    places = [text.index(f"\n{section}:\n") for section in (*SECTIONS, "Any other setting", "This run")]
    assert places == sorted(places)


def test_a_switch_of_a_job_file_can_be_turned_off() -> None:
    """Options win, both ways."""
    assert merged_settings({"keep_raw": True}, {"keep_raw": False})["keep_raw"] is False
    assert "--no-keep-raw" in parameters("run")["keep_raw"].secondary_opts


def test_defaults_are_shown_as_they_are() -> None:
    """Also where a type of client has its own."""
    text = " ".join(CliRunner().invoke(main, ["run", "--help"]).stdout.split())
    assert "[auto; openai: 64; local: 4]" in text
    settings = {"input": "a", "output": "b", "prompt": "p", "output_column": "x", "model": "m"}
    for client, limit in (("local", 4), ({"base_url": "http://x"}, 64)):
        assert make_config({**settings, "client": client}).max_concurrent_requests == limit


def test_the_top_level_help_has_whole_sentences() -> None:
    """Not cut off with dots."""
    text = CliRunner().invoke(main, ["--help"]).stdout
    assert "..." not in text.partition("Commands:")[2]
    assert all(command in text for command in main.commands)


def test_the_version_names_what_a_bug_report_needs() -> None:
    """Of the package, Python, Ray and pyarrow."""
    lines = CliRunner().invoke(main, ["--version"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["nemo-llm-stage", "Python", "ray", "pyarrow", "pydantic"]


def test_the_schema_is_json() -> None:
    """As editors read it."""
    assert json.loads(CliRunner().invoke(main, ["schema"]).stdout) == json_schema()


@pytest.mark.slow
def test_a_corpus_that_has_fewer_texts_says_so(tmp_path: Path) -> None:
    """With the number there is."""
    result = CliRunner().invoke(main, ["corpus", "--rows", "1000000", "--output", str(tmp_path / "docs.parquet")])
    assert "rows, which are all that this Python has (1,000,000 were wanted)" in result.stdout
    before = (tmp_path / "docs.parquet").read_bytes()
    result = CliRunner().invoke(main, ["corpus", "--rows", "10", "--output", str(tmp_path / "docs.parquet")])
    assert (result.exit_code, "already exists" in result.output) == (2, True)
    assert (tmp_path / "docs.parquet").read_bytes() == before
    result = CliRunner().invoke(main, ["corpus", "--rows", "10", "--output", str(tmp_path / "few.parquet")])
    assert result.stdout.endswith("few.parquet: 10 rows\n")
