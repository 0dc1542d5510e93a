"""taskfarm: Python on MPI, from a laptop to a cluster.

One MPI transport carries several faces over the same ranks: `taskfarm.objects` (collective calls with managed
distributed objects), `taskfarm.vm` (a spawner with workers). Importing this package does nothing: no MPI start, no
thread, no look at the environment.
"""

from __future__ import annotations

from taskfarm.errors import (
    InternalError,
    ProtocolError,
    RankFailure,
    RemoteError,
    TaskfarmError,
    UsageError,
    WorkerLostError,
)
from taskfarm.ids import ObjectId

__version__ = "0.1.0"

__all__ = [
    "InternalError",
    "ObjectId",
    "ProtocolError",
    "RankFailure",
    "RemoteError",
    "TaskfarmError",
    "UsageError",
    "WorkerLostError",
    "__version__",
]
