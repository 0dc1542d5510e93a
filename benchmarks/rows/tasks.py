"""Tasks that do nothing: how many a second, and one there and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness import OURS, RAW, Contenders, Scale
from mpi4py import MPI

from rows.common import comm, machine, meet, noop, raw, timed
from taskfarm import vm

try:
    import schwimmbad
except ImportError:
    schwimmbad = None

__all__ = ["noop_rate", "there_and_back"]


# One task in flight per worker, the next one as soon as one has ended.


def noop_rate(scale: Scale) -> Contenders:
    n = scale.times(10_000)
    contenders: dict[str, Callable[[], float]] = {
        OURS: lambda: n / timed(_farm_out, n),
        RAW: raw(_raw_rate, n),
    }
    if schwimmbad is not None:
        contenders["schwimmbad"] = raw(_schwimmbad_rate, n)
    return contenders


def _farm_out(n: int) -> None:
    farm = machine()
    spawned = ended = 0
    while ended < n:
        if spawned < n and farm.freeSlots():
            spawned += len(farm.spawnFunction(noop, (spawned,), count=1))
            continue
        _, message = farm.receiveMessage()
        ended += type(message) is vm.MsgTaskExit


def _raw_rate(n: int) -> float | None:
    meet()
    if comm().rank == 0:
        return n / timed(_raw_spawner, n)
    _raw_worker()
    return None


def _raw_spawner(n: int) -> None:
    world = comm()
    workers = range(1, world.size)
    for index, rank in enumerate(workers):
        world.send((noop, (index,)), rank)
    status = MPI.Status()
    for index in range(len(workers), n + len(workers)):
        world.recv(source=MPI.ANY_SOURCE, status=status)
        world.send((noop, (index,)) if index < n else None, status.Get_source())


def _raw_worker() -> None:
    world = comm()
    while (work := world.recv(source=0)) is not None:
        fn, args = work
        world.send(fn(*args), 0)


def _schwimmbad_rate(n: int) -> float | None:
    meet()
    try:
        pool: Any = schwimmbad.MPIPool(comm=comm())  # workers serve in there, and exit
    except SystemExit:
        return None
    seconds = timed(pool.map, noop, range(n))
    pool.close()
    pool.workers = set()  # it would say good-bye once more when the interpreter ends
    return n / seconds


# One task at a time.


def there_and_back(scale: Scale) -> Contenders:
    n = scale.times(5_000)
    return {OURS: lambda: timed(_one_by_one, n) / n * 1e6, RAW: raw(_raw_there_and_back, n)}


def _one_by_one(n: int) -> None:
    farm = machine()
    for _ in range(n):
        farm.spawnFunction(noop, count=1)
        farm.receiveMessage()  # the result
        farm.receiveMessage()  # the exit


def _raw_there_and_back(n: int) -> float | None:
    meet()
    if comm().rank == 0:
        return timed(_raw_one_by_one, n) / n * 1e6
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
