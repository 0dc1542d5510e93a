"""The collective methods of a task's communicator that take Python objects, made of those that take buffers.

Objects are pickled before the ranks meet: what cannot be pickled must not leave the others waiting.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from taskfarm.transport.comm import wrap

__all__ = ["ObjectMethods"]

_BYTE = MPI.BYTE


class ObjectMethods:
    """These methods, for a communicator that can complete a collective operation, given the name that begins it."""

    rank: int
    size: int

    def _run(self, name: str, *args: Any) -> None:
        raise NotImplementedError

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """Broadcast `obj` of rank `root`; it gets its own object back."""
        body = _pickled(obj) if self.rank == root else b""
        size = np.array([len(body)])
        self._run("Ibcast", size, root)
        memory = bytearray(body) if self.rank == root else bytearray(size[0])
        self._run("Ibcast", [memory, _BYTE], root)
        return obj if self.rank == root else pickle.loads(memory)

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """Gather one object of each rank to `root`."""
        body = _pickled(sendobj)
        sizes = np.zeros(self.size, dtype=np.int64) if self.rank == root else None
        self._run("Igather", np.array([len(body)]), sizes, root)
        if sizes is None:
            self._run("Igatherv", [body, _BYTE], None, root)
            return None
        memory = bytearray(int(sizes.sum()))
        self._run("Igatherv", [body, _BYTE], [memory, (sizes, _starts(sizes)), _BYTE], root)
        return _unpickled(memory, sizes)

    def allgather(self, sendobj: Any) -> list[Any]:
        """Gather one object of each rank to all."""
        body = _pickled(sendobj)
        sizes = np.zeros(self.size, dtype=np.int64)
        self._run("Iallgather", np.array([len(body)]), sizes)
        memory = bytearray(int(sizes.sum()))
        self._run("Iallgatherv", [body, _BYTE], [memory, (sizes, _starts(sizes)), _BYTE])
        return _unpickled(memory, sizes)

    def scatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Any:
        """Scatter one object to each rank from `root`."""
        size = np.zeros(1, dtype=np.int64)
        if self.rank != root:
            self._run("Iscatter", None, size, root)
            memory = bytearray(int(size[0]))
            self._run("Iscatterv", None, [memory, _BYTE], root)
            return pickle.loads(memory)
        bodies = self._pickled_each(sendobj)
        sizes = np.array([len(body) for body in bodies])
        self._run("Iscatter", sizes, size, root)
        memory = bytearray(int(size[0]))
        self._run("Iscatterv", [b"".join(bodies), (sizes, _starts(sizes)), _BYTE], [memory, _BYTE], root)
        return pickle.loads(memory)

    def alltoall(self, sendobj: Sequence[Any]) -> list[Any]:
        """Send one object from each rank to each rank."""
        bodies = self._pickled_each(sendobj)
        out = np.array([len(body) for body in bodies])
        into = np.zeros(self.size, dtype=np.int64)
        self._run("Ialltoall", out, into)
        memory = bytearray(int(into.sum()))
        self._run("Ialltoallv", [b"".join(bodies), (out, _starts(out)), _BYTE], [memory, (into, _starts(into)), _BYTE])
        return _unpickled(memory, into)

    def _pickled_each(self, objects: Sequence[Any] | None) -> list[bytes]:
        if objects is None or len(objects) != self.size:
            raise ValueError(f"expecting {self.size} items, one per rank")
        return [_pickled(item) for item in objects]

    def reduce(self, sendobj: Any, op: Any = MPI.SUM, root: int = 0) -> Any:
        """Reduce objects to `root`, in rank order."""
        parts = self.gather(sendobj, root)
        return None if parts is None else functools.reduce(op, parts)

    def allreduce(self, sendobj: Any, op: Any = MPI.SUM) -> Any:
        """Reduce objects to all, in rank order; each rank reduces for itself."""
        return functools.reduce(op, self.allgather(sendobj))

    def scan(self, sendobj: Any, op: Any = MPI.SUM) -> Any:
        """Reduce the objects of the ranks up to this one, in rank order."""
        return functools.reduce(op, self.allgather(sendobj)[: self.rank + 1])

    def exscan(self, sendobj: Any, op: Any = MPI.SUM) -> Any:
        """Reduce the objects of the ranks before this one, in rank order; None on rank 0."""
        before = self.allgather(sendobj)[: self.rank]
        return functools.reduce(op, before) if before else None


def _pickled(obj: Any) -> bytes:
    return pickle.dumps(wrap(obj), 5)


def _unpickled(memory: bytearray, sizes: Any) -> list[Any]:
    view = memoryview(memory)
    return [pickle.loads(view[start : start + size]) for start, size in zip(_starts(sizes), sizes, strict=True)]


def _starts(sizes: Any) -> Any:
    return np.concatenate(([0], np.cumsum(sizes)[:-1]))
