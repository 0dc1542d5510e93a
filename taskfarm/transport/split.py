"""Transports over communicators of the user's own, beside the session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

from taskfarm.config import Config
from taskfarm.errors import UsageError
from taskfarm.transport.inlets import new_inlet
from taskfarm.transport.mpi import MpiTransport
from taskfarm.transport.waiting import Waiter

__all__ = ["check_comm", "own_comm", "split_transport", "workers_comm"]


def check_comm(comm: Any, root: int) -> tuple[int, int]:
    """Return this process's rank in `comm`, counted from `root` on, and the size; None stands for ``COMM_WORLD``.

    Raises
    ------
    ValueError
        If `comm` is no intracommunicator, or `root` is no rank of it.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    if comm.Is_inter():
        raise ValueError("expecting an intracommunicator")
    size = comm.Get_size()
    if not 0 <= root < size:
        raise ValueError("expecting root in range(comm.size)")
    return (comm.Get_rank() - root) % size, size


def split_transport(comm: Any, root: int, config: Config) -> tuple[MpiTransport, Any]:
    """Return a transport over duplicates of `comm`, in which `root` is rank 0, and what the others have; collective.

    Returns
    -------
    transport : MpiTransport
        Frees the duplicates when it is closed.
    workers : MPI.Intracomm
        A communicator over all but `root`, to be freed by the caller; null on `root`.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise UsageError(
            "MPI was started with a thread level below MPI_THREAD_SERIALIZED, and an executor has a thread of its own"
        )
    control = comm.Split(0, (comm.Get_rank() - root) % comm.Get_size())
    waiter = Waiter(bool(config.spin), None, False)
    workers = control.Split(0 if control.rank else MPI.UNDEFINED, control.rank)
    return MpiTransport(control, control.Dup(), waiter, None, new_inlet(control, config.receive)), workers


def own_comm() -> Any:
    """Return the communicator over this process alone."""
    return MPI.COMM_SELF


def workers_comm(ranks: Sequence[int]) -> Any:
    """Return a communicator over `ranks` of the world, which must all call this; None on other ranks."""
    if MPI.COMM_WORLD.rank not in ranks:
        return None
    return MPI.COMM_WORLD.Create_group(MPI.COMM_WORLD.Get_group().Incl(ranks))
