"""Collective calls that do nothing, to the completion of the last rank."""

from __future__ import annotations

from harness import OURS, RAW, Contenders, Scale

from rows.common import comm, meet, raw, timed
from rows.common import noop as do_nothing
from taskfarm import objects

__all__ = ["noop"]


def noop(scale: Scale) -> Contenders:
    n = scale.times(5_000)
    return {OURS: lambda: _many_calls(n), RAW: raw(_many_broadcasts, n)}


def _many_calls(n: int) -> float:
    objects.call(meet)
    return timed(_calls, n) / n * 1e6


def _calls(n: int) -> None:
    for _ in range(n):
        objects.call(do_nothing)
    objects.call(meet)


def _many_broadcasts(n: int) -> float:
    meet()
    return timed(_broadcasts, n) / n * 1e6


def _broadcasts(n: int) -> None:
    world = comm()
    is_root = world.rank == 0
    for _ in range(n):
        fn, args, kwargs = world.bcast((do_nothing, (), {}) if is_root else None)
        fn(*args, **kwargs)
    meet()
