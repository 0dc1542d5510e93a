"""Arrays by each of the ways, against raw ``Send`` and ``Recv`` into fresh ``numpy.empty`` memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from taskfarm import objects
from taskfarm.bench.common import comm, machine, meet, on_all_ranks
from taskfarm.bench.functions import same, timed
from taskfarm.bench.measure import OURS, RAW, Contenders, Setting
from taskfarm.bench.rows.messages import exchange_seconds
from taskfarm.bench.works import new_array

__all__ = ["as_call_argument", "through_messages", "through_result"]


def through_result(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for an array as argument of a task and as its result."""
    array = new_array(size_bytes)
    return {OURS: lambda n: timed(_results, array, n), RAW: on_all_ranks(_raw_there_and_back, size_bytes)}


def _results(array: Any, n: int) -> None:
    farm = machine()
    for _ in range(n):
        farm.spawnFunction(same, (array,), count=1)
        farm.receiveMessage()  # the result
        farm.receiveMessage()  # the exit


def through_messages(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for an array in a message to a task, and back."""
    array = new_array(size_bytes)
    return {OURS: lambda n: exchange_seconds(array, n), RAW: on_all_ranks(_raw_there_and_back, size_bytes)}


def as_call_argument(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for an array as argument of a collective call, one way."""
    array = new_array(size_bytes)
    return {OURS: lambda n: timed(_call_arguments, array, n), RAW: on_all_ranks(_raw_there, size_bytes)}


def _call_arguments(array: Any, n: int) -> None:
    for _ in range(n):
        objects.call(same, array)
    objects.call(meet)


def _raw_there_and_back(size_bytes: int, n: int) -> float | None:
    rank, n_items = comm().rank, size_bytes // 8
    array = new_array(size_bytes) if rank == 0 else None
    meet()
    if rank == 0:
        return timed(_repeat, n, _raw_send_and_receive, array)
    if rank == 1:
        _repeat(n, _raw_receive_and_send, n_items)
    return None


def _repeat(n: int, fn: Any, argument: Any) -> None:
    for _ in range(n):
        fn(argument)


# What arrives is let go at the end of each function, as the contenders let it go: the memory is fresh each time.


def _raw_send_and_receive(array: Any) -> None:
    comm().Send(array, 1)
    comm().Recv(np.empty_like(array), 1)


def _raw_receive_and_send(n_items: int) -> None:
    fresh = np.empty(n_items)
    comm().Recv(fresh, 0)
    comm().Send(fresh, 0)


def _raw_there(size_bytes: int, n: int) -> float:
    array = new_array(size_bytes) if comm().rank == 0 else None
    meet()
    return timed(_raw_one_way, array, size_bytes // 8, n)


def _raw_one_way(array: Any, n_items: int, n: int) -> None:
    world = comm()
    for _ in range(n):
        if world.rank == 0:
            world.Send(array, 1)
        elif world.rank == 1:
            world.Recv(np.empty(n_items), 0)
    meet()
