"""Arrays into memory that the receivers own already, against MPI's own operations on buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from taskfarm import objects, vm
from taskfarm.bench.common import comm, machine, meet, on_all_ranks
from taskfarm.bench.functions import timed
from taskfarm.bench.measure import OURS, RAW, Contenders, Setting
from taskfarm.bench.works import new_array

__all__ = ["broadcast", "gather", "scatter", "there_and_back"]

_N_COLUMNS = 128  # of the matrices whose rows are scattered and gathered; rows of 1 kB


def there_and_back(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for an array to a task and back."""
    sent, back = new_array(size_bytes), new_array(size_bytes)
    return {
        OURS: lambda n: _send_and_receive_seconds(sent, back, n),
        RAW: on_all_ranks(_raw_send_and_receive_seconds, size_bytes),
    }


def _send_and_receive_seconds(sent: Any, back: Any, n: int) -> float:
    farm = machine()
    (task,) = farm.spawnFunction(_receive_and_send, (sent.nbytes, n + 1), count=1)
    _send_and_receive(task, sent, back, 1)  # the task runs, and its memory is warm
    seconds = timed(_send_and_receive, task, sent, back, n)
    farm.receiveMessage()  # the result
    farm.receiveMessage()  # the exit
    return seconds


def _send_and_receive(task: vm.MPITaskID, sent: Any, back: Any, n: int) -> None:
    farm = machine()
    for _ in range(n):
        farm.sendArray(task, sent)
        farm.receiveArray(task, back)


def _receive_and_send(size_bytes: int, n: int) -> None:
    memory, spawner = new_array(size_bytes), vm.MPI.parentTaskID()
    for _ in range(n):
        vm.MPI.receiveArray(spawner, memory)
        vm.MPI.sendArray(spawner, memory)


def _raw_send_and_receive_seconds(size_bytes: int, n: int) -> float | None:
    world = comm()
    sent, back = new_array(size_bytes), new_array(size_bytes)
    meet()
    if world.rank == 0:
        _raw_send_and_receive(sent, back, 1)
        return timed(_raw_send_and_receive, sent, back, n)
    if world.rank == 1:
        for _ in range(n + 1):
            world.Recv(back, 0)
            world.Send(back, 0)
    return None


def _raw_send_and_receive(sent: Any, back: Any, n: int) -> None:
    world = comm()
    for _ in range(n):
        world.Send(sent, 1)
        world.Recv(back, 1)


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
