"""A view as one line of a log, for people or for machines. Pure: a view in, a line out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from nemo_llm_stage.report.progress.view import View
from nemo_llm_stage.report.progress.words import name_of
from nemo_llm_stage.report.units import rate
from nemo_llm_stage.text import one_line

MAX_NAME_CHARS = 60
MAX_WHY_CHARS = 160


def record(view: View, event: str | None = None) -> dict[str, Any]:
    """
    Return what a line tells, as JSON-able values; a key that says nothing is missing.

    Args:
        view: How the job stands.
        event: What has just changed, e.g. ``outage_begins``.
    """
    counters, stage = view.counters, view.stage
    statuses = [endpoint.status for endpoint in view.endpoints]
    values: dict[str, Any] = {
        "time": datetime.fromtimestamp(view.now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "job": "+".join(view.title.columns) or "nemo-llm-stage",
        "event": event,
        "phase": view.phase,
        "waits_for": view.waits_for,
        "rows": counters.num_rows,
        "total": view.title.num_rows,
        "rows_per_s": None if view.rows_per_s is None else round(view.rows_per_s, 2),
        "eta_s": None if view.left_s is None else [round(end) for end in view.left_s],
        "in_flight": stage.num_in_flight,
        "failed": counters.num_failed,
        "skipped": counters.num_skipped,
        "dropped": counters.num_dropped,
        "cut_off": counters.num_cut_off,
        "retrying": stage.num_retrying,
        "retry_429": sum(status.num_rate_limited for status in statuses),
        "refused": sum(status.num_refused for status in statuses),
        "cost": None if view.cost is None else round(view.cost, 4),
        "stalled_s": None if view.stalled_s is None else round(view.stalled_s),
        "stops_in_s": None if view.drain_left_s is None else round(view.drain_left_s),
        "why": None if stage.outage is None else one_line(stage.outage.error, MAX_WHY_CHARS),
        "down": [name_of(status.url) for status in view.down],
    }
    return {name: value for name, value in values.items() if value is not None and value != []}


def json_line(view: View, event: str | None = None) -> str:
    """Return the record as one line of JSON."""
    return orjson.dumps(record(view, event)).decode()


def text_line(view: View, event: str | None = None) -> str:
    """Return the record as one line for people: time, job, rows, speed, and then what is not 0 as ``key=value``."""
    values = record(view, event)
    total = f"{'' if view.title.is_exact else '~'}{values['total']}"
    percent = min(99, 100 * values["rows"] // max(1, values["total"])) if values["rows"] < values["total"] else 100
    parts = [values["time"], one_line(values["job"], MAX_NAME_CHARS).replace(" ", "_")]
    if view.title.num_rows:
        parts += [f"{values['rows']}/{total}", f"{percent}%"]
    if view.rows_per_s is not None:
        parts.append(f"{rate(view.rows_per_s)} rows/s")
    return " ".join([*parts, *_pairs(view, values)])


def _pairs(view: View, values: Mapping[str, Any]) -> list[str]:
    pairs: dict[str, Any] = {"event": values.get("event")}
    if view.phase != "running":
        pairs["phase"] = view.phase
    if view.waits_for:
        pairs["waiting_for"] = one_line(view.waits_for).replace(" ", "_")
    if view.left_s is not None:
        pairs["eta"] = f"{round(sum(view.left_s) / 2)}s"
    pairs["inflight"] = values["in_flight"] if view.phase != "starting" else None
    for name in ("failed", "skipped", "dropped", "cut_off", "retrying", "retry_429", "refused", "cost"):
        pairs[name] = values.get(name) or None
    pairs["stalled"] = f"{values['stalled_s']}s" if "stalled_s" in values else None
    pairs["stops_in"] = f"{values['stops_in_s']}s" if "stops_in_s" in values else None
    pairs["down"] = ",".join(values.get("down", [])) or None
    if "why" in values and (view.stalled_s is not None or values.get("event") == "outage_begins"):
        pairs["why"] = orjson.dumps(values["why"]).decode()
    return [f"{name}={value}" for name, value in pairs.items() if value is not None]
