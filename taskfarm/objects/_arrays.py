"""Arrays between memory that the ranks own: no allocation, no pickle, MPI's own buffer collectives."""

from __future__ import annotations

from typing import Any

from taskfarm.errors import UsageError
from taskfarm.runtime.session import current

__all__ = ["broadcast_array", "gather_rows", "scatter_rows"]


def broadcast_array(array: Any, root: int = 0) -> None:
    """Copy `array` of rank `root` into the `array` of every other rank; collective, for use inside `call`.

    Parameters
    ----------
    array : array or buffer
        Any dtype without Python objects, contiguous in C or Fortran order; the same shape, dtype and order everywhere.
        Written to on all ranks but `root`. Besides numpy arrays: what has the buffer protocol (bytearray, memoryview),
        ``__array_interface__`` or DLPack, in CPU memory.
    root : int
        The rank that sends.

    Raises
    ------
    UsageError
        On every rank alike, and nothing was transferred: if shapes, dtypes or orders differ, memory is not contiguous,
        is read-only where it would be written to, or is not on the CPU.
    """
    _arrays().broadcast_array(_comm("broadcast_array"), array, root)


def scatter_rows(array: Any, part: Any, root: int = 0) -> None:
    """Copy the row blocks of `array` on rank `root` into the `part` of every rank; collective, for use inside `call`.

    Parameters
    ----------
    array : array or buffer, shape (n, ...)
        Used on rank `root` only; None elsewhere will do. C or Fortran order.
    part : array or buffer, shape (n_r, ...)
        This rank's rows, in rank order; the numbers of rows may differ and be 0, and add up to n. C or Fortran order,
        whatever that of `array` is. Written to.
    root : int
        The rank that sends.

    Raises
    ------
    UsageError
        On every rank alike, as `broadcast_array` does, and if the rows do not add up.
    """
    _arrays().scatter_rows(_comm("scatter_rows"), array, part, root)


def gather_rows(part: Any, array: Any, root: int = 0) -> None:
    """Copy the `part` of every rank into the row blocks of `array` on rank `root`; the reverse of `scatter_rows`."""
    _arrays().gather_rows(_comm("gather_rows"), part, array, root)


def _comm(what: str) -> Any:
    comm = current().comm
    if comm is None:
        raise UsageError(f"{what} needs MPI, which cannot be loaded ({current().mpi_error})")
    return comm


def _arrays() -> Any:
    from taskfarm.transport import arrays  # loads MPI, which importing this face must not

    return arrays
