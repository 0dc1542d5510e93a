"""The binomial tree along which rank 0 reaches everybody in ``ceil(log2(size))`` steps."""

from __future__ import annotations

__all__ = ["children", "parent"]


def children(rank: int, size: int) -> list[int]:
    """Return the ranks that `rank` passes a frame on to, the one with the largest subtree first."""
    step = 1
    while step < size and not rank & step:
        step <<= 1
    found = []
    step >>= 1
    while step:
        if rank + step < size:
            found.append(rank + step)
        step >>= 1
    return found


def parent(rank: int) -> int:
    """Return the rank from which `rank` > 0 receives: its number without the lowest set bit."""
    return rank & (rank - 1)
