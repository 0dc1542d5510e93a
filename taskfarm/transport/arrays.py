"""Arrays through MPI's own buffer operations, from and into memory that the callers own.

Nothing is allocated and nothing is pickled but a description of a few bytes per rank, which all ranks compare first:
if anything does not fit, every rank raises the same error and nothing was transferred, so no rank waits for ever.

A row block is described by a derived datatype for one row, whose elements are walked in C order whatever the order of
the array: C and Fortran ordered arrays can be mixed, and counts (of rows) stay small where numbers of bytes do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from taskfarm.errors import UsageError

__all__ = ["Description", "as_cpu_array", "broadcast_array", "gather_rows", "scatter_rows"]

_CHUNK_BYTES = 1 << 30  # below 2^31 in every MPI

AnyArray = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Description:
    """What the other ranks must know of one rank's array: `problem` is empty if it can take part."""

    problem: str
    dtype: str
    shape: tuple[int, ...]


def as_cpu_array(provider: Any, name: str, *, writable: bool) -> AnyArray:
    """Return the memory of `provider` as an array, without a copy.

    Parameters
    ----------
    provider : object
        An array, anything with the buffer protocol (bytes, memoryview), with ``__array_interface__`` or DLPack.
    name : str
        Name of the argument, for the error message.
    writable : bool
        Whether the memory will be written to.

    Raises
    ------
    UsageError
        If the memory is not on the CPU, not contiguous in C or Fortran order, holds Python objects or is read-only.
    """
    array = _find_memory(provider, name)
    if array.dtype.hasobject:
        raise UsageError(f"{name} has dtype {array.dtype}, which holds Python objects: send it with call or a message")
    if not array.flags.forc:
        raise UsageError(f"{name} (strides {array.strides}) is not contiguous: pass numpy.ascontiguousarray({name})")
    if writable and not array.flags.writeable:
        raise UsageError(f"{name} is read-only, but data would be received into it")
    return array


def _find_memory(provider: Any, name: str) -> AnyArray:
    if isinstance(provider, np.ndarray):
        return provider
    if hasattr(provider, "__cuda_array_interface__") or _dlpack_device(provider) not in (None, 1):
        raise UsageError(
            f"{name} ({type(provider).__module__}.{type(provider).__qualname__}) is in GPU memory, and the explicit "
            f"buffers work on the CPU: pass a copy there (cupy: {name}.get(), torch: {name}.cpu()), or use "
            "objects.comm directly if your MPI is CUDA-aware"
        )
    try:
        if hasattr(provider, "__array_interface__"):
            return np.asarray(provider)
        if hasattr(provider, "__dlpack__"):
            return np.from_dlpack(provider)
        view = memoryview(provider)
    except (TypeError, ValueError, BufferError, RuntimeError) as exc:
        raise UsageError(f"{name}={type(provider).__qualname__} object offers no memory to use: {exc}") from exc
    return np.asarray(view)


def _dlpack_device(provider: Any) -> int | None:
    device = getattr(provider, "__dlpack_device__", None)
    return int(device()[0]) if device is not None else None


def _describe(provider: Any, name: str, *, writable: bool) -> tuple[AnyArray | None, Description]:
    if provider is None:
        return None, Description(f"{name} is None", "", ())
    try:
        array = as_cpu_array(provider, name, writable=writable)
    except UsageError as exc:
        return None, Description(str(exc), "", ())
    return array, Description("", array.dtype.str if array.dtype.names is None else str(array.dtype), array.shape)


def _refuse(problems: Sequence[str]) -> None:
    lines = [f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem]
    if lines:
        raise UsageError("; ".join(lines))


def _check_root(root: Any, size: int) -> None:
    if not isinstance(root, int) or not 0 <= root < size:
        raise UsageError(f"root={root!r} is not a rank below {size}")


def broadcast_array(comm: MPI.Intracomm, array: Any, root: int) -> None:
    """Copy `array` of rank `root` into every other rank's `array`, of the same shape, dtype and order; collective."""
    _check_root(root, comm.size)
    own, mine = _describe(array, "array", writable=comm.rank != root)
    order = "C" if own is None or own.flags.c_contiguous else "F"
    everybody: list[tuple[Description, str]] = comm.allgather((mine, order))
    wanted, wanted_order = everybody[root]
    problems = []
    for description, given_order in everybody:
        problem = description.problem
        if not problem and not wanted.problem and (description, given_order) != (wanted, wanted_order):
            problem = (
                f"array has shape {description.shape}, dtype {description.dtype}, order {given_order}; rank {root} "
                f"sends shape {wanted.shape}, dtype {wanted.dtype}, order {wanted_order}"
            )
        problems.append(problem)
    _refuse(problems)
    if own is None or own.nbytes == 0:
        return
    memory = own.reshape(-1, order="A").view(np.uint8) if own.ndim else own.reshape(1).view(np.uint8)
    for start in range(0, memory.nbytes, _CHUNK_BYTES):
        comm.Bcast([memory[start : start + _CHUNK_BYTES], MPI.BYTE], root)


class _Rows:
    """One array as rows: a datatype for one row whose extent is the distance to the next one."""

    def __init__(self, array: AnyArray) -> None:
        item = MPI.BYTE.Create_contiguous(array.itemsize)
        row = item
        for length, stride in reversed(list(zip(array.shape[1:], array.strides[1:], strict=True))):
            row = row.Create_hvector(length, 1, stride)
        self.datatype = row.Create_resized(0, array.strides[0]).Commit()
        self.memory = array.reshape(-1, order="A").view(np.uint8)

    def free(self) -> None:
        self.datatype.Free()


def _check_rows(everybody: Sequence[tuple[Description, Description]], root: int, whole: str) -> list[int]:
    """Return the number of rows of each rank's part, or raise the same error on every rank."""
    target = everybody[root][1]
    problems = []
    for rank, (part, other) in enumerate(everybody):
        problem = part.problem or (other.problem if rank == root else "")
        if not problem and not part.shape:
            problem = "part has no rows (it is 0-dimensional)"
        if not problem and not target.problem and (part.shape[1:], part.dtype) != (target.shape[1:], target.dtype):
            problem = (
                f"part has rows of shape {part.shape[1:]} and dtype {part.dtype}, {whole} of rank {root} has rows of "
                f"shape {target.shape[1:]} and dtype {target.dtype}"
            )
        problems.append(problem)
    _refuse(problems)
    counts = [part.shape[0] for part, _ in everybody]
    if sum(counts) != target.shape[0]:
        raise UsageError(
            f"{whole} of rank {root} has {target.shape[0]} rows, the parts of all ranks together {sum(counts)} "
            f"({', '.join(map(str, counts))})"
        )
    return counts


def scatter_rows(comm: MPI.Intracomm, array: Any, part: Any, root: int) -> None:
    """Copy the row blocks of `array` on rank `root` into every rank's `part`, in rank order; collective."""
    _move_rows(comm, array, part, root, scatter=True)


def gather_rows(comm: MPI.Intracomm, part: Any, array: Any, root: int) -> None:
    """Copy every rank's `part` into the row blocks of `array` on rank `root`, in rank order; collective."""
    _move_rows(comm, array, part, root, scatter=False)


def _move_rows(comm: MPI.Intracomm, array: Any, part: Any, root: int, *, scatter: bool) -> None:
    _check_root(root, comm.size)
    own_part, part_description = _describe(part, "part", writable=scatter)
    whole, whole_description = None, Description("", "", ())
    if comm.rank == root:
        whole, whole_description = _describe(array, "array", writable=not scatter)
        if not whole_description.problem and not whole_description.shape:
            whole_description = Description("array has no rows (it is 0-dimensional)", "", ())
    everybody = comm.allgather((part_description, whole_description))
    counts = _check_rows(everybody, root, "array")
    if own_part is None or everybody[root][1].shape[0] == 0 or 0 in everybody[root][1].shape:
        return
    small = _Rows(own_part if own_part.shape[0] else np.empty((1, *own_part.shape[1:]), own_part.dtype))
    large = _Rows(whole) if whole is not None else None
    try:
        local = [small.memory, own_part.shape[0], small.datatype]
        starts = [sum(counts[:rank]) for rank in range(comm.size)]
        remote = [large.memory, counts, starts, large.datatype] if large is not None else None
        if scatter:
            comm.Scatterv(remote, local, root)
        else:
            comm.Gatherv(local, remote, root)
    finally:
        small.free()
        if large is not None:
            large.free()
