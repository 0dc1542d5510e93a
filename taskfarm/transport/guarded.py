"""The communicator of a task of several ranks: mpi4py's, but no method waits for a rank that has failed.

See `taskfarm.transport.guard` for how. Communicators that are derived from it (``Split``, ``Create_cart``, ...) are of
the same kind. ``comm.raw`` is a plain communicator over the same ranks, as are its handles for C libraries: faster, and
not guarded.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from mpi4py import MPI

from taskfarm.errors import UsageError
from taskfarm.transport.comm import wrap
from taskfarm.transport.guard import Guard
from taskfarm.transport.guarded_objects import ObjectMethods

__all__ = ["GuardedComm", "guarded"]

_ANY_SOURCE, _ANY_TAG = MPI.ANY_SOURCE, MPI.ANY_TAG


class GuardedMethods(ObjectMethods):
    """The methods that are not made from their names below."""

    guard: Guard
    is_own = False
    _plain: Any = MPI.Intracomm
    Isend: Callable[..., MPI.Request]
    isend: Callable[..., MPI.Request]
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
        guard.check()
        receive = self._plain.Irecv(self, recvbuf, source, recvtag)
        try:
            send = self._plain.Isend(self, sendbuf, dest, sendtag)
        except BaseException:
            receive.Cancel()
            MPI.Request.Wait(receive)
            raise
        guard.count_sent(self, dest)
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
        request = self.isend(sendobj, dest, sendtag)
        received = self.recv(recvbuf, source, recvtag, status)
        request.Wait()
        return received

    def Iprobe(self, source: int = _ANY_SOURCE, tag: int = _ANY_TAG, status: MPI.Status | None = None) -> bool:
        """Tell whether a message is here."""
        found: bool = self._plain.Iprobe(self, source, tag, status)
        if not found:
            self.guard.look()
        return found

    iprobe = Iprobe

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

    # Collective operations

    def barrier(self) -> None:
        """Return when all ranks are here."""
        self.guard.meet(self)

    Barrier = barrier

    def _run(self, name: str, *args: Any) -> None:
        self.guard.operate(self, functools.partial(getattr(self._plain, name), self, *args))

    # Communicators

    def Split(self, color: int = 0, key: int = 0) -> Any:
        """Split into communicators, one per colour."""
        return self._derive("Split", operator.index(color), operator.index(key))  # raises before the ranks have met

    def Free(self) -> None:
        """Free a communicator that was derived; the task's own belongs to the farm."""
        self._release("Free")

    def Disconnect(self) -> None:
        """Free a communicator that was derived, when its messages are through."""
        self._release("Disconnect")

    def _release(self, name: str) -> None:
        if self.is_own:
            raise UsageError(f"{name}: task_comm() goes with its task; free what you derive from it, and nothing else")
        getattr(self._plain, name)(self)

    def _derive(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        self.guard.meet(self)
        made = getattr(self._plain, name)(self, *args, **kwargs)
        return guarded(made, self.guard) if isinstance(made, MPI.Intracomm) and made != MPI.COMM_NULL else made


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
    "Dup_with_info", "Split_type",
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
    start = "I" + name[0].lower() + name[1:]

    def method(self: Any, /, *args: Any, **kwargs: Any) -> None:
        self.guard.operate(self, functools.partial(getattr(self._plain, start), self, *args, **kwargs))

    return method


def _deriving(name: str) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self._derive(name, *args, **kwargs)

    return method


def _begin_send(comm: Any, start: str, message: Any, dest: int, tag: int) -> MPI.Request:
    comm.guard.check()
    request: MPI.Request = getattr(comm._plain, start)(comm, message, dest, tag)
    comm.guard.count_sent(comm, dest)
    return request


def _send(start: str) -> Callable[..., None]:
    def send_buffer(self: Any, /, buf: Any, dest: int, tag: int = 0) -> None:
        self.guard.wait(self, _begin_send(self, start, buf, dest, tag))

    def send_object(self: Any, /, obj: Any, dest: int, tag: int = 0) -> None:
        self.guard.wait(self, _begin_send(self, start, wrap(obj), dest, tag))

    return send_object if start[0] == "i" else send_buffer


def _start_send(start: str) -> Callable[..., Any]:
    def send_buffer(self: Any, /, buf: Any, dest: int, tag: int = 0) -> Any:
        return self.guard.keep_send(_begin_send(self, start, buf, dest, tag))

    def send_object(self: Any, /, obj: Any, dest: int, tag: int = 0) -> Any:
        return self.guard.keep_send(_begin_send(self, start, wrap(obj), dest, tag))

    return send_object if start[0] == "i" else send_buffer


def _start_receive(name: str) -> Callable[..., Any]:
    def method(self: Any, /, buf: Any = None, source: int = _ANY_SOURCE, tag: int = _ANY_TAG) -> Any:
        self.guard.check()
        return self.guard.keep_receive(self, source, getattr(self._plain, name)(self, buf, source, tag))

    return method


def _uncounted(name: str) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.guard.check()
        self.guard.is_countable = False
        made = getattr(self._plain, name)(self, *args, **kwargs)
        for one in made if isinstance(made, tuple) else (made,):
            if isinstance(one, GuardedMethods):  # mpi4py makes communicators of the same class
                one.guard = self.guard
        return made

    return method


def _fill(cls: Any) -> Any:
    """Give a class of communicators its guarded methods."""
    plain = cls._plain
    made: dict[str, Callable[..., Any]] = {name: _collective(name) for name in _COLLECTIVE + _NEIGHBOR}
    made |= {name: _deriving(name) for name in _DERIVING + _DERIVING_OF_TOPOLOGY}
    for name, start in _SENDS.items():
        made[name] = _send(start)
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
