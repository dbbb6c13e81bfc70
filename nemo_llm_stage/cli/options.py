"""
The options of a job: one for every setting that is a word or a number.

Names, types, defaults and help come from the settings' schema, so a new setting has an option at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from nemo_llm_stage.cli.command import Command
from nemo_llm_stage.errors import ConfigError

if TYPE_CHECKING:
    from nemo_llm_stage.config.schema import Setting

_TYPES: dict[Any, Any] = {int: int, float: float, str: str}
_LISTS = (tuple[str, ...], list[str])


class JobCommand(Command):
    """A command with the options of a job. They are made when they are needed: the schema takes time to import."""

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        """Return the arguments, the settings' options, and then the command's own options."""
        arguments = [parameter for parameter in self.params if isinstance(parameter, click.Argument)]
        own = [parameter for parameter in super().get_params(context) if parameter not in arguments]
        return [*arguments, *job_options(), *own]

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parse the words; add a hint where a value was probably not quoted."""
        self._check_values(context, args)
        try:
            return super().parse_args(context, args)
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message:
                raise
            raise click.UsageError(f"{error.message}\n{_QUOTE_IT}", context) from error

    def _check_values(self, context: click.Context, args: list[str]) -> None:
        """Refuse an option as the value of another: the value is missing, e.g. because a variable is empty."""
        options = [parameter for parameter in self.get_params(context) if isinstance(parameter, click.Option)]
        names = {name for option in options for name in (*option.opts, *option.secondary_opts)}
        with_values = {name for option in options if not (option.is_flag or option.count) for name in option.opts}
        for name, value in pairwise(args):
            if name in with_values and value in names:
                raise click.UsageError(f"Option '{name}' has no value; after it comes '{value}'.", context)


_QUOTE_IT = "Put an option's value in quotes if it has spaces: --prompt 'Summarize: {{ text }}'."


def read_settings(job_file: Path | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the settings of a job file with the given options in place of theirs.

    Raises:
        ConfigError: The file cannot be read, or options contradict each other.
    """
    from nemo_llm_stage.config.load import read_job_file

    if job_file is None:
        return merged_settings({}, flags)
    if not job_file.exists() and any(value not in (None, ()) for value in flags.values()):
        raise ConfigError(f"there is no job file {str(job_file)!r}. {_QUOTE_IT}")
    return merged_settings(read_job_file(job_file), flags)


@cache
def job_options() -> Sequence[click.Option]:
    """Return the options of all settings, and the shorthands that stand for several."""
    return tuple(_job_options())


def _job_options() -> Iterator[click.Option]:
    from nemo_llm_stage.config.schema import job_settings

    for setting in job_settings():
        if setting.path == ("answer",):
            yield _with_section(click.Option(["--choices"], multiple=True, help=_CHOICES_HELP), setting.section)
            yield _with_section(click.Option(["--json-schema"], help=_JSON_HELP), setting.section)
        elif option := _option(setting):
            yield _with_section(option, setting.section)
    yield _with_section(click.Option(["--set", "assignments"], multiple=True, help=_SET_HELP), "Any other setting")


_CHOICES_HELP = "Labels, one of which the answer must be: A,B,C, or repeat the option."
_JSON_HELP = "File with a JSON Schema that the answer must satisfy."
_SET_HELP = "Any setting of a job file: KEY.KEY=VALUE, the value in YAML. May be repeated."


def _with_section(option: click.Option, section: str) -> click.Option:
    option.section = section  # type: ignore[attr-defined]
    return option


def _option(setting: Setting) -> click.Option | None:
    """Return the option of a setting, or None if its values cannot be written as one word."""
    is_list = any(kind in _LISTS for kind in setting.kinds)
    is_switch = setting.kinds == (bool,)
    kind = None if is_switch else _type_of(setting)
    if kind is None and not is_switch:
        return None
    flag = f"--{setting.name.replace('_', '-')}"
    return click.Option(
        [f"{flag}/--no-{flag[2:]}" if is_switch else flag],
        type=kind,
        default=None,
        multiple=is_list,
        help=help_of(setting) + (" May be repeated." if is_list else ""),
    )


def help_of(setting: Setting) -> str:
    """Return a setting's words without code marks, and its default."""
    words = setting.words.replace("`", "")
    if setting.default is None or setting.default in ((), ""):
        return words
    others = (f"{kind}: {shown_default(value)}" for kind, value in setting.others.items())
    return f"{words} [{'; '.join([shown_default(setting.default), *others])}]"


def shown_default(value: Any) -> str:
    """Return a default as help shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _type_of(setting: Setting) -> Any:
    from nemo_llm_stage.config.clients import CLIENT_TYPES

    if setting.path == ("client",):
        return click.Choice(list(CLIENT_TYPES))
    if {int, float} <= {*setting.kinds}:
        return _NUMBER
    if int in setting.kinds and (words := _words_of(setting)):
        return _CountOrWord(words)
    for kind in setting.kinds:
        if get_origin(kind) is Literal:
            return click.Choice(get_args(kind))
        if kind in _TYPES:
            return _TYPES[kind]
    return None


def _words_of(setting: Setting) -> tuple[str, ...]:
    return tuple(word for kind in setting.kinds if get_origin(kind) is Literal for word in get_args(kind))


class _CountOrWord(click.ParamType[int | str]):
    """A whole number, or one of some words."""

    name = "integer"

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int | str:
        """Return the number or the word."""
        if value in self._words:
            return str(value)
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a whole number nor {' or '.join(self._words)}", param, context)
        return int(value)


class _Number(click.ParamType[int | float]):
    """A number; 5 stays whole, so that 5 rows and the fraction 0.05 differ."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int | float:
        try:
            return int(value) if str(value).isdigit() else float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, context)


_NUMBER = _Number()


def merged_settings(settings: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return a job file's settings with the given options in place of theirs.

    Raises:
        ConfigError: Options contradict each other, or one ``--set`` is not an assignment.
    """
    from nemo_llm_stage.config.clients import settings_of_type
    from nemo_llm_stage.config.load import override
    from nemo_llm_stage.config.schema import job_settings

    given = {name: _value(value) for name, value in flags.items() if value is not None and value != ()}
    assignments = given.pop("assignments", ())
    places = {setting.name: setting.path[0] for setting in job_settings() if len(setting.path) > 1}
    client = settings.get("client", {})
    client = {"type": client} if isinstance(client, str) else dict(client)
    if "client" in given:
        client = settings_of_type(client, given.pop("client"))
    merged = {**settings, **_answer(given.pop("choices", None), given.pop("json_schema", None)), "client": client}
    for name, value in given.items():
        place = places.get(name)
        if place is None:
            merged[name] = value
        else:
            merged[place] = {**(merged.get(place) or {}), name: value}
    return override(merged, [assignments] if isinstance(assignments, str) else assignments)


def _answer(choices: str | list[str] | None, json_schema: str | None) -> dict[str, Any]:
    if choices is not None and json_schema is not None:
        raise ConfigError("give one of --choices and --json-schema.")
    if choices is not None:
        labels = [label.strip() for label in choices.split(",")] if isinstance(choices, str) else choices
        return {"answer": {"type": "choices", "choices": labels}}
    if json_schema is not None:
        return {"answer": {"type": "json", "schema_file": json_schema}}
    return {}


def _value(value: Any) -> Any:
    if isinstance(value, tuple):
        return value[0] if len(value) == 1 else list(value)
    return value
