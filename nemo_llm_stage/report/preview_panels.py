"""
What a person sees of a preview: each row's prompt and answer, and what the whole dataset would take.

Knows messages and results; knows nothing of how they came about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from nemo_llm_stage.core import RowResult
from nemo_llm_stage.job.preview import Preview, PreviewedColumn, PreviewedRow
from nemo_llm_stage.prompt.shared_first import LateShare
from nemo_llm_stage.report.console import shown
from nemo_llm_stage.report.estimate import CONFIDENCE, Estimate, estimate_total
from nemo_llm_stage.report.units import duration

MAX_SHOWN_CHARS = 2_000
"""Most of one text that is shown, unless all of it is asked for."""

_ROLE_STYLES = {"system": "magenta", "user": "cyan", "assistant": "blue"}


def preview_panels(preview: Preview, *, is_full: bool = False) -> Group:
    """
    Return a preview: a panel for each row, and what all rows would take where these were sent.

    Args:
        preview: The rows, and what they are a sample of.
        is_full: Whether long texts are shown to their end.
    """
    panels: list[RenderableType] = [
        row_panel(_title(row, preview.num_rows), row.columns, is_dropped=row.is_dropped, is_full=is_full)
        for row in preview.rows
    ]
    results = [[column.result for column in row.columns if column.result is not None] for row in preview.rows]
    panels += [shown(_late_share(share, preview), "yellow") for share in preview.late_shares]
    if not any(results):
        about = "" if preview.is_exact else "about "
        return Group(*panels, shown(f"{about}{preview.num_rows:,} rows; no requests were sent."))
    all_rows = estimates(
        results,
        preview.num_rows,
        is_exact=preview.is_exact,
        max_concurrent_requests=preview.max_concurrent_requests,
        price_input=preview.price_input,
        price_output=preview.price_output,
    )
    return Group(*panels, all_rows)


def _late_share(share: LateShare, preview: Preview) -> str:
    total = share.num_tokens * preview.num_rows
    cost = "" if preview.price_input is None else f", {_money(total * preview.price_input / 1e6)} at the full price"
    speed = preview.prompt_speed
    time = "" if speed is None else f", {duration(total / speed)} at the {speed:,.0f} a second that the servers compute"
    return (
        f"In the prompt {share.part} stand{'s' * share.part.startswith('{{')} after {{{{ {share.after} }}}}, which "
        f"differs. A server's prefix cache keeps only equal beginnings: about {share.num_tokens:,.0f} tokens a row, "
        f"{total:,.0f} in all{cost}{time}, are computed anew that would be kept if the shared part came first."
    )


def _title(row: PreviewedRow, num_rows: int) -> str:
    return "a row" if row.number is None else f"row {row.number + 1:,} of {num_rows:,}"


def row_panel(
    title: str, columns: Sequence[PreviewedColumn], *, is_dropped: bool = False, is_full: bool = False
) -> Panel:
    """
    Return one row: for each column what is asked, and what came back.

    Args:
        title: Which row it is.
        columns: In order.
        is_dropped: Whether the row is left out of the output.
        is_full: Whether long texts are shown to their end.
    """
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")

    def add(label: str, words: str, style: str = "", words_style: str = "") -> None:
        text = words if is_full else _shortened(words)
        grid.add_row(shown(label, f"bold {style}".strip()), shown(text, words_style))

    for column in columns:
        if len(columns) > 1:
            grid.add_row(shown(column.name, "bold underline"), shown(_subtitle(column.result) or "", "dim"))
        _add_prompt(add, column)
        if column.result is not None:
            _add_result(add, column.result)
    if is_dropped:
        add("dropped", "keep_if is false", "yellow", "yellow")
    subtitle = _subtitle(columns[0].result) if len(columns) == 1 else None
    below = None if subtitle is None else shown(subtitle)
    return Panel(grid, title=shown(title), title_align="left", subtitle=below, subtitle_align="right")


def _add_prompt(add: Callable[..., None], column: PreviewedColumn) -> None:
    if column.waits_for:
        add("prompt", f"waits for the answer of {', '.join(column.waits_for)}", words_style="dim")
    elif column.text is not None:
        add("prompt", column.text, "cyan")
    else:
        for message in column.messages:
            role = str(message.get("role"))
            add(role, _content(message.get("content")), _ROLE_STYLES.get(role, ""))


def _add_result(add: Callable[..., None], result: RowResult) -> None:
    texts = () if result.completion is None else result.completion.texts
    for thinking in () if result.completion is None else result.completion.reasoning:
        if thinking:
            add("thinking", thinking, words_style="dim")
    for index, answer in enumerate(texts):
        add("answer" if len(texts) == 1 else f"answer {index + 1}", answer, "green")
    if result.error is not None:
        is_skipped = result.error_kind == "skipped"
        add("skipped" if is_skipped else "error", result.error, *(["yellow"] * 2 if is_skipped else ["red"] * 2))
    elif texts and result.value != texts[0]:
        add("value", json.dumps(result.value, ensure_ascii=False, default=str), "green")


def _subtitle(result: RowResult | None) -> str | None:
    if result is None or result.completion is None:
        return None
    completion, usage = result.completion, result.usage
    parts = []
    if usage is not None:
        parts.append(f"{usage.input_tokens or 0:,} tokens in, {usage.output_tokens or 0:,} out")
    if completion.latency_s is not None:
        parts.append(f"{_latency_s(result):.2f} s")
    parts += [reason for reason in completion.finish_reasons if reason not in (None, "stop")]
    if result.attempts > 1:
        parts.append(f"{result.attempts} attempts" + (f" ({result.recovery})" if result.recovery else ""))
    return ", ".join(parts)


def estimates(
    rows: Sequence[Sequence[RowResult]],
    num_rows: int,
    *,
    is_exact: bool,
    max_concurrent_requests: int,
    price_input: float | None = None,
    price_output: float | None = None,
) -> RenderableType:
    """
    Return the table of what the whole dataset would take.

    Args:
        rows: The results of all columns, of a sample of the dataset's rows; at least one.
        num_rows: Rows of the dataset.
        is_exact: Whether they were counted.
        max_concurrent_requests: Most requests that will be in flight.
        price_input: Of a million input tokens, in any currency.
        price_output: Of a million output tokens.
    """
    inputs = [sum(_tokens(result, "input_tokens") for result in row) for row in rows]
    outputs = [sum(_tokens(result, "output_tokens") for result in row) for row in rows]
    latencies = [sum(map(_latency_s, row)) for row in rows]
    about = "" if is_exact else "about "
    table = Table(box=box.SIMPLE, pad_edge=False, title=f"all {about}{num_rows:,} rows", title_justify="left")
    for column in ("", "a row", "all rows", f"{CONFIDENCE:.0%} interval"):
        table.add_column(column, justify="right" if column else "left")

    def add(label: str, sample: Sequence[float], share: float, form: Callable[[float], str]) -> None:
        estimate = estimate_total(sample, num_rows)
        scaled = (estimate.per_row, *(None if x is None else x * share for x in (estimate.total, *_ends(estimate))))
        cells = [form(number) for number in scaled if number is not None]
        table.add_row(label, *cells[:2], " to ".join(cells[2:]))

    if any(inputs) or any(outputs):
        add("input tokens", inputs, 1.0, _count)
        add("output tokens", outputs, 1.0, _count)
        if price_input is not None or price_output is not None:
            pairs = zip(inputs, outputs, strict=True)
            add("cost", [(i * (price_input or 0) + o * (price_output or 0)) / 1e6 for i, o in pairs], 1.0, _money)
    if any(latencies):
        add("time", latencies, 1 / max_concurrent_requests, _span)
    note = (
        f"Extrapolated from {len(rows)} row{'s' * (len(rows) > 1)}. The time assumes {max_concurrent_requests:,} "
        "requests in flight, each as fast as these; a loaded server will be slower."
    )
    return Group(table, shown(note, "dim"))


def _ends(estimate: Estimate) -> tuple[float | None, float | None]:
    return estimate.low, estimate.high


def _tokens(result: RowResult, name: str) -> int:
    return getattr(result.usage, name, None) or 0


def _latency_s(result: RowResult) -> float:
    completions = (*result.discarded, *([result.completion] if result.completion is not None else []))
    return sum(completion.latency_s or 0.0 for completion in completions)


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _money(amount: float) -> str:
    decimals = 2 if amount >= 1 or amount <= 0 else 1 - math.floor(math.log10(amount))
    return f"{amount:,.{decimals}f}"


def _span(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 60 else duration(seconds)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] if "text" in part else _image(part) for part in parts)


def _image(part: dict[str, Any]) -> str:
    inner = part.get(part.get("type", ""), part)
    url = str(inner.get("url", "") if isinstance(inner, dict) else inner)
    if not url.startswith("data:"):
        return f"[{part.get('type')} {url}]"
    media_type, _, data = url.removeprefix("data:").partition(";base64,")
    return f"[{media_type}, {len(data) * 3 // 4:,} bytes]"


def _shortened(text: str) -> str:
    if len(text) <= MAX_SHOWN_CHARS:
        return text
    half = MAX_SHOWN_CHARS // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} more characters …]\n{text[-half:]}"
