"""Templates: what they print, which columns they need, what a null does, and that nothing escapes the sandbox."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from nemo_llm_stage.errors import ConfigError, InputError, PromptError, SkippedError
from nemo_llm_stage.prompt import Expression, Template
from nemo_llm_stage.prompt.template import check_columns

NULLS = [None, float("nan"), np.float32("nan"), np.float64("nan"), pd.NA, pd.NaT]

ESCAPES = [
    "{{ text.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ text | attr('__class__') }}",
    "{{ [text] | map(attribute='__class__') | list }}",
    "{{ [text] | map('attr', '__class__') | list }}",
    "{{ [text] | groupby('__class__') }}",
    "{{ '{0.__class__}'.format(text) }}",
    "{{ '{x.__class__}'.format_map({'x': text}) }}",
    "{{ ('{0.__class__}' | attr('format'))(text) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(text) }}",
    "{{ range.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ cycler.__init__ }}",
    "{{ text.strip.__self__.__class__ }}",
    "{{ row.__class__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "{% for t in text %}{{ loop.__class__ }}{% endfor %}",
    "{% set _ = tags.append('x') %}{{ tags }}",
    "{% set _ = row.update({'text': 1}) %}{{ row }}",
    "{% set _ = tags.clear() %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_reaches_an_attribute_or_changes_a_row(source: str) -> None:
    """Each known way out of a sandbox ends in an error, when compiled or for the row, and changes nothing."""
    row = {"text": "abc", "tags": ["a"]}
    with pytest.raises((ConfigError, PromptError)):
        Template(source).render(row)
    assert row == {"text": "abc", "tags": ["a"]}


@pytest.mark.parametrize("text", [*ESCAPES, "{{ 7 * 7 }}", "{% if x %}", "{# c #}", "# for x in y", "{0.__class__} %s"])
def test_the_text_of_a_row_is_never_a_template(text: str) -> None:
    """What looks like a template in a row comes out letter for letter."""
    assert Template("<{{ text }}|{{ row['text'] }}>").render({"text": text}) == f"<{text}|{text}>"


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize(
    "source",
    [
        "{{ x }}",
        "{{ x | upper }}",
        "{{ x | trim | truncate_chars(3) }}",
        "{{ x | truncate_tokens(3) }}",
        "{{ x | tojson }}",
        "{{ x | string }}",
        "{{ x | length }}",
        "{{ 'a' ~ x }}",
        "{{ x.strip() }}",
        "{{ x.field }}",
        "{{ x + 1 }}",
        "{{ row['x'] }}",
        "{% for i in x %}{% endfor %}",
        "{% if x > 3 %}{% endif %}",
        "{{ '%s' | format(x) }}",
        "{{ 'a'.replace('a', x | string) }}",
        "{{ [x] | join(',') }}",
    ],
)
def test_a_null_that_is_used_skips_the_row(source: str, null: object) -> None:
    """Printed, filtered, looped over or compared by size: the row is left unasked and the column named."""
    with pytest.raises(SkippedError, match="column 'x' is null"):
        Template(source).render({"x": null})


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if x %}yes{% else %}no{% endif %}", "no"),
        ("{{ 1 if x is none else 2 }}", "1"),
        ("{{ 1 if x == None else 2 }}", "1"),
        ("{{ 1 if x.field is none else 2 }}", "1"),
        ("{{ x or 'unknown' }}", "unknown"),
        ("{{ x | default('unknown') }}", "unknown"),
        ("{{ 1 if x in ['a'] else 2 }}", "2"),
        ("{{ row | tojson }}", '{"x":null}'),
    ],
)
def test_a_null_may_be_tested(source: str, expected: str, null: object) -> None:
    """Asking whether a value is there is not using it."""
    assert expected == Template(source).render({"x": null})


@pytest.mark.parametrize(
    "source", ["<{{ x }}>", "<{{ x | upper }}>", "<{{ x.a.strip() }}>", "<{% for i in x %}.{% endfor %}>"]
)
def test_a_null_can_count_as_empty(source: str) -> None:
    """With on_null=empty a null prints nothing and loops over nothing."""
    assert Template(source, on_null="empty").render({"x": float("nan")}) == "<>"


def test_a_null_can_fail_the_row() -> None:
    """With on_null=error the row fails."""
    with pytest.raises(PromptError, match="column 'x' is null"):
        Template("{{ x }}", on_null="error").render({"x": None})


def test_nulls_inside_lists_and_structs_print_nothing() -> None:
    """A null below a column that is there is an empty text, also through filters."""
    row = {"tags": np.array(["a", None, float("nan")], dtype=object), "meta": {"lang": None}}
    text = Template("{{ tags | join('-') }}|{% for t in tags %}{{ t | upper }};{% endfor %}|{{ meta.lang | upper }}")
    assert text.render(row) == "a--|A;;;|"


def test_lists_and_structs_print_as_json() -> None:
    """Not as Python writes them, which would have None in it."""
    assert Template("{{ x }}").render({"x": [{"a": None, "b": True}]}) == '[{"a":null,"b":true}]'


def test_bytes_are_not_printed() -> None:
    """Binary columns are for images."""
    with pytest.raises(PromptError, match="bytes"):
        Template("{{ x }}").render({"x": b"\x89PNG"})


def test_filters_cut_and_write_json() -> None:
    """Text is cut by characters or, roughly, by tokens; JSON keeps <, > and letters as they are."""
    row = {"text": "abcdefghij", "cjk": "日本語日本語", "x": {"a": "<é>"}}
    source = (
        "{{ text | truncate_chars(3) }} {{ text | truncate_tokens(2) }} {{ cjk | truncate_tokens(2) }} {{ x | tojson }}"
    )
    assert Template(source).render(row) == 'abc abcdefgh 日本 {"a":"<é>"}'


def test_blocks_leave_no_blank_lines() -> None:
    """A line that holds only a block tag vanishes, and the file's last newline too."""
    source = "A\n  {% for t in tags %}\n- {{ t }}\n  {% endfor %}\nB\n"
    assert Template(source).render({"tags": [1, 2]}) == "A\n- 1\n- 2\nB"


@pytest.mark.parametrize(
    ("source", "columns"),
    [
        ("plain", set()),
        ("{{ text }} {{ meta.lang }}", {"text", "meta"}),
        ("{% for t in tags if t %}{{ loop.index }}{{ t }}{% endfor %}", {"tags"}),
        ("{% set n = size * 2 %}{{ n }}", {"size"}),
        ("{% if a %}{{ b }}{% endif %}{{ range(3) | list }}", {"a", "b"}),
        ("{% macro m(x) %}{{ x }}{{ y }}{% endmacro %}{{ m(z) }}", {"y", "z"}),
        ("{{ row['my column'] }}{{ row.other }}", {"my column", "other"}),
    ],
)
def test_required_columns_are_read_from_the_template(source: str, columns: set[str]) -> None:
    """Names that the template itself makes are no columns."""
    template = Template(source)
    assert (set(template.required_columns), template.needs_all_columns) == (columns, False)


@pytest.mark.parametrize(
    "source", ["{{ row }}", "{{ row | tojson }}{{ row.a }}", "{% for k in row %}{{ row[k] }}{% endfor %}"]
)
def test_the_whole_row_needs_all_columns(source: str) -> None:
    """Where any column may be looked at, none may be left out."""
    assert Template(source).needs_all_columns


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{{ x | truncat_chars(3) }}", r"line 2: there is no filter 'truncat_chars'; did you mean 'truncate_chars'"),
        ("{% if a %}{{ x | nope }}{% endif %}", "line 1: there is no filter 'nope'"),
        ("{% if a is nnone %}{% endif %}", "there is no test 'nnone'; did you mean 'none'"),
        ("a\n\n{% if x %}", r"line 3: (.|\n)*{% if x %}"),
        ("{{ x", "line 1"),
        ("{% include 'other' %}", "cannot load another"),
        ("{% import 'other' as o %}", "cannot load another"),
        ("{{ [1, 2] | random }}", "there is no filter 'random'"),
    ],
)
def test_a_wrong_template_is_refused_with_its_line(source: str, message: str) -> None:
    """Before anything is asked, naming line and text."""
    with pytest.raises(ConfigError, match=message):
        Template(source)


def test_a_missing_field_fails_the_row() -> None:
    """A misspelt field of a struct is no empty text."""
    with pytest.raises(PromptError, match="no attribute 'nmae'"):
        Template("{{ person.nmae }}").render({"person": {"name": "x"}})


def test_a_fields_name_wins_over_a_methods() -> None:
    """A struct's field called items is that field."""
    assert Template("{{ order.items }} {{ order.keys() | list }}").render({"order": {"items": 2}}) == '2 ["items"]'


def test_huge_ranges_are_refused() -> None:
    """A number in a row cannot make a loop without end."""
    with pytest.raises(PromptError, match="range"):
        Template("{% for i in range(n) %}{% endfor %}").render({"n": 10**9})


def test_a_template_can_be_pickled_after_use() -> None:
    """It is compiled anew where it arrives."""
    template = Template("{{ x }}!")
    assert template.render({"x": 1}) == "1!"
    assert pickle.loads(pickle.dumps(template)).render({"x": 2}) == "2!"


def test_a_missing_column_names_the_nearest() -> None:
    """A typo is told with the column that was meant and all there are."""
    with pytest.raises(InputError, match=r"'txt'.*did you mean 'text'\? Columns: id, text"):
        check_columns({"txt"}, ["id", "text"])


@pytest.mark.parametrize(
    ("source", "expected"), [("{{ score >= 3 }}", True), ("score + 1", 5), ("missing", None), ("tags[0]", "a")]
)
def test_an_expression_gives_a_value(source: str, expected: object) -> None:
    """Not its text; None for a null."""
    assert expected == Expression(source).evaluate({"score": 4, "missing": None, "tags": ["a"]})


def test_an_expression_is_one_expression() -> None:
    """Two, or text around one, are refused."""
    with pytest.raises(ConfigError, match="one expression"):
        Expression("{{ a }} and {{ b }}")


def test_an_expression_over_a_missing_field_fails_the_row() -> None:
    """Rather than being false."""
    with pytest.raises(PromptError, match="no attribute 'b'"):
        Expression("a.b").evaluate({"a": {}})
