"""Collective calls with managed distributed objects; API-compatible with ``pymor.tools.mpi``.

Rank 0 runs the program; all other ranks run `event_loop`. `call` runs a function on every rank, `quit` ends the loops::

    mpiexec -n 4 python -m taskfarm.objects script.py args...

or, in a program that all ranks run, `launch_event_loop`, which returns on rank 0 at once and elsewhere after `quit`.
Nothing starts at import. The live attributes ``comm``, ``rank``, ``size``, ``rank0`` and ``parallel`` start MPI when
they are first looked at.
"""

from __future__ import annotations

from typing import Any

from taskfarm.errors import RemoteError
from taskfarm.ids import ObjectId
from taskfarm.objects._arrays import broadcast_array, gather_rows, scatter_rows
from taskfarm.objects._calls import (
    call,
    call_all,
    event_loop,
    event_loop_settings,
    launch_event_loop,
    on_error,
    quit,  # noqa: A004 - the name that callers know
    time_limit,
)
from taskfarm.objects._glue import watch_for_host
from taskfarm.objects._helpers import (
    function_call,
    function_call_manage,
    get_object,
    import_module,
    manage_object,
    map_nested,
    method_call,
    method_call_manage,
    mpi_info,
    remove_object,
    run_code,
)
from taskfarm.objects._live import LIVE
from taskfarm.runtime.registry import Rank0ObjectId

__all__ = [
    "ObjectId",
    "Rank0ObjectId",
    "RemoteError",
    "broadcast_array",
    "call",
    "call_all",
    "comm",
    "event_loop",
    "event_loop_settings",
    "finished",
    "function_call",
    "function_call_manage",
    "gather_rows",
    "get_object",
    "import_module",
    "launch_event_loop",
    "manage_object",
    "map_nested",
    "method_call",
    "method_call_manage",
    "mpi_info",
    "on_error",
    "parallel",
    "quit",
    "rank",
    "rank0",
    "remove_object",
    "run_code",
    "scatter_rows",
    "size",
    "time_limit",
]


def __getattr__(name: str) -> Any:
    try:
        read = LIVE[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return read()


def __dir__() -> list[str]:
    return sorted({*globals(), *LIVE})


watch_for_host()
