"""The words of a view that several displays share: the time left, why it waits, and a server's short name. Pure."""

from __future__ import annotations

from nemo_llm_stage.report.limits import SHORT
from nemo_llm_stage.report.progress.view import EndpointView, View
from nemo_llm_stage.report.units import about, duration
from nemo_llm_stage.text import one_line

NARROW_RANGE = 1.3
"""A range whose ends differ by less is shown as one number."""


def name_of(url: str) -> str:
    """Return host and port of a server, which tell it from others."""
    return one_line(url.partition("://")[2].partition("/")[0] or url)


def time_left(view: View) -> str:
    """Return how long the job still takes, or why nobody can tell."""
    if view.phase == "draining":
        return "stopping"
    if view.phase == "paused":
        return "paused"
    if view.stalled_s is not None:
        return f"waiting for the server since {duration(view.stalled_s)}"
    if view.left_s is None:
        return ""
    low, high = view.left_s
    if about(low) == about(high) or high < NARROW_RANGE * low:
        return f"about {about((low + high) / 2)} left"
    return f"{about(low)} to {about(high)} left"


def state_of(endpoint: EndpointView, now: float) -> str:
    """Return a server's state in a few words."""
    status = endpoint.status
    if status.is_down:
        word = "DOWN" if status.state == "resting" else "SILENT"
        since = "" if status.since is None else f" {duration(max(0.0, now - status.since))}"
        return f"{word}{since}{_next_try(status.next_try_at, now)}"
    word = "ok" if status.state == "healthy" else status.state
    share = round(100 * endpoint.limited_share)
    if share:
        return f"{word}, {share} % 429"
    held = SHORT.get(status.bottleneck or "")
    return f"{word}, {held}" if held else word


def wait_words(view: View) -> tuple[str, str] | None:
    """Return since and until when requests wait, and why; None where none does."""
    outage = view.stage.outage
    if outage is None:
        return None
    since = f"since {duration(view.now - outage.since)}"
    next_try = f"next try in {duration(max(0.0, outage.next_try_at - view.now))}"
    give_up = f"gives up in {duration(max(0.0, outage.give_up_at - view.now))}"
    return f"requests wait {since}, {next_try}, {give_up}", one_line(outage.error)


def _next_try(at: float | None, now: float) -> str:
    if at is None:
        return ""
    return f", retry in {duration(at - now)}" if at - now >= 0.5 else ", retry now"
