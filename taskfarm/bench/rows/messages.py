"""Messages between tasks, there and back, against raw pickled ones."""

from __future__ import annotations

from typing import Any

from taskfarm import vm
from taskfarm.bench.common import comm, machine, meet, on_all_ranks
from taskfarm.bench.functions import timed
from taskfarm.bench.measure import OURS, RAW, Contenders, Setting

__all__ = ["exchange_seconds", "pickled"]


def pickled(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for messages of so many bytes."""
    payload = bytes(size_bytes)
    return {OURS: lambda n: exchange_seconds(payload, n), RAW: on_all_ranks(_raw_exchange, size_bytes)}


def exchange_seconds(payload: Any, n: int) -> float:
    """Return the seconds that `n` messages and their answers take."""
    farm = machine()
    (task,) = farm.spawnFunction(_echo, (n + 1,), count=1)
    _there_and_back(task, payload, 1)  # the task runs
    seconds = timed(_there_and_back, task, payload, n)
    farm.receiveMessage()  # the result
    farm.receiveMessage()  # the exit
    return seconds


def _there_and_back(task: vm.MPITaskID, payload: Any, n: int) -> None:
    farm = machine()
    for _ in range(n):
        farm.sendMessage(task, payload)
        farm.receiveMessage()


def _echo(n: int) -> None:
    for _ in range(n):
        letter = vm.MPI.receiveMessage()
        assert letter is not None  # there is no time limit
        vm.MPI.sendMessage(*letter)


def _raw_exchange(size_bytes: int, n: int) -> float | None:
    world = comm()
    payload = bytes(size_bytes)
    meet()
    if world.rank == 0:
        return timed(_raw_there_and_back, payload, n)
    if world.rank == 1:
        for _ in range(n):
            world.send(world.recv(source=0), 0)
    return None


def _raw_there_and_back(payload: bytes, n: int) -> None:
    world = comm()
    for _ in range(n):
        world.send(payload, 1)
        world.recv(source=1)
