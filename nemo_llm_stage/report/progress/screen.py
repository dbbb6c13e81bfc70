"""
A view as lines of a terminal, at any width from 60 columns on. Pure: a view in, lines out.

A line never wraps: what does not fit is left out or cut with an ellipsis. All text from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.report.progress.servers import server_lines
from nemo_llm_stage.report.progress.view import View
from nemo_llm_stage.report.progress.words import time_left, wait_words
from nemo_llm_stage.report.units import duration, money, percent, rate
from nemo_llm_stage.servers.fleet import FleetView
from nemo_llm_stage.text import one_line

WIDE = 100
"""From so many columns on there is room for more."""

TICKER_ROWS = 3

MIN_BAR, MAX_BAR = 8, 60
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def lines(view: View, width: int, *, interrupt: str = "Ctrl-C") -> list[Text]:
    """Return the lines of the whole screen, each at most `width` cells wide; `interrupt` is what stops the run."""
    every = [_title(view, width)]
    if view.phase == "starting":
        every.append(_starting(view, width))
        every += _tail(view)
    else:
        every += _running(view, width)
    every.append(_keys(view, interrupt))
    for line in every:
        line.no_wrap, line.overflow = True, "ellipsis"
        line.truncate(width, overflow="ellipsis")
    return every


def _running(view: View, width: int) -> Iterator[Text]:
    yield _bar(view, width)
    yield _fitting(_speed(view), width)
    yield _fitting(_outcomes(view.counters), width)
    yield _fitting(_requests(view), width)
    yield from server_lines(view, width)
    yield from _failures(view.counters, 4 if width >= WIDE else 2)
    yield from _waits(view, width)
    if width >= WIDE:
        yield from _ticker(view)


def _title(view: View, width: int) -> Text:
    title = view.title
    about = "" if title.is_exact else "about "
    columns, models = one_line(", ".join(title.columns)), one_line(", ".join(title.models))
    ran = f"{'starting' if view.phase == 'starting' else 'running'} {duration(view.elapsed_s)} "
    line = Text(" ")
    line.append(columns or "nemo-llm-stage", style="bold")
    if title.num_rows:
        line.append(f"  {about}{title.num_rows:,} rows")
    if models:
        line.append(f"  {models}", style="dim")
    line.truncate(max(1, width - len(ran) - 1), overflow="ellipsis")
    line.append(" " * (width - line.cell_len - len(ran)))
    return line.append(ran, style="dim")


def _starting(view: View, width: int) -> Text:
    if view.scanned is not None:
        return _scan(view.scanned, width)
    if view.fleet is not None:
        return _fleet(view.fleet, width)
    frame = SPINNER[int(view.now * 5) % len(SPINNER)]
    return Text.assemble((f" {frame} ", "cyan"), f"waiting for {one_line(view.waits_for or 'the first answer')}")


def _bar(view: View, width: int) -> Text:
    done, total = view.counters.num_rows, view.title.num_rows
    share = min(1.0, done / total) if total else 0.0
    about = "" if view.title.is_exact else "~"
    num = Text(f"  {done:,} / {about}{total:,}  {int(100 * share)} %")
    left = Text(f"  {time_left(view)} ", style="yellow" if view.stalled_since else "")
    room = width - 1 - num.cell_len - left.cell_len
    bar = min(MAX_BAR, room) if room >= MIN_BAR else 0
    gap = " " * max(0, room - bar)
    return _drawn(share, bar).append_text(num).append(gap).append_text(left)


def _drawn(share: float, width: int) -> Text:
    """Return a bar; `share` of it is full."""
    full, half = divmod(int(2 * width * share), 2)
    line = Text(" ").append("━" * full + "╸" * half, style="green")
    return line.append("━" * (width - full - half), style="bright_black")


def _scan(scanned: tuple[int, int], width: int) -> Text:
    """Return how far the look at the input is."""
    num_bytes, in_all = scanned
    share = num_bytes / in_all
    words = f"  looking at the input: {num_bytes / 1e9:.1f} / {in_all / 1e9:.1f} GB  {int(100 * share)} %"
    line = _drawn(share, max(0, min(MAX_BAR, width - 1 - len(words)))).append(words)
    line.truncate(width)
    return line


def _fleet(fleet: FleetView, width: int) -> Text:
    """Return how far the servers are that the job starts."""
    words = f"  {fleet.num_healthy} / {fleet.num_servers} servers are up; waiting for {fleet.words}"
    bar = max(0, min(MAX_BAR // 2, width - 1 - len(words)))
    return _drawn(fleet.num_healthy / fleet.num_servers, bar).append(words)


def _tail(view: View) -> Iterator[Text]:
    """Yield the last lines of the log of a server that starts."""
    for line in view.fleet.tail if view.fleet is not None else ():
        yield Text(f"   {one_line(line)}", style="dim")


def _speed(view: View) -> Iterator[Text]:
    if view.rows_per_s is None:
        yield Text("no answer yet")
    else:
        yield Text(f"{rate(view.rows_per_s)} rows/s")
        yield Text(f"{rate(view.output_per_s)} tok/s out")
        yield Text(f"{rate(view.input_per_s)} tok/s in")
    if view.cost is not None:
        expected = "" if view.expected_cost is None else f" of about {money(view.expected_cost)}"
        yield Text(f"cost {money(view.cost)}{expected}")


def _outcomes(counters: Counters) -> Iterator[Text]:
    yield Text(f"answered {counters.num_answered:,}", style="green")
    failed = f"failed {counters.num_failed:,}"
    share = f" ({percent(counters.num_failed, counters.num_rows)})" if counters.num_failed else ""
    yield Text(failed + share, style="red" if counters.num_failed else "")
    for words, num in (("skipped", counters.num_skipped), ("dropped", counters.num_dropped)):
        if num:
            yield Text(f"{words} {num:,}")
    if counters.num_cut_off:
        yield Text(f"cut off {counters.num_cut_off:,}", style="yellow")
    if counters.num_resumed_rows:
        yield Text(f"resumed {counters.num_resumed_rows:,}", style="dim")


def _requests(view: View) -> Iterator[Text]:
    stage, endpoints = view.stage, [endpoint.status for endpoint in view.endpoints]
    yield Text(f"in flight {stage.num_in_flight:,} of {stage.max_in_flight:,}")
    if stage.num_retrying:
        yield Text(f"waiting to retry {stage.num_retrying:,}")
    num_limited = sum(endpoint.num_rate_limited for endpoint in endpoints)
    num_refused = sum(endpoint.num_refused for endpoint in endpoints)
    if num_limited:
        yield Text(f"429s {num_limited:,}")
    if num_refused:
        yield Text(f"refused {num_refused:,}")
    counters = view.counters
    if counters.num_wasted_attempts:
        yield Text(f"wasted {percent(counters.num_wasted_attempts, counters.num_attempts)}")


def _failures(counters: Counters, max_kinds: int) -> Iterator[Text]:
    kinds = sorted(counters.errors.items(), key=lambda item: -item[1])
    for kind, num in kinds[:max_kinds]:
        example = one_line(counters.examples.get(kind, "").partition(": ")[2])
        yield Text.assemble((f" {one_line(kind)} ×{num:,}", "red"), (f"  {example}", "dim"))  # noqa: RUF001
    if len(kinds) > max_kinds:
        num = sum(num for _, num in kinds[max_kinds:])
        yield Text(f" and {num:,} more failures of {len(kinds) - max_kinds:,} other kinds", style="red")


def _waits(view: View, width: int) -> Iterator[Text]:
    words = wait_words(view)
    if words is None:
        return
    when, why = words
    if width >= WIDE:
        yield Text(f" {when}: {why}", style="yellow")
    else:
        yield Text(f" {when}:", style="yellow")
        yield Text(f"   {why}", style="yellow")


def _ticker(view: View) -> Iterator[Text]:
    """Yield a few of the newest rows: when, and the answers or the errors."""
    for row in view.rows[-TICKER_ROWS:]:
        line = Text(f" {row['at'][11:19]}  ", style="dim")
        cells = [(name, text, "") for name, text in row["values"].items()]
        errors = row["errors"].items()
        cells += [(name, text, "yellow" if text.startswith("skipped:") else "red") for name, text in errors]
        for name, text, style in cells:
            label = f"{one_line(name)}: " if len(cells) > 1 else ""
            line.append(label, style="dim").append(f"{one_line(text)}  ", style=style or "default")
        yield line


def _keys(view: View, interrupt: str) -> Text:
    if view.drain_left_s is None:
        return Text(f" {interrupt}: finish what is in flight and stop   again: stop now", style="dim")
    num = view.stage.num_in_flight
    requests = "request" if num == 1 else "requests"
    waits = f"waiting for {num:,} {requests} in flight, at most {duration(view.drain_left_s)}" if num else "committing"
    return Text(f" stopping: {waits}   {interrupt}: stop now", style="yellow")


def _fitting(parts: Iterator[Text], width: int) -> Text:
    """Return as many of the parts, from the first on, as fit on one line."""
    line = Text()
    for part in parts:
        if line.cell_len + 3 + part.cell_len > width:
            break
        line.append("   " if line.cell_len else " ").append_text(part)
    return line
