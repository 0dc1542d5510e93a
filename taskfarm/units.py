"""Numbers, times and sizes as text."""

from __future__ import annotations

__all__ = ["format_bytes", "format_number", "format_seconds"]


def format_number(value: float) -> str:
    """Return three digits, or a whole number with separators."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def format_seconds(seconds: float) -> str:
    """Return a time with three digits and its unit."""
    if seconds == 0:
        return "0 s"
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (120.0, 1.0, "s"), (7200.0, 1 / 60, "min")):
        if abs(seconds) < limit:
            return f"{format_number(seconds * factor)} {unit}"
    return f"{format_number(seconds / 3600)} h"


def format_bytes(n: float) -> str:
    """Return a size with three digits and its unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{format_number(n)} {unit}"
        n /= 1000
    return f"{format_number(n)} TB"
