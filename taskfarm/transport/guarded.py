"""The communicator of a task of several ranks: mpi4py's, but no method waits for a rank that has failed.

See `taskfarm.transport.guard` for how. Communicators that are derived from it (``Split``, ``Create_cart``, ...) are of
the same kind. ``comm.raw`` is a plain communicator over the same ranks, as are its handles for C libraries: faster, and
not guarded.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from mpi4py import MPI

from taskfarm.transport.comm import wrap
from taskfarm.transport.guard import Guard

__all__ = ["GuardedComm", "guarded"]

_BYTE, _ANY_SOURCE, _ANY_TAG = MPI.BYTE, MPI.ANY_SOURCE, MPI.ANY_TAG


class GuardedMethods:
    """The methods that are not made from their names below."""

    guard: Guard
    is_own = False
    _plain: Any = MPI.Intracomm
    rank: int
    size: int
    Isend: Callable[..., MPI.Request]
    Irecv: Callable[..., MPI.Request]

    @property
    def raw(self) -> Any:
        """A plain communicator with the same handle; its methods wait for ever for a rank that has failed."""
        self.guard.is_countable = False
        return self._plain(self)

    # Messages

    def Recv(self, buf: Any, source: int = _ANY_SOURCE, tag: int = _ANY_TAG, status: MPI.Status | None = None) -> None:
        """Receive into a buffer."""
        self.guard.check()
        self.guard.wait_received(self, source, self._plain.Irecv(self, buf, source, tag), status)

    def Sendrecv(
        self,
        sendbuf: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = _ANY_SOURCE,
        recvtag: int = _ANY_TAG,
        status: MPI.Status | None = None,
    ) -> None:
        """Send from one buffer while receiving into another one."""
        guard = self.guard
        guard.count_sent(self, dest)
        receive = self._plain.Irecv(self, recvbuf, source, recvtag)
        try:
            send = self._plain.Isend(self, sendbuf, dest, sendtag)
        except BaseException:
            receive.Cancel()
            MPI.Request.Wait(receive)
            raise
        guard.wait_both(self, source, receive, send, status)

    def Sendrecv_replace(
        self,
        buf: Any,
        dest: int,
        sendtag: int = 0,
        source: int = _ANY_SOURCE,
        recvtag: int = _ANY_TAG,
        status: MPI.Status | None = None,
    ) -> None:
        """Send from a buffer, and receive into the same one."""
        data, *how = buf if isinstance(buf, (list, tuple)) else [buf]
        copy = np.array(data, copy=True)
        self.Sendrecv([copy, *how] if how else copy, dest, sendtag, buf, source, recvtag, status)

    def recv(
        self,
        buf: Any = None,
        source: int = _ANY_SOURCE,
        tag: int = _ANY_TAG,
        status: MPI.Status | None = None,
    ) -> Any:
        """Receive an object."""
        message = self.mprobe(source, tag)
        return message.recv(status)

    def sendrecv(
        self,
        sendobj: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = _ANY_SOURCE,
        recvtag: int = _ANY_TAG,
        status: MPI.Status | None = None,
    ) -> Any:
        """Send an object while receiving another one."""
        self.guard.count_sent(self, dest)
        request = self.guard.keep_send(self._plain.isend(self, wrap(sendobj), dest, sendtag))
        received = self.recv(recvbuf, source, recvtag, status)
        request.Wait()
        return received

    def Probe(self, source: int = _ANY_SOURCE, tag: int = _ANY_TAG, status: MPI.Status | None = None) -> Literal[True]:
        """Return when a message is here."""
        self.guard.finish(lambda: self._plain.Iprobe(self, source, tag, status))
        return True

    probe = Probe

    def Mprobe(self, source: int = _ANY_SOURCE, tag: int = _ANY_TAG, status: MPI.Status | None = None) -> Any:
        """Return a message that is here, for its `Recv`."""
        found = self.guard.finish(lambda: self._plain.Improbe(self, source, tag, status))
        self.guard.count_received(self, source)
        return found

    def mprobe(self, source: int = _ANY_SOURCE, tag: int = _ANY_TAG, status: MPI.Status | None = None) -> Any:
        """Return a message that is here, for its `recv`."""
        found = self.guard.finish(lambda: self._plain.improbe(self, source, tag, status))
        self.guard.count_received(self, source)
        return found

    def Improbe(self, source: int = _ANY_SOURCE, tag: int = _ANY_TAG, status: MPI.Status | None = None) -> Any:
        """Return a message if one is here, for its `Recv`."""
        self.guard.look()
        found = self._plain.Improbe(self, source, tag, status)
        if found is not None:
            self.guard.count_received(self, source)
        return found

    def improbe(self, source: int = _ANY_SOURCE, tag: int = _ANY_TAG, status: MPI.Status | None = None) -> Any:
        """Return a message if one is here, for its `recv`."""
        self.guard.look()
        found = self._plain.improbe(self, source, tag, status)
        if found is not None:
            self.guard.count_received(self, source)
        return found

    # Objects. Pickled before the ranks meet: what cannot be pickled must not leave the others waiting.

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

    def barrier(self) -> None:
        """Return when all ranks are here."""
        self.guard.meet(self)

    Barrier = barrier

    def _run(self, name: str, *args: Any) -> None:
        self.guard.meet(self)
        self.guard.wait(self, getattr(self._plain, name)(self, *args))


def _pickled(obj: Any) -> bytes:
    return pickle.dumps(wrap(obj), 5)


def _unpickled(memory: bytearray, sizes: Any) -> list[Any]:
    view = memoryview(memory)
    return [pickle.loads(view[start : start + size]) for start, size in zip(_starts(sizes), sizes, strict=True)]


def _starts(sizes: Any) -> Any:
    return np.concatenate(([0], np.cumsum(sizes)[:-1]))


# Made from the method of the same name with an I before it.
_COLLECTIVE = [
    "Allgather", "Allgatherv", "Allreduce", "Alltoall", "Alltoallv", "Alltoallw", "Bcast", "Exscan", "Gather",
    "Gatherv", "Reduce", "Reduce_scatter", "Reduce_scatter_block", "Scan", "Scatter", "Scatterv",
]  # fmt: skip
_NEIGHBOR = [
    "Neighbor_allgather", "Neighbor_allgatherv", "Neighbor_alltoall", "Neighbor_alltoallv", "Neighbor_alltoallw",
]  # fmt: skip
# All ranks enter it together, once they have met.
_DERIVING = [
    "Clone", "Create", "Create_cart", "Create_dist_graph", "Create_dist_graph_adjacent", "Create_graph", "Dup",
    "Dup_with_info", "Split", "Split_type",
]  # fmt: skip
_DERIVING_OF_TOPOLOGY = ["Sub", "neighbor_allgather", "neighbor_alltoall"]
_SENDS = {
    "Send": "Isend", "Ssend": "Issend", "Rsend": "Irsend", "Bsend": "Ibsend", "send": "isend", "ssend": "issend",
    "bsend": "ibsend",
}  # fmt: skip
_UNCOUNTED = [
    "Send_init", "Recv_init", "Ssend_init", "Bsend_init", "Rsend_init", "Psend_init", "Precv_init", "Isendrecv",
    "Isendrecv_replace", "Create_group", "Create_intercomm",
]  # fmt: skip


def _collective(name: str) -> Callable[..., None]:
    def method(self: Any, /, *args: Any, **kwargs: Any) -> None:
        guard = self.guard
        guard.meet(self)
        guard.wait(self, getattr(self._plain, "I" + name[0].lower() + name[1:])(self, *args, **kwargs))

    return method


def _deriving(name: str) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.guard.meet(self)
        made = getattr(self._plain, name)(self, *args, **kwargs)
        return guarded(made, self.guard) if isinstance(made, MPI.Intracomm) and made != MPI.COMM_NULL else made

    return method


def _send(name: str, start: str) -> Callable[..., None]:
    wraps = start[0] == "i"

    def method(self: Any, /, obj: Any, dest: int, tag: int = 0) -> None:
        self.guard.count_sent(self, dest)
        self.guard.wait(self, getattr(self._plain, start)(self, wrap(obj) if wraps else obj, dest, tag))

    return method


def _start_send(name: str) -> Callable[..., Any]:
    wraps = name[0] == "i"

    def method(self: Any, /, obj: Any, dest: int, tag: int = 0) -> Any:
        self.guard.count_sent(self, dest)
        request = getattr(self._plain, name)(self, wrap(obj) if wraps else obj, dest, tag)
        return self.guard.keep_send(request)

    return method


def _start_receive(name: str) -> Callable[..., Any]:
    def method(self: Any, /, buf: Any = None, source: int = _ANY_SOURCE, tag: int = _ANY_TAG) -> Any:
        self.guard.check()
        return self.guard.keep_receive(self, source, getattr(self._plain, name)(self, buf, source, tag))

    return method


def _uncounted(name: str) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.guard.check()
        self.guard.is_countable = False
        return getattr(self._plain, name)(self, *args, **kwargs)

    return method


def _fill(cls: Any) -> Any:
    """Give a class of communicators its guarded methods."""
    plain = cls._plain
    made: dict[str, Callable[..., Any]] = {name: _collective(name) for name in _COLLECTIVE + _NEIGHBOR}
    made |= {name: _deriving(name) for name in _DERIVING + _DERIVING_OF_TOPOLOGY}
    for name, start in _SENDS.items():
        made[name] = _send(name, start)
        made[start] = _start_send(start)
    made |= {name: _start_receive(name) for name in ("Irecv", "irecv")}
    started = [name for name in dir(plain) if name[0] == "I" and name[1:2].islower() and name not in made]
    keep = ("Is_", "Iprobe", "Improbe", "Ishrink")
    made |= {name: _uncounted(name) for name in [*_UNCOUNTED, *started] if not name.startswith(keep)}
    for name, method in made.items():
        base = getattr(plain, name, None)
        if base is not None:
            method.__name__ = name
            method.__qualname__ = f"{cls.__name__}.{name}"
            method.__doc__ = base.__doc__
            setattr(cls, name, method)
    return cls


@_fill
class GuardedComm(GuardedMethods, MPI.Intracomm):
    """A communicator over the ranks of one task."""


@_fill
class GuardedCart(GuardedMethods, MPI.Cartcomm):
    """The same with a grid."""

    _plain = MPI.Cartcomm


@_fill
class GuardedGraph(GuardedMethods, MPI.Graphcomm):
    """The same with a graph."""

    _plain = MPI.Graphcomm


@_fill
class GuardedDistGraph(GuardedMethods, MPI.Distgraphcomm):
    """The same with a distributed graph."""

    _plain = MPI.Distgraphcomm


_KINDS: Sequence[tuple[type, Any]] = (
    (MPI.Cartcomm, GuardedCart),
    (MPI.Graphcomm, GuardedGraph),
    (MPI.Distgraphcomm, GuardedDistGraph),
    (MPI.Intracomm, GuardedComm),
)


def guarded(comm: MPI.Intracomm, guard: Guard, *, is_own: bool = False) -> Any:
    """Return `comm` as a communicator that `guard` watches over."""
    kind = next(new for old, new in _KINDS if isinstance(comm, old))
    found = kind(comm)
    found.guard = guard
    found.is_own = is_own
    return found
