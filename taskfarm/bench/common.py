"""What the rows share on the ranks: a communicator of their own for raw MPI, the virtual machine, a meeting point."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from taskfarm import objects, vm

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["KB", "MB", "comm", "machine", "meet", "on_all_ranks"]

KB = 1 << 10
MB = 1 << 20


@cache
def comm() -> MPI.Intracomm:
    """Return the rows' own communicator; the first use is collective."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.Dup()


@cache
def machine() -> vm.MPI:
    """Return the virtual machine, on rank 0."""
    return vm.MPI()


def meet() -> None:
    """Wait for all ranks; to be called on all of them."""
    comm().Barrier()


def on_all_ranks(fn: Callable[..., float | None], *args: Any) -> Callable[[int], float]:
    """Return the contender that runs ``fn(*args, n)`` on every rank at once, and returns rank 0's value."""
    return partial(_call, fn, *args)


def _call(fn: Callable[..., float | None], *args: Any) -> float:
    seconds: float | None = objects.call(fn, *args)
    assert seconds is not None  # rank 0 has the clock
    return seconds
