"""What the rows share: a communicator of their own for raw MPI, a clock, and functions that do nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from time import perf_counter
from typing import Any

from mpi4py import MPI

from taskfarm import objects, vm

__all__ = ["comm", "machine", "meet", "noop", "raw", "timed"]


@cache
def comm() -> MPI.Intracomm:
    """Return the rows' own communicator; the first use is collective."""
    return MPI.COMM_WORLD.Dup()


@cache
def machine() -> vm.MPI:
    """Return the virtual machine, on rank 0."""
    return vm.MPI()


def noop(*args: Any) -> None:
    """Do nothing."""


def meet() -> None:
    """Wait for all ranks; to be called on all of them."""
    comm().Barrier()


def raw(fn: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Return a function that runs `fn` on every rank at once, for raw MPI, and returns rank 0's value."""
    return lambda: objects.call(fn, *args)


def timed(fn: Callable[..., object], *args: Any) -> float:
    """Return the seconds that ``fn(*args)`` takes."""
    start = perf_counter()
    fn(*args)
    return perf_counter() - start
