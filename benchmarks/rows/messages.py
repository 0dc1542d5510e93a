"""Messages between tasks, there and back, against raw pickled ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness import OURS, RAW, Contenders, Scale

from rows.common import comm, machine, meet, raw, timed
from taskfarm import vm

__all__ = ["exchange", "pickled"]


def pickled(size: int) -> Callable[[Scale], Contenders]:
    """Return the row for messages of `size` bytes."""

    def contenders(scale: Scale) -> Contenders:
        n = scale.times(2_000)
        payload = bytes(size)
        return {OURS: lambda: exchange(payload, n) * 1e6, RAW: raw(_raw_exchange, payload, n)}

    return contenders


def exchange(payload: Any, n: int) -> float:
    """Return the seconds that one message and its answer take, of `n`."""
    farm = machine()
    (task,) = farm.spawnFunction(_echo, (n + 1,), count=1)
    _there_and_back(task, payload, 1)
    seconds = timed(_there_and_back, task, payload, n)
    farm.receiveMessage()  # the result
    farm.receiveMessage()  # the exit
    return seconds / n


def _there_and_back(task: vm.MPITaskID, payload: Any, n: int) -> None:
    farm = machine()
    for _ in range(n):
        farm.sendMessage(task, payload)
        farm.receiveMessage()


def _echo(n: int) -> None:
    for _ in range(n):
        sender, message = vm.MPI.receiveMessage()
        vm.MPI.sendMessage(sender, message)


def _raw_exchange(payload: bytes, n: int) -> float | None:
    world = comm()
    meet()
    if world.rank == 0:
        return timed(_raw_there_and_back, payload, n) / n * 1e6
    if world.rank == 1:
        for _ in range(n):
            world.send(world.recv(source=0), 0)
    return None


def _raw_there_and_back(payload: bytes, n: int) -> None:
    world = comm()
    for _ in range(n):
        world.send(payload, 1)
        world.recv(source=1)
