"""Numbers as people read them: times, shares, money, counts. Pure."""

from __future__ import annotations

_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def duration(seconds: float) -> str:
    """Return a time span for people: ``8 s``, ``3 min 20 s``, ``5 h 10 min``, ``2 d 4 h``."""
    whole = round(seconds)
    for unit_s, unit, rest_s, rest in _UNITS:
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // rest_s} {rest}"
    return f"{whole} s"


def about(seconds: float) -> str:
    """Return a time span that is only estimated: to 5 s below 10 minutes, to a minute below 2 hours, else to 10."""
    step = next((step for below, step in ((20, 1), (600, 5), (7200, 60)) if seconds < below), 600)
    words = duration(max(step, step * round(seconds / step)))
    return words.removesuffix(" 0 s").removesuffix(" 0 min").removesuffix(" 0 h")


def latency(seconds: float | None) -> str:
    """Return a short time: ``40 ms``, ``3.0 s``, ``85 s``; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:,.0f} s"


def percent(part: int, whole: int) -> str:
    """
    Return a share with two decimals, e.g. ``98.58 %``; nothing where there is no whole.

    Only the whole is ``100.00 %`` and only nothing is ``0.00 %``: between them it is rounded towards the middle.
    """
    if not whole:
        return ""
    if 0 < part < whole:
        hundredths = min(9999, max(1, round(10_000 * part / whole)))
        return f"{hundredths / 100:.2f} %"
    return f"{100 * part / whole:.2f} %"


def money(dollars: float) -> str:
    """Return a price: ``$0.0042``, ``$0.14``, ``$1,200``."""
    if 0 < dollars < 0.1:
        return f"${dollars:.4f}"
    return f"${dollars:,.2f}" if dollars < 1000 else f"${dollars:,.0f}"


def rate(per_s: float) -> str:
    """Return a number per second: one decimal below 100."""
    return f"{per_s:,.1f}" if per_s < 100 else f"{per_s:,.0f}"
