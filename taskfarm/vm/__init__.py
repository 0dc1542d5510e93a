"""A spawner with workers, task ids and free slots; API-compatible with the MPI virtual machine of PyOPUS.

Rank 0 runs the program and spawns functions into free slots; every other rank is a worker with one slot. A slot is
taken by `MPI.spawnFunction` and free again when `MPI.receiveMessage` has handed out the task's `MsgTaskExit`::

    from taskfarm.vm import MPI, MsgTaskExit, MsgTaskResult

    vm = MPI()                                  # workers part here
    tasks = vm.spawnFunction(pow, args=(2, 10), count=1)
    while vm.freeSlots() < vm.slots() - 1:
        task, message = vm.receiveMessage()
        if type(message) is MsgTaskResult:
            print(task, message.returnValue)
    vm.finalize()

Nothing happens at import; ranks part in `MPI.spawnerBarrier`, which the first ``MPI(...)`` calls.
"""

from __future__ import annotations

from typing import Any

from taskfarm.vm import base
from taskfarm.vm._ids import MPIHostID, MPITaskID
from taskfarm.vm._mpi import MPI
from taskfarm.vm.base import (
    HostID,
    Msg,
    MsgHostAdd,
    MsgHostDelete,
    MsgTaskExit,
    MsgTaskResult,
    TaskID,
    VirtualMachine,
    getNumberOfCores,
    localStorageCleaner,
    translateToAbstractPath,
    translateToActualPath,
)

__all__ = [
    "MPI",
    "HostID",
    "MPIHostID",
    "MPITaskID",
    "Msg",
    "MsgHostAdd",
    "MsgHostDelete",
    "MsgTaskExit",
    "MsgTaskResult",
    "ParallelLocalStorage",
    "ParallelMirroredStorage",
    "TaskID",
    "VirtualMachine",
    "getNumberOfCores",
    "localStorageCleaner",
    "translateToAbstractPath",
    "translateToActualPath",
]

ParallelLocalStorage: str
ParallelMirroredStorage: list[str]


def __getattr__(name: str) -> Any:
    if name in ("ParallelLocalStorage", "ParallelMirroredStorage"):  # read from the environment when looked up
        return getattr(base, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
