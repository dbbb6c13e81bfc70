"""
The report of a job as one HTML page: no network, no script but its own, all row text escaped.

Knows what the output folder tells; knows nothing of runs.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.recount import output_columns_of
from nemo_llm_stage.dataset.state.timeline import Timeline, read_timelines
from nemo_llm_stage.dataset.summary import TMP
from nemo_llm_stage.dataset.verify import Verification, verify
from nemo_llm_stage.dataset.writing import writing_to
from nemo_llm_stage.errors import RowError
from nemo_llm_stage.job.record import open_output, read_record
from nemo_llm_stage.prompt import Template
from nemo_llm_stage.report.page.facts import causes, failures, spent, verdict, waste
from nemo_llm_stage.report.page.plots import histogram, label_bars
from nemo_llm_stage.report.page.sample import (
    SampledRow,
    extremes,
    labels_of,
    metas_of,
    numbers_of,
    sample_rows,
    servers_of,
)
from nemo_llm_stage.report.page.timeline_plot import MIN_POINTS, load_plot, speed_plot
from nemo_llm_stage.report.progress.words import name_of

MAX_ROWS_SHOWN = 150
"""Rows of the sample that the page holds, beside the failed, slowest and longest ones."""

MAX_OPEN_EVENTS = 20
"""So many events are shown at once; a list of more is opened by a click."""

MAX_CHARS = 2000
"""Of one value; longer ones are cut."""

MAX_BYTES = 1_500_000
"""Of all rows together as JSON; fewer rows are shown where theirs are longer."""

_FOLDER = Path(__file__).parent
_NUMBERS = (
    ("Latency", "latency_s", "s"),
    ("Input tokens", "input_tokens", ""),
    ("Output tokens", "output_tokens", ""),
    ("Requests", "attempts", ""),
)
"""Plots of each column: title, field of its meta, unit."""

PAGE = "report.html"
"""Where the page lies in the job's state folder."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with its title."""

    title: str
    svg: Markup


def report_page(url: str, verification: Verification | None = None) -> str:
    """
    Return the page about the job that writes the output folder `url`: finished, stopped or still running.

    Reads the rows of at most 32 files, and every committed file's footer unless `verification` tells what they say.

    Raises:
        OutputConflictError: No job of this package has written there.
        RunError: A committed file cannot be read.
    """
    output, plan = open_output(url)
    record = read_record(url)
    columns = list(output_columns_of(record))
    verification = verification or verify(output, plan)
    rows = sample_rows(output)
    timeline = _newest_timeline(output)
    shown = _as_json(_chosen(rows, columns), columns, record)
    style, script = (_FOLDER / "page.css").read_text("utf-8"), (_FOLDER / "page.js").read_text("utf-8")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=url.rstrip("/").rpartition("/")[2],
            url=url,
            made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            record=record,
            verification=verification,
            verdict=verdict(verification, plan.num_rows),
            counters=verification.counters,
            spent=spent(url, timeline),
            num_planned=plan.num_rows,
            columns=columns,
            stages=_stages(record, columns),
            plots=_plots(rows, columns),
            timeline=timeline,
            timeline_plots=_timeline_plots(timeline),
            servers=servers_of(rows, columns),
            failures=failures(verification.counters),
            waste=waste(verification.counters),
            causes=causes(verification.counters),
            max_open_events=MAX_OPEN_EVENTS,
            num_sampled=len(rows),
            rows=Markup(shown),  # noqa: S704 - JSON without a "<"
            style=Markup(style),  # noqa: S704 - ours
            script=Markup(script),  # noqa: S704 - ours
            policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        )
    )


def write_report(url: str, verification: Verification | None = None) -> str:
    """
    Write `report_page` into the output folder, and return where it lies.

    Raises:
        OutputConflictError: No job of this package has written there.
        RunError: A committed file cannot be read, or the folder cannot be written.
    """
    output, _ = open_output(url)
    page = report_page(url, verification).encode("utf-8", "replace")
    with writing_to(url):
        output.state.replace_bytes(page, PAGE, scratch_sub=TMP)
    return output.state.path(PAGE)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=select_autoescape(default=True), undefined=StrictUndefined
    )
    environment.filters["server"] = lambda url: name_of(url) if "://" in url else url
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["pretty"] = lambda value: orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    return environment


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _stages(record: Mapping[str, Any], columns: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    stage = record["stage"]
    return list(stage["columns"].items()) if "columns" in stage else [(columns[0], stage)]


def _newest_timeline(output: OutputFolder) -> Timeline | None:
    """Return the timeline of the newest run that was long enough to show; None where there is none."""
    try:
        timelines = read_timelines(output.state)
    except OSError:
        return None
    return next((one for one in reversed(timelines) if len(one.points) >= MIN_POINTS), None)


def _timeline_plots(timeline: Timeline | None) -> list[Plot]:
    if timeline is None:
        return []
    return [
        Plot("Rows a second", Markup(speed_plot(timeline))),  # noqa: S704 - numbers, and events that are escaped
        Plot("Requests in flight, and their limit", Markup(load_plot(timeline))),  # noqa: S704 - likewise
    ]


def _plots(rows: Sequence[SampledRow], columns: Sequence[str]) -> list[Plot]:
    plots = []
    for name in columns:
        for title, field, unit in _NUMBERS:
            if numbers := metas_of(rows, [name], field):
                plots.append(Plot(f"{title} of {name}", Markup(histogram(numbers, unit))))  # noqa: S704 - numbers
        if labels := labels_of(rows, name):
            plots.append(Plot(f"Values of {name}", Markup(label_bars(labels))))  # noqa: S704 - labels are escaped
        elif values := numbers_of(rows, name):
            plots.append(Plot(f"Values of {name}", Markup(histogram(values, ""))))  # noqa: S704 - numbers
    return plots


def _chosen(rows: Sequence[SampledRow], columns: Sequence[str]) -> dict[str, list[SampledRow]]:
    stride = max(1, len(rows) // MAX_ROWS_SHOWN)
    return {
        "sample": list(rows[::stride][:MAX_ROWS_SHOWN]),
        "failed": [row for row in rows if row.errors(columns)][:50],
        "slowest": extremes(rows, lambda row: max(row.numbers(columns, "latency_s"), default=0.0)),
        "longest": extremes(rows, lambda row: sum(row.numbers(columns, "output_tokens"))),
    }


def _as_json(chosen: Mapping[str, Sequence[SampledRow]], columns: Sequence[str], record: Mapping[str, Any]) -> str:
    """Return the rows for the page's script, as many as fit into `MAX_BYTES`; no "<" stands in it."""
    templates = _templates(record, columns)
    share = MAX_BYTES // len(chosen)
    entries: dict[int, bytes] = {}  # of a row that is in several lists there is one
    lists: dict[str, list[orjson.Fragment]] = {}
    for name, rows in chosen.items():
        room, lists[name] = share, []
        for row in rows:
            if id(row) not in entries:
                entries[id(row)] = orjson.dumps(_entry(row, columns, templates))
            room -= len(entries[id(row)])
            if room < 0:
                break
            lists[name].append(orjson.Fragment(entries[id(row)]))
    return orjson.dumps(lists).decode().replace("<", "\\u003c")


def _entry(row: SampledRow, columns: Sequence[str], templates: Mapping[str, Sequence[Template]]) -> dict[str, Any]:
    generated = {key for key in row.values if any(key == name or key.startswith(f"{name}_") for name in columns)}
    answers = []
    for name in columns:
        fields = {key: value for key, value in row.values.items() if key == name or key.startswith(f"{name}_")}
        error, meta = fields.pop(f"{name}_error", None), fields.pop(f"{name}_meta", None) or {}
        skipped = fields.pop(f"{name}_skipped", None)
        answers.append(
            {
                "name": name,
                "value": _text(fields.get(name) if set(fields) <= {name} else fields),
                "error": None if error is None else _text(error),
                "skipped": _text(skipped),
                "prompt": _rendered(templates.get(name, ()), row.values),
                "meta": ", ".join(f"{key} {_short(value)}" for key, value in meta.items() if value is not None),
            }
        )
    values = [[name, _text(value)] for name, value in row.values.items() if name not in generated]
    return {"place": row.place, "values": values, "answers": answers}


def _templates(record: Mapping[str, Any], columns: Sequence[str]) -> dict[str, list[Template]]:
    """Return the prompt of each output column; none for a prompt that is a function."""
    prompts = {name: stage["prompt"] for name, stage in _stages(record, columns)}
    return {
        name: [
            Template(text, on_null="empty")
            for text in (prompt["system_prompt"], *(turn["content"] for turn in prompt["messages"]))
            if text
        ]
        for name, prompt in prompts.items()
    }


def _rendered(templates: Sequence[Template], row: Mapping[str, Any]) -> str:
    try:
        return _text("\n\n".join(template.render(row) for template in templates))
    except RowError as error:
        return f"(cannot be rendered: {error})"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _text(value)


_ENCODER = json.JSONEncoder(default=str, ensure_ascii=False)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    text = value if isinstance(value, str) else _ENCODER.encode(value)
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}… ({len(text):,} characters)"
