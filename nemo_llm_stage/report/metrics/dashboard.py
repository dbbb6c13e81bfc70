"""A Grafana dashboard of the metrics, made from their names. Pure. Grafana 10 or newer imports it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nemo_llm_stage.report.metrics import figures
from nemo_llm_stage.report.metrics.figures import OUTPUT, Family, prometheus_word

_OUTPUT = prometheus_word(OUTPUT)
_SERVER = "{{nemo_llm_stage_server}}"
_WIDTH, _HEIGHT = 24, 8
_IS_FAILED = ', outcome="failed"'
_IS_DOWN = ', state=~"suspect|resting"'
_IS_OUTPUT = ', gen_ai_token_type="output"'


def dashboard() -> dict[str, Any]:
    """Return the dashboard as JSON-able values; its variable `prefix` is ``ray_`` for metrics that come through Ray."""
    return {
        "title": "nemo-llm-stage",
        "uid": "nemo-llm-stage",
        "tags": ["nemo-llm-stage", "llm"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_placed()),
    }


def _name(family: Family, part: str = "") -> str:
    """Return a metric's name, and the condition that it is of the chosen job."""
    return f'${{prefix}}{family.prometheus_name}{part}{{{_OUTPUT}=~"$output"'


def _all(family: Family, part: str = "", only: str = "") -> str:
    return f"{_name(family, part)}{only}}}"


def _rate(family: Family, part: str = "", only: str = "") -> str:
    return f"rate({_all(family, part, only)}[$__rate_interval])"


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
    yield {
        "name": "prefix",
        "type": "custom",
        "label": "Prefix",
        "query": "job : ,ray : ray_",
        "options": [
            {"text": "job", "value": "", "selected": True},
            {"text": "ray", "value": "ray_", "selected": False},
        ],
        "current": {"text": "job", "value": ""},
    }
    query = f"label_values(${{prefix}}{figures.PLANNED.prometheus_name}, {_OUTPUT})"
    yield {
        "name": "output",
        "type": "query",
        "label": "Output",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": "output"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _panels() -> Iterator[tuple[str, str, str, int, list[tuple[str, str]]]]:
    """Yield each panel's type, title, unit and width, and its queries with their legends."""
    rows, tokens, seconds, requests = figures.ROWS, figures.TOKENS, figures.DURATION, figures.REQUESTS
    done = f"sum({_all(rows)})"
    yield "stat", "Done", "percentunit", 4, [(f"{done} / sum({_all(figures.PLANNED)})", "")]
    yield "stat", "Rows", "short", 4, [(done, "")]
    yield "stat", "Rows a second", "short", 4, [(f"sum({_rate(rows)})", "")]
    failed = f"sum({_all(rows, only=_IS_FAILED)}) / clamp_min({done}, 1)"
    yield "stat", "Failed", "percentunit", 4, [(failed, "")]
    yield "stat", "Time left", "s", 4, [(f"max({_all(figures.LEFT)})", "")]
    yield "stat", "Cost", "currencyUSD", 4, [(f"sum({_all(figures.COST)})", "")]
    yield "timeseries", "Rows a second, by outcome", "short", 12, [(f"sum by (outcome) ({_rate(rows)})", "{{outcome}}")]
    by_type = f"sum by (gen_ai_token_type) ({_rate(tokens, '_sum')})"
    yield "timeseries", "Tokens a second", "short", 12, [(by_type, "{{gen_ai_token_type}}")]
    by_result = f"sum by (result) ({_rate(requests)})"
    yield "timeseries", "Requests a second, by result", "reqps", 12, [(by_result, "{{result}}")]
    in_flight = [
        (f"sum by (nemo_llm_stage_server) ({_all(figures.IN_FLIGHT)})", f"{_SERVER} in flight"),
        (f"sum by (nemo_llm_stage_server) ({_all(figures.LIMIT)})", f"{_SERVER} limit"),
        (f"sum({_all(figures.RETRYING)})", "waiting to retry"),
    ]
    yield "timeseries", "Requests in flight, and their limit", "short", 12, in_flight
    quantiles = [
        (f"histogram_quantile({share}, sum by (le) ({_rate(seconds, '_bucket')}))", f"p{round(100 * share)}")
        for share in (0.5, 0.95, 0.99)
    ]
    mean = f"sum({_rate(seconds, '_sum')}) / sum({_rate(seconds, '_count')})"
    yield "timeseries", "Latency", "s", 12, [*quantiles, (mean, "mean")]
    by_server = f"histogram_quantile(0.95, sum by (le, nemo_llm_stage_server) ({_rate(seconds, '_bucket')}))"
    yield "timeseries", "Latency by server, p95", "s", 12, [(by_server, _SERVER)]
    down = f"sum by (nemo_llm_stage_server) ({_all(figures.STATE, only=_IS_DOWN)})"
    yield "timeseries", "Servers that rest (1) or answer (0)", "short", 12, [(down, _SERVER)]
    kinds = f"sum by (error_type) ({_all(figures.FAILURES)})"
    yield "timeseries", "Failed rows, by kind", "short", 12, [(kinds, "{{error_type}}")]
    wasted = [
        (f"sum({_all(figures.WASTED_REQUESTS)}) / clamp_min(sum({_all(requests)}), 1)", "requests"),
        (
            f"sum({_all(figures.WASTED_TOKENS)}) / clamp_min(sum({_all(tokens, '_sum', _IS_OUTPUT)}), 1)",
            "output tokens",
        ),
    ]
    yield "timeseries", "Wasted", "percentunit", 12, wasted
    per_answer = f"sum({_rate(tokens, '_sum', _IS_OUTPUT)}) / clamp_min(sum({_rate(rows)}), 0.001)"
    yield "timeseries", "Output tokens a row", "short", 12, [(per_answer, "tokens")]
    yield "state-timeline", "What the run does", "short", 24, [(f"max by (phase) ({_all(figures.PHASE)})", "{{phase}}")]


def _placed() -> Iterator[dict[str, Any]]:
    x = y = height = 0
    for number, (kind, title, unit, width, queries) in enumerate(_panels(), 1):
        if x + width > _WIDTH:
            x, y = 0, y + height
        height = 4 if kind == "stat" else _HEIGHT
        yield {
            "id": number,
            "type": kind,
            "title": title,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "gridPos": {"x": x, "y": y, "w": width, "h": height},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend}
                for index, (expression, legend) in enumerate(queries)
            ],
        }
        x += width
