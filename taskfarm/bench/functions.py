"""The functions that tasks run. They stand alone, so that the processes of every peer can import them quickly."""

from __future__ import annotations

from time import perf_counter
from typing import Any

__all__ = ["busy", "noop", "same", "timed"]


def noop(*args: Any) -> None:
    """Do nothing."""


def same(value: Any) -> Any:
    """Return what came in."""
    return value


def busy(seconds: float) -> None:
    """Compute for so long."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


def timed(fn: Any, *args: Any) -> float:
    """Return the seconds that ``fn(*args)`` takes."""
    start = perf_counter()
    fn(*args)
    return perf_counter() - start
