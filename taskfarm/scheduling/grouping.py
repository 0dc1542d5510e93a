"""Which ranks make a group, and which of them is its controller, where rank 0 does not feed all workers itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

__all__ = ["ENOUGH_FOR_GROUPS", "form_groups", "group_size"]

# Workers. The simulator, with the 50 us that a task of `submit` takes rank 0 (benchmarks/scale.py --simulate): tasks of
# one second keep 20,000 workers of a single level busy for 97 % of the time and 40,000 for 78 %.
ENOUGH_FOR_GROUPS = 16_384
SMALLEST = 64  # of the groups that are formed by size: one rank of each runs no tasks, 1.6 %


def group_size(n_workers: int, wanted: int | None) -> int:
    """Return how many ranks a group should have, its controller included; 0 for one level.

    Parameters
    ----------
    n_workers : int
        Ranks above 0.
    wanted : int or None
        What the user asked for, 0 for one level; None: by the number of workers.
    """
    if wanted is not None:
        return wanted if wanted > 1 else 0
    return max(SMALLEST, math.isqrt(n_workers)) if n_workers >= ENOUGH_FOR_GROUPS else 0


def form_groups(hosts: Mapping[int, str], size: int) -> dict[int, tuple[int, ...]]:
    """Return the groups: the rank of each controller with the ranks of its workers.

    Ranks of one host stay together: a host is cut into parts of about equal size, and hosts that have less than half
    of a group are put together.

    Parameters
    ----------
    hosts : mapping of int to str
        Host of each rank above 0.
    size : int
        Ranks that a group should have, its controller included; it has one or two more where ranks are left over.
    """
    by_host: dict[str, list[int]] = {}
    for rank, host in sorted(hosts.items()):
        by_host.setdefault(host, []).append(rank)
    parts: list[list[int]] = []
    pooled: list[int] = []
    for ranks in by_host.values():
        if len(ranks) >= max(size / 2, 2):
            parts += _cut(ranks, size)
        else:
            pooled += ranks
    if len(pooled) == 1 and parts:
        min(parts, key=len).extend(pooled)
    elif pooled:
        parts += _cut(pooled, size)
    return {part[0]: tuple(part[1:]) for part in parts if len(part) > 1}


def _cut(ranks: list[int], size: int) -> list[list[int]]:
    """Return `ranks` in parts of about equal size, each of at least two if there are so many."""
    n = max(1, min(math.ceil(len(ranks) / size), len(ranks) // 2))
    bounds = [len(ranks) * index // n for index in range(n + 1)]
    return [ranks[start:stop] for start, stop in pairwise(bounds)]
