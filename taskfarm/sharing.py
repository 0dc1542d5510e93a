"""Large objects that all processes of a host share, instead of one copy in each.

::

    table = taskfarm.share(numpy.load("table.npy"))
    with taskfarm.Executor() as executor:
        executor.map(functools.partial(look_up, table), keys)  # look_up(table, key) reads table.value
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from taskfarm.errors import UsageError
from taskfarm.runtime.executor.crews import in_comm_executor, is_mpi_job, part_ranks
from taskfarm.runtime.session import Phase, current
from taskfarm.runtime.sharing.handles import Shared, fill_block, zero_block
from taskfarm.runtime.sharing.spreading import other_holders, spread
from taskfarm.transport.blocks import Block
from taskfarm.wire.codec import pack

__all__ = ["Shared", "share", "shared_array"]

T = TypeVar("T")


def share(obj: T) -> Shared[T]:
    """Put `obj` into shared memory, once per host, and return a handle of it for tasks.

    Under a launcher, the ranks part here if they have not yet, as where an executor is made. On several hosts one rank
    of each gets the data, along a tree; tasks of executors that are under way end first.

    Parameters
    ----------
    obj : object
        An array, or anything that pickles: arrays of 32 kB and more in it are shared (those of pandas and scipy too),
        the rest is unpickled by each process. It is copied, and not referred to afterwards.

    Returns
    -------
    Shared
        Its `value` is the object, in every process.

    Raises
    ------
    UsageError
        Inside of a task; if a host has not enough memory; on systems other than Linux.
    """
    return _share(lambda: fill_block(pack(obj)))


def shared_array(shape: int | tuple[int, ...], dtype: Any = float) -> Shared[np.ndarray[Any, Any]]:
    """Return a handle of an array of zeros that all tasks can write to: different tasks to different parts.

    Parameters
    ----------
    shape : int or tuple of int
        Its shape.
    dtype : dtype
        Its dtype, without Python objects.

    Returns
    -------
    Shared
        Its `value` is the array, in C order, in every process; what a task has written is there when its result is.

    Raises
    ------
    UsageError
        As `share`; and on several hosts, which have no memory in common.
    """
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise UsageError(f"dtype={kind} holds Python objects, which processes cannot share")
    if min(np.atleast_1d(shape), default=0) < 0:
        raise UsageError(f"shape={shape} has a negative part")
    return _share(lambda: zero_block(shape, kind), writable=True)


def _share(make_block: Callable[[], Block], *, writable: bool = False) -> Shared[Any]:
    session = current()
    if session.worker is not None:
        raise UsageError("share is called by the program on rank 0, not by a task: return the object, or send it")
    on_ranks = is_mpi_job() and not in_comm_executor(session)
    if on_ranks:
        part_ranks()
        if session.phase is not Phase.OPEN:
            session.open(session.config.open_s)
    others = other_holders(session) if on_ranks else []
    if others and writable:
        raise UsageError(
            f"shared_array: the ranks are on {1 + len(others)} hosts, which have no memory in common: let tasks return "
            "their parts, or run on one host"
        )
    block = make_block()
    handle: Shared[Any] = Shared.own(block, writable)
    if others:
        spread(session, handle, block, others)
    return handle
