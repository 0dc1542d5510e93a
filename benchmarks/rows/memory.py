"""Memory that a large array argument adds to the peak of each process, in multiples of the array."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from harness import OURS, Contenders, Scale

from rows.common import noop
from rows.proc import peak_bytes, reset_peak, resident_bytes
from taskfarm import objects

__all__ = ["added_on_rank_0", "added_on_worker"]


def added_on_rank_0(size: int) -> Callable[[Scale], Contenders]:
    """Return the row for rank 0, which owns the array already."""
    return lambda scale: {OURS: lambda: _added(size)[0]}


def added_on_worker(size: int) -> Callable[[Scale], Contenders]:
    """Return the row for the worker, which must hold it."""
    return lambda scale: {OURS: lambda: _added(size)[-1]}


def _added(size: int) -> list[float]:
    array = np.ones(size // 8)
    before = objects.call_all(_start_peak)
    objects.call(noop, array)
    objects.call(noop, array)  # the first must be gone before the second one lands
    after = objects.call_all(peak_bytes)
    return [(peak - start) / size for start, peak in zip(before, after, strict=True)]


def _start_peak() -> int:
    """Begin a new peak and return where it starts."""
    reset_peak()
    return resident_bytes()
