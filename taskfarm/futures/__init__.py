"""A `concurrent.futures.Executor` on MPI ranks.

Someone who uses `concurrent.futures.ProcessPoolExecutor` changes one line::

    from taskfarm import Executor

    with Executor() as executor:
        future = executor.submit(pow, 2, 10)
        print(future.result())
        print(sum(executor.map(abs, range(-1000, 1000))))

Start it with ``taskfarm run -n 5 script.py``, with ``mpiexec``, with ``srun``, or as it is: then the workers are
processes on this host. Nothing happens at import; ranks part where the first executor is made.
"""

from __future__ import annotations

from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    InvalidStateError,
    TimeoutError,  # noqa: A004 - the name that the standard library gives it
    wait,
)

from taskfarm.errors import JournalError
from taskfarm.futures._combine import collect, compose
from taskfarm.futures._comm import MPICommExecutor, get_comm_workers
from taskfarm.futures._executor import Executor
from taskfarm.futures._future import ExecutorBrokenError, Future
from taskfarm.futures._mpi4py import MPIPoolExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from taskfarm.futures._options import TaskOptions
from taskfarm.futures._pool import AsyncResult, Pool
from taskfarm.futures._progress import as_completed
from taskfarm.futures._task_comm import task_comm
from taskfarm.futures._views import ExecutorView

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "AsyncResult",
    "BrokenExecutor",
    "CancelledError",
    "Executor",
    "ExecutorBrokenError",
    "ExecutorView",
    "Future",
    "InvalidStateError",
    "JournalError",
    "MPICommExecutor",
    "MPIPoolExecutor",
    "Pool",
    "ProcessPoolExecutor",
    "TaskOptions",
    "ThreadPoolExecutor",
    "TimeoutError",
    "as_completed",
    "collect",
    "compose",
    "get_comm_workers",
    "register_joblib_backend",
    "task_comm",
    "wait",
]


def register_joblib_backend() -> None:
    """Make the backend ``"taskfarm"`` known to joblib, for ``joblib.parallel_config("taskfarm")``.

    Raises
    ------
    ImportError
        If joblib is missing.
    """
    from taskfarm.futures._joblib import register  # joblib is optional

    register()
