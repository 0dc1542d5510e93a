"""Arrays through MPI's own buffer collectives, from and into memory that the callers own.

Nothing is allocated. The ranks first compare what they were given: a few numbers each, with a digest of what has to be
equal everywhere, in one small buffer collective. Only if those disagree do they exchange descriptions, pickled, to find
the words: then every rank raises the same error and nothing was transferred, so no rank waits for ever.

A row block that is not C ordered is described by a derived datatype for one row, whose elements are walked in C order:
C and Fortran ordered arrays can be mixed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from typing import Any

import numpy as np
from mpi4py import MPI

from taskfarm.errors import UsageError
from taskfarm.transport.memory import PIECE_BYTES, AnyArray, as_cpu_array, dtype_name, memory_order, pieces

__all__ = ["broadcast_array", "gather_rows", "scatter_rows"]

_MAX_COUNT = (1 << 31) - 1
_PROBLEM = -1  # in place of a digest, which is never negative
_NUMBERS = struct.Struct("=4q")  # digest; rows of the part; on the root: rows of the array, and where the part begins
_ELSEWHERE = -1  # in place of that, if the part is memory of its own


@dataclass(frozen=True)
class _Description:
    """What the other ranks must know of one rank's array: `problem` is empty if it can take part."""

    problem: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    order: str = ""


_NOT_USED = _Description("")


@lru_cache(maxsize=256)  # programs move arrays of few kinds many times
def _digest(root: int, dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> int:
    """Return a number, 0..2^63 - 1, that is the same on every rank, and practically never for something else."""
    text = repr((root, dtype_name(dtype), shape, order))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _look_at(provider: Any, name: str, *, writable: bool) -> tuple[AnyArray | None, str]:
    """Return the memory of `provider`, or None and why there is none to use."""
    if provider is None:
        return None, f"{name} is None"
    try:
        return as_cpu_array(provider, name, writable=writable), ""
    except UsageError as exc:
        return None, str(exc)


def _describe(array: AnyArray | None, problem: str) -> _Description:
    if array is None:
        return _Description(problem)
    return _Description(problem, dtype_name(array.dtype), array.shape, memory_order(array))


def _refuse(problems: Sequence[str]) -> None:
    lines = [f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem]
    if lines:
        raise UsageError("; ".join(lines))


def _root_problem(root: Any, size: int) -> str:
    return "" if isinstance(root, int) and 0 <= root < size else f"root={root!r} is not a rank below {size}"


def _check_roots(roots: Sequence[Any], problems: Sequence[str]) -> None:
    _refuse(problems)
    if len(set(roots)) > 1:
        raise UsageError(f"the ranks name different roots: {', '.join(map(str, roots))} (ranks 0 to {len(roots) - 1})")


# Broadcast


def broadcast_array(comm: MPI.Intracomm, array: Any, root: int) -> None:
    """Copy `array` of rank `root` into every other rank's `array`, of the same shape, dtype and order; collective."""
    own, problem = _look_at(array, "array", writable=comm.rank != root)
    bad_root = _root_problem(root, comm.size)
    if own is None or bad_root:
        digest = _PROBLEM - comm.rank
    else:
        digest = _digest(int(root), own.dtype, own.shape, memory_order(own))
    lowest = bytearray(16)
    comm.Allreduce([struct.pack("=2q", digest, -digest), 2, MPI.INT64_T], [lowest, 2, MPI.INT64_T], MPI.MIN)
    low, minus_high = struct.unpack("=2q", lowest)
    if own is None or low != -minus_high or low < 0:
        _explain_broadcast(comm, _describe(own, problem), root, bad_root)
        raise UsageError("broadcast_array: the arrays do not fit")  # digests that differ have different descriptions
    if own.nbytes <= PIECE_BYTES:
        comm.Bcast([own, MPI.BYTE], root)
    else:
        for piece in pieces(own, PIECE_BYTES):
            comm.Bcast([piece, MPI.BYTE], root)


def _explain_broadcast(comm: MPI.Intracomm, mine: _Description, root: Any, bad_root: str) -> None:
    """Raise the same error on every rank; collective."""
    everybody: list[tuple[_Description, Any, str]] = comm.allgather((mine, root, bad_root))
    descriptions = [description for description, _, _ in everybody]
    _check_roots([given for _, given, _ in everybody], [bad for _, _, bad in everybody])
    wanted = descriptions[root]
    problems = []
    for given in descriptions:
        problem = given.problem
        if not problem and not wanted.problem and given != wanted:
            problem = (
                f"array has shape {given.shape}, dtype {given.dtype}, order {given.order}; rank {root} "
                f"sends shape {wanted.shape}, dtype {wanted.dtype}, order {wanted.order}"
            )
        problems.append(problem)
    _refuse(problems)


# Rows


_OVERLAP = "part lies inside array, but is not exactly the rows of this rank there: pass those, or other memory"


def _place_in(whole: AnyArray, own: AnyArray) -> tuple[int, str]:
    """Return at which row of `whole` its part `own` lies, `_ELSEWHERE` if not inside; and what is wrong with that."""
    if not np.may_share_memory(whole, own):
        return _ELSEWHERE, ""
    row_bytes = whole.nbytes // len(whole)
    distance = own.ctypes.data - whole.ctypes.data
    both_c = whole.flags.c_contiguous and own.flags.c_contiguous
    if not both_c or row_bytes * len(own) != own.nbytes or distance % row_bytes:
        return _ELSEWHERE, _OVERLAP
    return distance // row_bytes, ""


def _new_row(array: AnyArray) -> tuple[int, MPI.Datatype]:
    """Return what the rows of an array consist of: how many of which datatype each; not `MPI.BYTE` is to be freed."""
    if array.flags.c_contiguous:
        row_bytes = array.itemsize * math.prod(array.shape[1:])
        if array.nbytes <= _MAX_COUNT:
            return row_bytes, MPI.BYTE
        return 1, MPI.BYTE.Create_contiguous(row_bytes).Commit()
    row = MPI.BYTE.Create_contiguous(array.itemsize)
    for length, stride in reversed(list(zip(array.shape[1:], array.strides[1:], strict=True))):
        inner, row = row, row.Create_hvector(length, 1, stride)
        inner.Free()
    resized = row.Create_resized(0, array.strides[0]).Commit()
    row.Free()
    return 1, resized


def scatter_rows(comm: MPI.Intracomm, array: Any, part: Any, root: int) -> None:
    """Copy the row blocks of `array` on rank `root` into every rank's `part`, in rank order; collective."""
    _move_rows(comm, array, part, root, scatter=True)


def gather_rows(comm: MPI.Intracomm, part: Any, array: Any, root: int) -> None:
    """Copy every rank's `part` into the row blocks of `array` on rank `root`, in rank order; collective."""
    _move_rows(comm, array, part, root, scatter=False)


def _move_rows(comm: MPI.Intracomm, array: Any, part: Any, root: int, *, scatter: bool) -> None:
    own, problem = _look_at(part, "part", writable=scatter)
    if own is not None and not own.shape:
        problem = "part has no rows (it is 0-dimensional)"
    whole, whole_problem = None, ""
    if comm.rank == root:
        whole, whole_problem = _look_at(array, "array", writable=not scatter)
        if whole is not None and not whole.shape:
            whole_problem = "array has no rows (it is 0-dimensional)"
    start, overlap = _place_in(whole, own) if whole is not None and own is not None else (_ELSEWHERE, "")
    problem = problem or overlap
    counts = _compare_rows(comm, own, whole, start, root, bool(problem or whole_problem))
    if counts is None or own is None:
        _explain_rows(comm, _describe(own, problem), _describe(whole, whole_problem), root)
        raise UsageError("the rows do not fit")  # numbers that disagree have different descriptions
    if sum(counts) and own.itemsize and 0 not in own.shape[1:]:
        _transfer_rows(comm, own, whole, counts, root, scatter, in_place=start != _ELSEWHERE)


def _compare_rows(
    comm: MPI.Intracomm, own: AnyArray | None, whole: AnyArray | None, start: int, root: Any, has_problem: bool
) -> Sequence[int] | None:
    """Return the number of rows of each rank's part, or None, on every rank alike, if something does not fit."""
    if own is None or has_problem or _root_problem(root, comm.size):
        numbers = (_PROBLEM - comm.rank, 0, 0, _ELSEWHERE)
    else:
        digest = _digest(int(root), own.dtype, own.shape[1:], "rows")
        n_rows = 0
        if whole is not None:
            n_rows = len(whole)
            if whole.shape[1:] != own.shape[1:] or whole.dtype != own.dtype:
                digest = _PROBLEM
        numbers = (digest, len(own), n_rows, start)
    table = bytearray(_NUMBERS.size * comm.size)
    comm.Allgather([_NUMBERS.pack(*numbers), MPI.BYTE], [table, MPI.BYTE])
    digests, counts, totals, starts = zip(*_NUMBERS.iter_unpack(table), strict=True)
    if digests[0] < 0 or digests.count(digests[0]) != len(digests) or sum(counts) != totals[root]:
        return None
    return counts if starts[root] in (_ELSEWHERE, sum(counts[:root])) else None


def _explain_rows(comm: MPI.Intracomm, part: _Description, whole: _Description, root: Any) -> None:
    """Raise the same error on every rank; collective."""
    bad_root = _root_problem(root, comm.size)
    everybody: list[tuple[_Description, _Description, Any, str]] = comm.allgather((part, whole, root, bad_root))
    _check_roots([given for _, _, given, _ in everybody], [bad for _, _, _, bad in everybody])
    target = everybody[root][1]
    problems = []
    for rank, (given, other, _, _) in enumerate(everybody):
        problem = given.problem or (other.problem if rank == root else "")
        if not problem and not target.problem and (given.shape[1:], given.dtype) != (target.shape[1:], target.dtype):
            problem = (
                f"part has rows of shape {given.shape[1:]} and dtype {given.dtype}, array of rank {root} has rows of "
                f"shape {target.shape[1:]} and dtype {target.dtype}"
            )
        problems.append(problem)
    _refuse(problems)
    counts = [given.shape[0] for given, _, _, _ in everybody]
    if sum(counts) == target.shape[0]:
        raise UsageError(f"rank {root}: {_OVERLAP}")
    raise UsageError(
        f"array of rank {root} has {target.shape[0]} rows, the parts of all ranks together {sum(counts)} "
        f"({', '.join(map(str, counts))})"
    )


def _transfer_rows(
    comm: MPI.Intracomm,
    own: AnyArray,
    whole: AnyArray | None,
    counts: Sequence[int],
    root: int,
    scatter: bool,
    *,
    in_place: bool,
) -> None:
    if not len(own):
        own = np.empty((1, *own.shape[1:]), own.dtype)  # MPI wants an address; none of it is sent
    n_units, row = _new_row(own)
    local = MPI.IN_PLACE if in_place else [own, counts[comm.rank] * n_units, row]
    remote = None
    whole_row = MPI.BYTE
    if whole is not None:
        n_units, whole_row = _new_row(whole)
        numbers = [count * n_units for count in counts]
        remote = [whole, numbers, [0, *accumulate(numbers[:-1])], whole_row]
    try:
        if scatter:
            comm.Scatterv(remote, local, root)
        else:
            comm.Gatherv(local, remote, root)
    finally:
        for datatype in (row, whole_row):
            if datatype != MPI.BYTE:
                datatype.Free()
