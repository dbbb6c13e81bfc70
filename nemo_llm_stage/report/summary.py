"""
What a person sees when a job has ended: a table of counts, and its failures grouped by cause.

Knows counts; knows nothing of how they came about.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.verify import Verification
from nemo_llm_stage.job.result import JobResult
from nemo_llm_stage.report.console import shown
from nemo_llm_stage.report.limits import found_limit
from nemo_llm_stage.report.program import program
from nemo_llm_stage.report.servers import servers
from nemo_llm_stage.report.units import duration, money, percent
from nemo_llm_stage.text import printable

_MAX_EXAMPLE_CHARS = 160


def summary(result: JobResult) -> Group:
    """Return what a person sees at the end: rows by outcome, what was sent and paid, the failures, what to do next."""
    counters = result.counters
    parts: list[RenderableType] = [_outcomes(result), _costs(result)]
    if result.left_out:
        parts.append(_left_out(result.left_out, result.output))
    if counters.num_failed:
        parts.append(failures(counters))
    table = servers(result.endpoints)
    if table is not None:
        parts.append(table)
    return Group(*parts, _next_steps(result))


def _outcomes(result: JobResult) -> Table:
    counters = result.counters
    table = _plain_table()
    table.add_row(
        "rows", f"{counters.num_rows:,}", f"in {result.num_partitions:,} file{'s' * (result.num_partitions != 1)}"
    )
    if result.num_rows_before:
        table.add_row("  done before", f"{result.num_rows_before:,}", "not sent again")
    if counters.num_resumed:
        table.add_row("  resumed", f"{counters.num_resumed:,}", "answers that an earlier run had journaled")
    notes = {
        "answered": "",
        "failed": "",
        "skipped": "",
        "dropped": ", keep_if was false; not in the output",
    }
    for name, note in notes.items():
        num = getattr(counters, f"num_{name}")
        if num or name in ("answered", "failed"):
            table.add_row(f"  {name}", f"{num:,}", percent(num, counters.num_rows) + note)
    if counters.num_cut_off:
        share = percent(counters.num_cut_off, counters.num_answered)
        table.add_row("  cut off", f"{counters.num_cut_off:,}", f"{share} of the answered rows, at max_tokens")
    if counters.num_shared:
        table.add_row("  shared", f"{counters.num_shared:,}", "answered by an identical request")
    if result.left_out:
        table.add_row("left out", f"{counters.num_left_out:,}", "rows of the input that cannot be read")
    return table


def _costs(result: JobResult) -> Table:
    """Return what this run took, and what the whole job took if earlier runs had a part in it."""
    run, whole = result.this_run, result.counters
    is_alone = run.num_attempts == whole.num_attempts and run.input_tokens == whole.input_tokens
    table = Table(box=box.SIMPLE, show_header=not is_alone, pad_edge=False)
    table.add_column(style="bold")
    for heading in ("this run",) if is_alone else ("this run", "whole job"):
        table.add_column(heading, justify="right")
    table.add_column(style="dim")
    for name, of, note in _cost_rows(result):
        cells = [of(run)] if is_alone else [of(run), of(whole)]
        if any(cell not in ("0", "0.00 %", "") for cell in cells) or name == "requests":
            table.add_row(name, *cells, note)
    if result.gpu_time is not None:
        cost = "" if result.gpu_time.cost is None else f"{money(result.gpu_time.cost)} for the GPUs"
        of_all = "" if is_alone else "of all runs"
        note = ", ".join(filter(None, (of_all, cost)))
        table.add_row("GPU-hours", *[""] * (not is_alone), f"{result.gpu_time.hours:,.3g}", note)
    rate = run.num_rows / result.elapsed_s if result.elapsed_s > 0 else 0.0
    note = (
        f"{rate:,.1f} rows/s, start and end included"
        if run.num_rows
        else "no requests were sent: every row was finished before"
    )
    table.add_row("time", duration(result.elapsed_s), *[""] * (not is_alone), note)
    limit = found_limit(result.endpoints)
    if limit is not None:
        table.add_row("in flight", f"{limit[0]:,}", *[""] * (not is_alone), shown(limit[1]))
    if result.order.words:
        table.add_row("order", "", *[""] * (not is_alone), shown(result.order.words))
    num_unasked = sum(endpoint.num_unasked for endpoint in result.endpoints)
    if num_unasked:
        note = "connections dropped: a server or proxy sent what no request had asked for, e.g. an answer twice"
        table.add_row("unasked bytes", f"{num_unasked:,}", *[""] * (not is_alone), note)
    return table


def _cost_rows(result: JobResult) -> Iterator[tuple[str, Callable[[Counters], str], str]]:
    """Yield a name, its number as text, and a note."""

    def cost(counters: Counters) -> str:
        tokens = (
            counters.input_tokens * (result.price_input or 0),
            counters.output_tokens * (result.price_output or 0),
        )
        return money(sum(tokens) / 1e6)

    yield "requests", lambda counters: f"{counters.num_attempts:,}", ""
    yield "  wasted", lambda counters: percent(counters.num_wasted_attempts, counters.num_attempts), _WASTED
    yield "  failed", lambda counters: f"{counters.num_failed_answers:,}", "sent again, or the row failed"
    yield (
        "  second sends",
        lambda counters: f"{counters.num_second_sends:,}",
        "of rows at a slow server; one of both is wasted",
    )
    yield "  rate limited", lambda counters: f"{counters.num_rate_limited:,}", "status 429, sent again; not wasted"
    yield "refused connections", lambda counters: f"{counters.num_refused_connections:,}", "no server was reached"
    yield "input tokens", lambda counters: f"{counters.input_tokens:,}", _cached(result.counters)
    yield "output tokens", lambda counters: f"{counters.output_tokens:,}", ""
    yield "  wasted", lambda counters: percent(counters.wasted_output_tokens, counters.output_tokens), _WASTED
    if result.price_input is not None or result.price_output is not None:
        yield "cost", cost, result.price_note


_WASTED = "of sends that no row could use"


def _cached(counters: Counters) -> str:
    return f"{counters.cached_tokens:,} from the prefix cache" if counters.cached_tokens else ""


def _next_steps(result: JobResult) -> Text:
    """Return how to open the output, and the commands that may come next."""
    output = printable(result.output.rstrip("/"))
    is_local = "://" not in output
    word = shlex.quote(output) if is_local else output
    lines = [f"output   {output}"]
    files = f"{output}/part-*.{result.output_format}" if result.is_state_inside else output  # polars reads all it finds
    if result.output_format == "jsonl":
        lines.append(f"open     polars.read_ndjson({files!r})")
    else:
        lines.append(f"open     pandas.read_parquet({output!r})")
        lines.append(f"         polars.read_parquet({files!r})")
    lines.append(f"look     {program()} report {word}")
    lines.append(f"check    {program()} verify {word}")
    if result.counters.num_failed:
        lines.append(f"retry    {program()} retry-failed {word}")
    return Text("\n".join(lines))


def _plain_table() -> Table:
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    return table


def _add_costs(table: Table, counters: Counters) -> None:
    """Say what was sent and what came, and which part of it was of no use: retries, re-asks, failed rows."""
    wasted = percent(counters.num_wasted_attempts, counters.num_attempts)
    table.add_row("requests", f"{counters.num_attempts:,}", f"{wasted} wasted" if counters.num_wasted_attempts else "")
    for name, num, note in (
        ("  failed", counters.num_failed_answers, "sent again, or the row failed"),
        ("  rate limited", counters.num_rate_limited, "status 429, sent again later; not wasted"),
        ("refused connections", counters.num_refused_connections, "no server was reached; not wasted"),
    ):
        if num:
            table.add_row(name, f"{num:,}", note)
    if counters.input_tokens or counters.output_tokens:
        cached = f"{counters.cached_tokens:,} from the prefix cache" if counters.cached_tokens else ""
        table.add_row("input tokens", f"{counters.input_tokens:,}", cached)
        wasted = percent(counters.wasted_output_tokens, counters.output_tokens)
        note = f"{wasted} wasted" if counters.wasted_output_tokens else ""
        table.add_row("output tokens", f"{counters.output_tokens:,}", note)


def _left_out(records: Sequence[BadInput], output: str) -> Table:
    """Return the first of what was left out of the input, and where to find the rest."""
    table = Table(box=box.SIMPLE, title="left out of the input, for example", title_justify="left", pad_edge=False)
    table.caption = shown(f"all of it is written down in {OutputFolder(output).state.url}/bad_input/")
    table.caption_justify = "left"
    table.add_column("file", overflow="fold")
    table.add_column("line", justify="right")
    table.add_column("why", overflow="fold")
    for record in records:
        table.add_row(
            shown(record.path),
            "" if record.line is None else f"{record.line:,}",
            shown(record.reason[:_MAX_EXAMPLE_CHARS]),
        )
    return table


def failures(counters: Counters) -> Table:
    """Return the failed rows by kind, most first, with one example each."""
    table = Table(box=box.SIMPLE, title="failed rows by kind", title_justify="left", pad_edge=False)
    table.add_column("rows", justify="right")
    table.add_column("kind")
    table.add_column("for example", overflow="fold")
    for kind, num in sorted(counters.errors.items(), key=lambda item: -item[1]):
        example = counters.examples.get(kind, "").partition(": ")[2]
        table.add_row(f"{num:,}", shown(kind), shown(example[:_MAX_EXAMPLE_CHARS]))
    if counters.errors:
        most = max(counters.errors, key=lambda kind: counters.errors[kind])
        table.caption = shown(f"cause and next step: nemo-llm-stage explain {most}")
        table.caption_justify = "left"
    return table


def table_summary(counters: Counters, elapsed_s: float) -> Group:
    """Return what a notebook shows of a processed table: rows by outcome, tokens, and failures by kind."""
    words = {"answered": counters.num_answered, "failed": counters.num_failed, "skipped": counters.num_skipped}
    rows = ", ".join(f"{num:,} {word}" for word, num in words.items() if num or word == "answered")
    kept = f", {counters.num_resumed:,} answers from cache_dir" if counters.num_resumed else ""
    run = counters.without_resumed()
    line = (
        f"{counters.num_rows:,} rows: {rows}{kept}; {run.num_attempts:,} requests, {run.input_tokens:,} input and "
        f"{run.output_tokens:,} output tokens, {duration(elapsed_s)}"
    )
    return Group(shown(line), *([failures(counters)] if counters.num_failed else []))


def verification_table(verification: Verification, output: str, *, is_live: bool = False) -> Group:
    """Return what `nemo-llm-stage verify` shows: the account, and what is off. `is_live`: whether a run goes on."""
    counters = verification.counters
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("output", "", shown(output))
    table.add_row(
        "files", f"{verification.num_partitions - verification.num_missing:,} of {verification.num_partitions:,}"
    )
    table.add_row("rows", f"{counters.num_rows:,}")
    table.add_row("  answered", f"{counters.num_answered:,}")
    table.add_row("  failed", f"{counters.num_failed:,}")
    table.add_row("  skipped", f"{counters.num_skipped:,}")
    if counters.num_dropped:
        table.add_row("  dropped", f"{counters.num_dropped:,}", "keep_if was false; not in the output")
    if verification.left_out:
        table.add_row("left out", f"{counters.num_left_out:,}", "rows of the input that cannot be read")
    _add_costs(table, counters)
    if verification.is_complete:
        dropped = ", or was dropped" if counters.num_dropped else ""
        verdict = shown(f"every row is here exactly once{dropped}", "green")
    else:
        lines = [*verification.problems]
        if verification.num_missing:
            todo = (
                f"a run is in progress: nemo-llm-stage status {output}" if is_live else "run the job again to resume it"
            )
            lines.append(f"{verification.num_missing:,} partitions are not committed yet; {todo}.")
        verdict = shown("\n".join(lines), "yellow" if is_live and not verification.problems else "red")
    if not verification.left_out:
        return Group(table, verdict)
    return Group(table, _left_out(verification.left_out, output), verdict)
