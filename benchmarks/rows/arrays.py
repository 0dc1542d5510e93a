"""Arrays there and back, by each of the ways, against raw ``Send``/``Recv`` into fresh ``numpy.empty`` memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from harness import OURS, RAW, Contenders, Scale

from rows.common import comm, machine, meet, raw, timed
from rows.messages import exchange
from taskfarm import objects

__all__ = ["as_call_argument", "through_call_all", "through_messages", "through_result"]

_BYTES_PER_SAMPLE = 256 << 20  # repetitions are chosen such that a sample moves about that much each way


def _repetitions(size: int, scale: Scale) -> int:
    return max(scale.times(min(_BYTES_PER_SAMPLE // size, 100)), 1)


def _new_array(size: int) -> np.ndarray:
    return np.arange(size // 8, dtype=np.float64)


def through_result(size: int) -> Callable[[Scale], Contenders]:
    """Return the row for arrays of `size` bytes as argument of a task and as its result."""

    def contenders(scale: Scale) -> Contenders:
        n, array = _repetitions(size, scale), _new_array(size)
        return {OURS: lambda: timed(_results, array, n) / n * 1e3, RAW: raw(_raw_there_and_back, size, n)}

    return contenders


def _results(array: np.ndarray, n: int) -> None:
    farm = machine()
    for _ in range(n):
        farm.spawnFunction(_same, (array,), count=1)
        farm.receiveMessage()  # the result
        farm.receiveMessage()  # the exit


def _same(array: np.ndarray) -> np.ndarray:
    return array


def through_messages(size: int) -> Callable[[Scale], Contenders]:
    """Return the row for arrays of `size` bytes in messages between tasks."""

    def contenders(scale: Scale) -> Contenders:
        n, array = _repetitions(size, scale), _new_array(size)
        return {OURS: lambda: exchange(array, n) * 1e3, RAW: raw(_raw_there_and_back, size, n)}

    return contenders


def through_call_all(size: int) -> Callable[[Scale], Contenders]:
    """Return the row for arrays of `size` bytes as argument of a collective call, and back as the worker's value."""

    def contenders(scale: Scale) -> Contenders:
        n, array = _repetitions(size, scale), _new_array(size)
        return {OURS: lambda: timed(_call_values, array, n) / n * 1e3, RAW: raw(_raw_there_and_back, size, n)}

    return contenders


def _call_values(array: np.ndarray, n: int) -> None:
    for _ in range(n):
        objects.call_all(_same, array)


def as_call_argument(size: int) -> Callable[[Scale], Contenders]:
    """Return the row for arrays of `size` bytes as argument of a collective call, one way."""

    def contenders(scale: Scale) -> Contenders:
        n, array = _repetitions(size, scale), _new_array(size)
        return {OURS: lambda: timed(_call_arguments, array, n) / n * 1e3, RAW: raw(_raw_there, size, n)}

    return contenders


def _call_arguments(array: np.ndarray, n: int) -> None:
    for _ in range(n):
        objects.call(_same, array)
    objects.call(meet)


def _raw_there_and_back(size: int, n: int) -> float | None:
    world = comm()
    array = _new_array(size)
    meet()
    if world.rank == 0:
        return timed(_raw_both_ways, array, n) / n * 1e3
    if world.rank == 1:
        for _ in range(n):
            fresh = np.empty_like(array)
            world.Recv(fresh, 0)
            world.Send(fresh, 0)
    return None


def _raw_both_ways(array: np.ndarray, n: int) -> None:
    world = comm()
    for _ in range(n):
        world.Send(array, 1)
        fresh = np.empty_like(array)
        world.Recv(fresh, 1)


def _raw_there(size: int, n: int) -> float:
    array = _new_array(size)
    meet()
    return timed(_raw_one_way, array, n) / n * 1e3


def _raw_one_way(array: np.ndarray, n: int) -> None:
    world = comm()
    for _ in range(n):
        if world.rank == 0:
            world.Send(array, 1)
        elif world.rank == 1:
            world.Recv(np.empty_like(array), 0)
    meet()
