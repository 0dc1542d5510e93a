"""taskfarm: Python on MPI, from a laptop to a cluster.

One MPI transport carries several faces over the same ranks: `taskfarm.objects` (collective calls with managed
distributed objects), `taskfarm.vm` (a spawner with workers). Importing this package does nothing: no MPI start, no
thread, no look at the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskfarm.errors import (
    InternalError,
    ProtocolError,
    RankFailure,
    RemoteError,
    TaskfarmError,
    TaskTimeoutError,
    UsageError,
    WorkerLostError,
)
from taskfarm.ids import ObjectId

if TYPE_CHECKING:
    from taskfarm.futures import Executor, ExecutorBrokenError, Pool, as_completed, task_comm, wait
    from taskfarm.sharing import Shared, share, shared_array

__version__ = "0.1.0"

__all__ = [
    "Executor",
    "ExecutorBrokenError",
    "InternalError",
    "ObjectId",
    "Pool",
    "ProtocolError",
    "RankFailure",
    "RemoteError",
    "Shared",
    "TaskTimeoutError",
    "TaskfarmError",
    "UsageError",
    "WorkerLostError",
    "__version__",
    "as_completed",
    "share",
    "shared_array",
    "task_comm",
    "wait",
]

_OF_FUTURES = frozenset({"Executor", "ExecutorBrokenError", "Pool", "as_completed", "task_comm", "wait"})
_OF_SHARING = frozenset({"Shared", "share", "shared_array"})


def __getattr__(name: str) -> Any:
    if name in _OF_FUTURES:  # imported when first used: it needs numpy and cloudpickle
        from taskfarm import futures

        value = globals()[name] = getattr(futures, name)
        return value
    if name in _OF_SHARING:
        import taskfarm.sharing as sharing

        value = globals()[name] = getattr(sharing, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
