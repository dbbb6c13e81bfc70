"""
Jinja2 templates over a row's columns, in an immutable sandbox.

A template reads columns and can change nothing, reach no attribute that starts with an underscore, load no other file,
and gives the same text for the same row each time. A row's text is only ever a value: it is never compiled. Knows
nothing of messages or requests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import orjson
from jinja2 import StrictUndefined, Undefined, meta, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nemo_llm_stage.errors import ConfigError, InputError, PromptError, RowError, SkippedError
from nemo_llm_stage.prompt.nulls import Null, NullUsed, null_of, plain
from nemo_llm_stage.suggest import did_you_mean

OnNull = Literal["skip", "error", "empty"]
"""What a null column that a template uses leads to: the row is left unasked, the row fails, or it counts as ''."""

BYTES_PER_TOKEN = 4
"""
UTF-8 bytes that `truncate_tokens` takes for one token: a rule of thumb, not a count.

Source: OpenAI, "What are tokens and how to count them?": one token is about 4 characters of English.
"""

ROW_NAME = "row"
"""The name under which templates reach any column, e.g. ``{{ row['my column'] }}``."""


class Template:
    """
    A text with ``{{ columns }}``, compiled once per process. Can be pickled.

    Besides Jinja2's own filters there are ``truncate_chars(n)``, ``truncate_tokens(n)`` (about n tokens, by
    `BYTES_PER_TOKEN`) and a ``tojson`` that writes plain JSON. Lists and dicts are printed as JSON. The newline after a
    block tag and the blanks before it are dropped, as is one newline at the end of the template.

    Args:
        source: The template's text.
        on_null: See `OnNull`. Testing a null (``{% if x %}``, ``x is none``, ``x | default('')``) is not using it.

    Attributes:
        required_columns: Every column that the template mentions, also where a branch may not reach it.
        needs_all_columns: Whether it uses ``row`` as a whole.

    Raises:
        ConfigError: It is not a template, or asks for what the sandbox does not have.
    """

    def __init__(self, source: str, *, on_null: OnNull = "skip") -> None:
        self.source = source
        self.on_null: OnNull = on_null
        tree = _parse(source)
        self.required_columns, self.needs_all_columns = _columns_of(tree)
        self._uses_row = any(name.name == ROW_NAME for name in tree.find_all(nodes.Name))
        self._is_constant = not any(tree.find_all(nodes.Name))

    def render(self, row: Mapping[str, Any]) -> str:
        """
        Return the text for `row`.

        Raises:
            SkippedError: A null is used and `on_null` is ``skip``.
            PromptError: A null is used and `on_null` is ``error``, or the template fails on this row's values.
        """
        try:
            return self._text if self._is_constant else "".join(self._render(self._variables(row)))
        except Exception as error:
            raise self._row_error(error) from error

    @functools.cached_property
    def _render(self) -> Callable[[dict[str, Any]], Iterator[str]]:
        # Not Template.render: it costs twice as much a row, and rewrites the traceback of each null.
        template = environment().from_string(self.source)
        shared, make_context = dict(template.globals), template.environment.context_class

        def render(variables: dict[str, Any]) -> Iterator[str]:
            context = make_context(template.environment, shared | variables, template.name, template.blocks)
            return template.root_render_func(context)

        return render

    @functools.cached_property
    def _text(self) -> str:
        return "".join(self._render({}))

    @functools.cached_property
    def _nulls(self) -> dict[str, Null]:
        return {name: self._null_of(name) for name in self.required_columns}

    def _null_of(self, column: str) -> Null:
        return null_of(column, is_strict=self.on_null != "empty")

    def _variables(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self.needs_all_columns:
            variables = {name: plain(value, self._null_of(name)) for name, value in row.items()}
        else:
            variables = {name: plain(row[name], null) for name, null in self._nulls.items() if name in row}
        if self._uses_row:
            variables[ROW_NAME] = dict(variables)
        return variables

    def _row_error(self, error: Exception) -> RowError:
        if isinstance(error, NullUsed):
            return null_error(str(error), self.on_null)
        if isinstance(error, PromptError):
            return error
        if isinstance(error, UndefinedError | SecurityError):
            return PromptError(f"the template cannot be filled: {error}")
        return PromptError(f"the template failed: {type(error).__name__}: {error}")

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what was compiled in this process."""
        return {name: value for name, value in self.__dict__.items() if name not in _COMPILED}


_COMPILED = {"_render", "_evaluate", "_nulls", "_text"}


class Expression(Template):
    """
    One ``{{ expression }}`` over a row's columns that gives a value instead of a text; the braces may be left out.

    Raises:
        ConfigError: There is more than one expression.
    """

    def __init__(self, source: str, *, on_null: OnNull = "skip") -> None:
        inner = source.strip()
        if inner.startswith("{{") and inner.endswith("}}"):
            inner = inner[2:-2].strip()
        if "{{" in inner or "{%" in inner:
            raise ConfigError(f"{source!r} must be one expression, e.g. \"{{{{ lang == 'en' }}}}\".")
        super().__init__(f"{{{{ {inner} }}}}", on_null=on_null)

    def evaluate(self, row: Mapping[str, Any]) -> Any:
        """
        Return the expression's value for `row`; None where it is null.

        Raises:
            SkippedError: As `Template.render`.
            PromptError: As `Template.render`.
        """
        try:
            value = self._evaluate(self._variables(row))
            if isinstance(value, Null):
                return None
            return str(value) if isinstance(value, Undefined) else value  # str of an undefined raises
        except Exception as error:
            raise self._row_error(error) from error

    @functools.cached_property
    def _evaluate(self) -> Any:
        return environment().compile_expression(self.source[2:-2], undefined_to_none=False)


def check_columns(required: Iterable[str], available: Sequence[str], user: str = "the prompt") -> None:
    """
    Check that every required column is there.

    Args:
        required: Names.
        available: Names.
        user: What requires them, for the message.

    Raises:
        InputError: One is not; the message names the nearest one and all there are.
    """
    for name in sorted(set(required) - set(available)):
        hint = did_you_mean(name, available)
        raise InputError(
            f"{user} uses column {name!r}, which the input does not have{f'; {hint}' if hint else '.'}"
            f" Columns: {', '.join(available) or 'none; the input may be empty'}."
        )


def null_error(column: str, on_null: OnNull) -> SkippedError | PromptError:
    """Return what a row with a null in `column` ends with."""
    kind = PromptError if on_null == "error" else SkippedError
    return kind(f"column {column!r} is null")


@functools.cache
def environment() -> ImmutableSandboxedEnvironment:
    """Return this process's environment."""
    env = _Sandbox(
        undefined=StrictUndefined, finalize=_printable, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    env.globals = {"range": env.globals["range"], "namespace": env.globals["namespace"]}
    env.filters |= {"truncate_chars": _truncate_chars, "truncate_tokens": _truncate_tokens, "tojson": _to_json}
    del env.filters["random"]  # the same row must give the same request, or a resumed job pays twice
    env.tests["none"] = lambda value: value is None or isinstance(value, Null)
    return env


class _Sandbox(ImmutableSandboxedEnvironment):
    """Looks a dict's keys up before its methods, so that a field named ``items`` is that field."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _parse(source: str) -> nodes.Template:
    env = environment()
    try:
        tree = env.parse(source)
        for name, lineno in ((node.name, node.lineno) for node in tree.find_all(nodes.Filter)):
            _check_known("filter", name, env.filters, lineno)
        for name, lineno in ((node.name, node.lineno) for node in tree.find_all(nodes.Test)):
            _check_known("test", name, env.tests, lineno)
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise TemplateSyntaxError("a template cannot load another one", node.lineno)
        env.compile(source)
    except TemplateSyntaxError as error:
        raise _syntax_error(source, error) from None
    return tree


def _check_known(kind: str, name: str, known: Mapping[str, Any], lineno: int) -> None:
    # Jinja2 itself puts this off to the first row where the name stands inside an {% if %}.
    if name not in known:
        raise TemplateSyntaxError(f"there is no {kind} {name!r}; {did_you_mean(name, known) or 'see jinja2'}", lineno)


def _syntax_error(source: str, error: TemplateSyntaxError) -> ConfigError:
    lines = source.splitlines() or [""]
    line = lines[min(error.lineno, len(lines)) - 1].strip()
    return ConfigError(f"template, line {error.lineno}: {error.message}\n    {line[:200]}")


def _columns_of(tree: nodes.Template) -> tuple[frozenset[str], bool]:
    """Return the columns a template names and whether it uses the row as a whole."""
    names = meta.find_undeclared_variables(tree)
    if ROW_NAME not in names:
        return frozenset(names), False
    by_row = list(_names_by_row(tree))
    num_row_uses = sum(node.name == ROW_NAME and node.ctx == "load" for node in tree.find_all(nodes.Name))
    return frozenset(names - {ROW_NAME}) | frozenset(by_row), num_row_uses > len(by_row)


def _names_by_row(tree: nodes.Template) -> Iterator[str]:
    for field in tree.find_all(nodes.Getattr):
        if isinstance(field.node, nodes.Name) and field.node.name == ROW_NAME:
            yield field.attr
    for item in tree.find_all(nodes.Getitem):
        is_row = isinstance(item.node, nodes.Name) and item.node.name == ROW_NAME
        if is_row and isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str):
            yield item.arg.value


def _printable(value: Any) -> Any:
    """Jinja2's `finalize`: what is printed for a value."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, dict | list | tuple):
        return _to_json(value)
    if isinstance(value, bytes | bytearray):
        raise PromptError("a template prints bytes; give binary columns to images= instead")
    return value


def _truncate_chars(value: Any, num_chars: int) -> str:
    return str(value)[: max(num_chars, 0)]


def _truncate_tokens(value: Any, num_tokens: int) -> str:
    max_bytes = max(num_tokens, 0) * BYTES_PER_TOKEN
    return str(value)[:max_bytes].encode()[:max_bytes].decode(errors="ignore")


def _to_json(value: Any, indent: int | None = None) -> str:
    if isinstance(value, Undefined):
        return str(value)
    option = orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if indent else 0)
    return orjson.dumps(value, default=_json_default, option=option).decode()


def _json_default(value: Any) -> Any:
    if isinstance(value, tuple):  # groupby makes named ones, which orjson does not take for lists
        return list(value)
    return None if isinstance(value, Null) else str(value)  # str of an undefined raises
