"""The work that ours and the peers do alike, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from taskfarm.bench.functions import noop, same, timed

__all__ = ["ECHO", "ECHO_LARGE", "MAP", "NOOP", "NOOPS", "Pool", "new_array", "work_seconds"]

NOOPS = "noops"
NOOP = "noop"
ECHO = "echo"
ECHO_LARGE = "echo of 64 MB"
MAP = "map"

_ECHO_BYTES = {ECHO: 1 << 20, ECHO_LARGE: 64 << 20}


class Pool(Protocol):
    """What a peer can do."""

    def map(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> object:
        """Run ``fn(item)`` for every item, each in a message of its own, and wait for all."""

    def map_best(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> object:
        """Run ``fn(item)`` for every item, in the messages that suit the peer best, and wait for all."""

    def one(self, fn: Callable[[Any], Any], item: Any) -> object:
        """Run ``fn(item)`` and wait for it."""


def work_seconds(pool: Pool, work: str, n: int) -> float:
    """Return the seconds that `n` repetitions of a work take: ``noops`` and ``map`` at once, the others one by one."""
    if work == MAP:
        return timed(pool.map_best, noop, range(n))
    if work == NOOPS:
        return timed(pool.map, noop, range(n))
    size_bytes = _ECHO_BYTES.get(work)
    item = None if size_bytes is None else new_array(size_bytes)
    return timed(_one_by_one, pool, noop if item is None else same, item, n)


def _one_by_one(pool: Pool, fn: Callable[[Any], Any], item: Any, n: int) -> None:
    for _ in range(n):
        pool.one(fn, item)


def new_array(size_bytes: int) -> Any:
    """Return an array of so many bytes, every page of which has been written to; (size / 8,) float64."""
    import numpy as np

    return np.arange(size_bytes // 8, dtype=np.float64)
