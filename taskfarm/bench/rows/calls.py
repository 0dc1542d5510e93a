"""Collective calls that do nothing, to the completion of the last rank."""

from __future__ import annotations

from taskfarm import objects
from taskfarm.bench.common import comm, meet, on_all_ranks
from taskfarm.bench.functions import noop as do_nothing
from taskfarm.bench.functions import timed
from taskfarm.bench.measure import OURS, RAW, Contenders, Setting

__all__ = ["noop"]


def noop(setting: Setting) -> Contenders:
    """Return the row for empty calls."""
    return {OURS: _many_calls, RAW: on_all_ranks(_many_broadcasts)}


def _many_calls(n: int) -> float:
    objects.call(meet)
    return timed(_calls, n)


def _calls(n: int) -> None:
    for _ in range(n):
        objects.call(do_nothing)
    objects.call(meet)


def _many_broadcasts(n: int) -> float:
    meet()
    return timed(_broadcasts, n)


def _broadcasts(n: int) -> None:
    world = comm()
    is_root = world.rank == 0
    for _ in range(n):
        fn, args, kwargs = world.bcast((do_nothing, (), {}) if is_root else None)
        fn(*args, **kwargs)
    meet()
