"""Tasks that do nothing: how many a second, and one there and back; and a larger array there and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskfarm import vm
from taskfarm.bench import peers
from taskfarm.bench.common import comm, machine, meet, on_all_ranks
from taskfarm.bench.functions import noop, same, timed
from taskfarm.bench.measure import OURS, RAW, Contenders, Setting
from taskfarm.bench.rows import arrays
from taskfarm.bench.works import ECHO, NOOP, NOOPS, new_array

__all__ = ["echo", "farm_out", "noop_rate", "rate_of", "rate_of_echoes", "there_and_back"]


# One task in flight per worker, the next one as soon as one has ended.


def noop_rate(setting: Setting) -> Contenders:
    """Return the row for as many empty tasks as possible."""
    return {
        OURS: lambda n: timed(farm_out, noop, 0, n),
        RAW: on_all_ranks(raw_farm_out, noop, 0),
        **peers.contenders(setting, NOOPS),
    }


def farm_out(fn: Callable[[Any], Any], item: Any, n: int) -> None:
    """Run ``fn(item)`` as `n` tasks, each in the first slot that is free."""
    farm = machine()
    spawned = ended = 0
    while ended < n:
        if spawned < n and farm.freeSlots():
            spawned += len(farm.spawnFunction(fn, (item,), count=1))
            continue
        letter = farm.receiveMessage()
        ended += letter is not None and type(letter[1]) is vm.MsgTaskExit


def raw_farm_out(fn: Callable[[Any], Any], item: Any, n: int) -> float | None:
    """Do the same with raw MPI, on all ranks; return rank 0's seconds."""
    meet()
    if comm().rank == 0:
        return timed(_raw_spawner, fn, item, n)
    _raw_worker()
    return None


def _raw_spawner(fn: Callable[[Any], Any], item: Any, n: int) -> None:
    from mpi4py import MPI

    world, status = comm(), MPI.Status()
    n_busy = min(world.size - 1, n)
    for rank in range(1, world.size):
        world.send((fn, (item,)) if rank <= n_busy else None, rank)
    spawned, ended = n_busy, 0
    while ended < n:
        world.recv(source=MPI.ANY_SOURCE, status=status)
        world.send((fn, (item,)) if spawned < n else None, status.Get_source())
        ended += 1
        spawned += 1


def _raw_worker() -> None:
    world = comm()
    while (work := world.recv(source=0)) is not None:
        fn, args = work
        world.send(fn(*args), 0)


# One task at a time.


def there_and_back(setting: Setting) -> Contenders:
    """Return the row for one empty task, from its start to its result."""
    return {
        OURS: lambda n: timed(_one_by_one, n),
        RAW: on_all_ranks(_raw_there_and_back),
        **peers.contenders(setting, NOOP),
    }


def _one_by_one(n: int) -> None:
    farm = machine()
    for _ in range(n):
        farm.spawnFunction(noop, count=1)
        farm.receiveMessage()  # the result
        farm.receiveMessage()  # the exit


def _raw_there_and_back(n: int) -> float | None:
    meet()
    if comm().rank == 0:
        return timed(_raw_one_by_one, n)
    if comm().rank == 1:
        world = comm()
        for _ in range(n):
            fn, args, kwargs = world.recv(source=0)
            world.send(fn(*args, **kwargs), 0)
    return None


def _raw_one_by_one(n: int) -> None:
    world = comm()
    for _ in range(n):
        world.send((noop, (), {}), 1)
        world.recv(source=1)


def echo(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for an array as argument and result of a task, against the peers."""
    return {**arrays.through_result(size_bytes, setting), **peers.contenders(setting, ECHO)}


def rate_of(fn: Callable[[Any], Any], item: Any, setting: Setting) -> Contenders:
    """Return the row for as many tasks ``fn(item)`` as possible."""
    return {OURS: lambda n: timed(farm_out, fn, item, n), RAW: on_all_ranks(raw_farm_out, fn, item)}


def rate_of_echoes(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for as many arrays there and back as possible; the other one pickles them and has no buffers."""
    found = rate_of(same, new_array(size_bytes), setting)
    return {OURS: found[OURS], "pickled": found[RAW]}
