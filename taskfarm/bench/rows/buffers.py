"""Arrays into memory that the receivers own already, against MPI's own buffer collectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from taskfarm import objects
from taskfarm.bench.common import comm, meet, on_all_ranks
from taskfarm.bench.functions import timed
from taskfarm.bench.measure import OURS, RAW, Contenders, Setting
from taskfarm.bench.works import new_array

__all__ = ["broadcast", "gather", "scatter"]

_N_COLUMNS = 128  # of the matrices whose rows are scattered and gathered; rows of 1 kB


def broadcast(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for an array to all ranks."""
    return _contenders(_broadcast, _raw_broadcast, size_bytes)


def scatter(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for a matrix of so many bytes, of which each rank gets its rows."""
    return _contenders(_scatter, _raw_scatter, size_bytes)


def gather(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for the way back."""
    return _contenders(_gather, _raw_gather, size_bytes)


def _contenders(ours: Callable[..., None], raw: Callable[..., None], size_bytes: int) -> Contenders:
    return {
        OURS: on_all_ranks(_collective_seconds, ours, size_bytes),
        RAW: on_all_ranks(_collective_seconds, raw, size_bytes),
    }


def _collective_seconds(fn: Callable[..., None], size_bytes: int, n: int) -> float:
    """Return the seconds of `n` collectives on arrays in warm memory, to the completion of the last rank."""
    world = comm()
    matrix = new_array(size_bytes).reshape(-1, _N_COLUMNS)
    counts = [len(part) for part in np.array_split(np.arange(len(matrix)), world.size)]
    part = np.ones((counts[world.rank], _N_COLUMNS))
    fn(matrix, part, counts, 1)
    meet()
    return timed(_and_meet, fn, matrix, part, counts, n)


def _and_meet(fn: Callable[..., None], *args: Any) -> None:
    fn(*args)
    meet()


def _broadcast(matrix: Any, part: Any, counts: list[int], n: int) -> None:
    for _ in range(n):
        objects.broadcast_array(matrix)


def _raw_broadcast(matrix: Any, part: Any, counts: list[int], n: int) -> None:
    world = comm()
    for _ in range(n):
        world.Bcast(matrix)


def _scatter(matrix: Any, part: Any, counts: list[int], n: int) -> None:
    whole = matrix if objects.rank == 0 else None
    for _ in range(n):
        objects.scatter_rows(whole, part)


def _raw_scatter(matrix: Any, part: Any, counts: list[int], n: int) -> None:
    world = comm()
    sizes = [count * _N_COLUMNS for count in counts]
    whole = [matrix, sizes] if world.rank == 0 else None
    for _ in range(n):
        world.Scatterv(whole, part)


def _gather(matrix: Any, part: Any, counts: list[int], n: int) -> None:
    whole = matrix if objects.rank == 0 else None
    for _ in range(n):
        objects.gather_rows(part, whole)


def _raw_gather(matrix: Any, part: Any, counts: list[int], n: int) -> None:
    world = comm()
    sizes = [count * _N_COLUMNS for count in counts]
    whole = [matrix, sizes] if world.rank == 0 else None
    for _ in range(n):
        world.Gatherv(part, whole)
