"""The communicator of the task that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskfarm.errors import UsageError
from taskfarm.runtime.session import current

if TYPE_CHECKING:
    from taskfarm.transport.guarded import GuardedComm

__all__ = ["task_comm"]


def task_comm() -> GuardedComm:
    """Return the communicator of the calling task: over its ranks, in the order of their ranks in the job.

    In a task of one rank it is over that rank alone, so that the same function runs on any number of ranks.

    Returns
    -------
    GuardedComm
        An `mpi4py.MPI.Intracomm`. If another rank of the task fails, its blocking methods end the task here, too, as do
        those of the requests and communicators that it makes; see docs/multi-rank.md for what is guaranteed. It is
        valid until the task ends. ``.raw`` is a plain communicator with the same handle, for C libraries: without the
        guard.

    Raises
    ------
    UsageError
        Outside of a task, and where there is no MPI.
    """
    worker = current().worker
    if worker is None:
        raise UsageError("task_comm() outside of a task: it is for functions that an executor runs on workers")
    return worker.teams.comm()  # type: ignore[no-any-return]
