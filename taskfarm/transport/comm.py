"""The communicator that belongs to the user: a real mpi4py one that knows what it is doing.

Two things are added to `mpi4py.MPI.Intracomm`. Every method that may block notes its entry and exit in a `Tracker`, so
that a watching thread can tell in which one a rank is stuck. And the lower-case methods carry closures, lambdas and
objects of ``__main__``, without a change of mpi4py's global pickler: what plain pickle might not carry is wrapped in a
`_Parcel`, whose pickle is its content.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from taskfarm.wire.codec import pack, unpack

__all__ = ["TimedTracker", "TrackedComm", "Tracker", "wrap"]

_PLAIN = (int, float, complex, bool, str, bytes, type(None))


class Tracker:
    """Which communicator method this rank is inside of.

    Attributes
    ----------
    place : tuple or None
        ``(method name, entry number, peer rank or -1)`` while inside, else None. Written by the one thread that uses
        the communicator, read by a watching thread.
    n_entries : int
        How many methods that communicate have been entered, the non-blocking ones included.
    """

    def __init__(self) -> None:
        self.place: tuple[str, int, int] | None = None
        self.n_entries = 0

    def enter(self, name: str, peer: int) -> None:
        """Note that the method `name` begins."""
        self.n_entries += 1
        self.place = name, self.n_entries, peer

    def leave(self) -> None:
        """Note that it has ended."""
        self.place = None


class TimedTracker(Tracker):
    """A tracker that also tells how long each method took.

    Parameters
    ----------
    n_entries : int
        Those of the tracker whose place it takes.
    clock : callable
        Nanoseconds.
    on_left : callable
        Told of the method's name, its start and its end.
    """

    def __init__(self, n_entries: int, clock: Callable[[], int], on_left: Callable[[str, int, int], None]) -> None:
        super().__init__()
        self.n_entries = n_entries
        self._clock = clock
        self._on_left = on_left
        self._entered = 0

    def enter(self, name: str, peer: int) -> None:
        """Note that the method `name` begins."""
        super().enter(name, peer)
        self._entered = self._clock()

    def leave(self) -> None:
        """Tell how long it took."""
        if self.place is not None:
            self._on_left(self.place[0], self._entered, self._clock())
        super().leave()


class _Parcel:
    """Travels as the pickle of its content and arrives as the content itself."""

    __slots__ = ("content",)

    def __init__(self, content: object) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bytes, list[bytearray]]]:
        body, buffers = pack(self.content)
        return _open_parcel, (body, [bytearray(buffer) for buffer in buffers])


def _open_parcel(body: bytes, buffers: Sequence[bytearray]) -> Any:
    return unpack(body, buffers)


def wrap(obj: object) -> object:
    """Return `obj`, in a parcel unless plain pickle is certain to carry it."""
    if type(obj) in _PLAIN or (type(obj) is np.ndarray and not obj.dtype.hasobject):
        return obj
    return _Parcel(obj)


class TrackedComm(MPI.Intracomm):
    """A communicator over all ranks for the user's own collective code.

    Behaves as `mpi4py.MPI.Intracomm` in everything else. ``TrackedComm(comm)`` shares the handle of `comm`.
    """

    tracker: Tracker = Tracker()  # one per process: a process is inside one communicator method at a time

    def renew(self) -> TrackedComm:
        """Return a fresh duplicate, in which no stale message can be; collective, by ranks that are outside any call.

        The old one is never freed: the library would give its context to a later duplicate, where the stale messages
        would turn up (seen with MPICH 5.0.2). Libraries have some two thousand contexts.
        """
        return TrackedComm(MPI.Intracomm.Dup(MPI.COMM_WORLD))

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """Broadcast `obj` of rank `root`; it gets its own object back."""
        if self.rank == root:
            super().bcast(wrap(obj), root)
            return obj
        return super().bcast(obj, root)

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """Gather one object of each rank to `root`."""
        return super().gather(wrap(sendobj), root)

    def scatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Any:
        """Scatter one object to each rank from `root`."""
        if self.rank == root and sendobj is not None:
            sendobj = [wrap(item) for item in sendobj]
        return super().scatter(sendobj, root)

    def allgather(self, sendobj: Any) -> list[Any]:
        """Gather one object of each rank to all."""
        return super().allgather(wrap(sendobj))

    def alltoall(self, sendobj: Sequence[Any]) -> list[Any]:
        """Send one object from each rank to each rank."""
        return super().alltoall([wrap(item) for item in sendobj])

    # mpi4py's own object reductions duplicate the communicator at their first use while they hold the interpreter lock:
    # if a rank never comes, not even a watching thread runs any more. So these gather, and reduce in rank order.

    def reduce(self, sendobj: Any, op: Any = MPI.SUM, root: int = 0) -> Any:
        """Reduce objects to `root`, in rank order."""
        parts = super().gather(wrap(sendobj), root)
        return None if parts is None else functools.reduce(op, parts)

    def allreduce(self, sendobj: Any, op: Any = MPI.SUM) -> Any:
        """Reduce objects to all, in rank order; every rank gets the result that rank 0 computed."""
        parts = super().gather(wrap(sendobj), 0)
        result = None if parts is None else functools.reduce(op, parts)
        received = super().bcast(wrap(result), 0)
        return received if parts is None else result

    def scan(self, sendobj: Any, op: Any = MPI.SUM) -> Any:
        """Reduce the objects of the ranks up to this one, in rank order."""
        return functools.reduce(op, super().allgather(wrap(sendobj))[: self.rank + 1])

    def exscan(self, sendobj: Any, op: Any = MPI.SUM) -> Any:
        """Reduce the objects of the ranks before this one, in rank order; None on rank 0."""
        before = super().allgather(wrap(sendobj))[: self.rank]
        return functools.reduce(op, before) if before else None

    def send(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Send `obj` to rank `dest`."""
        super().send(wrap(obj), dest, tag)

    def ssend(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Send `obj` to rank `dest`, returning when it is being received."""
        super().ssend(wrap(obj), dest, tag)

    def bsend(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Send `obj` to rank `dest` through the attached buffer."""
        super().bsend(wrap(obj), dest, tag)

    def isend(self, obj: Any, dest: int, tag: int = 0) -> MPI.Request:
        """Start to send `obj` to rank `dest`."""
        return super().isend(wrap(obj), dest, tag)

    def issend(self, obj: Any, dest: int, tag: int = 0) -> MPI.Request:
        """Start to send `obj` to rank `dest`; complete when it is being received."""
        return super().issend(wrap(obj), dest, tag)

    def ibsend(self, obj: Any, dest: int, tag: int = 0) -> MPI.Request:
        """Start to send `obj` to rank `dest` through the attached buffer."""
        return super().ibsend(wrap(obj), dest, tag)

    def sendrecv(
        self,
        sendobj: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = MPI.ANY_SOURCE,
        recvtag: int = MPI.ANY_TAG,
        status: MPI.Status | None = None,
    ) -> Any:
        """Send `sendobj` to rank `dest` while receiving an object from `source`."""
        return super().sendrecv(wrap(sendobj), dest, sendtag, recvbuf, source, recvtag, status)


# Blocking methods, and the position of the argument that names the one rank they wait for (None: all of them).
_COLLECTIVE = [
    "Allgather",
    "Allgatherv",
    "Allreduce",
    "Alltoall",
    "Alltoallv",
    "Alltoallw",
    "Barrier",
    "Bcast",
    "Exscan",
    "Gather",
    "Gatherv",
    "Reduce",
    "Reduce_scatter",
    "Reduce_scatter_block",
    "Scan",
    "Scatter",
    "Scatterv",
    "allgather",
    "allreduce",
    "alltoall",
    "barrier",
    "bcast",
    "exscan",
    "gather",
    "reduce",
    "scan",
    "scatter",
    "Dup",
    "Dup_with_info",
    "Clone",
    "Split",
    "Split_type",
    "Create",
    "Create_cart",
    "Create_graph",
    "Create_dist_graph",
    "Create_dist_graph_adjacent",
    "Disconnect",
    "Free",
]
_PEER_POSITION = {
    **dict.fromkeys(("Send", "Ssend", "Rsend", "Bsend", "Recv", "send", "ssend", "bsend", "recv"), 1),
    **dict.fromkeys(("Sendrecv", "sendrecv"), 4),
    **dict.fromkeys(("Probe", "Mprobe", "probe", "mprobe"), 0),
    "Sendrecv_replace": 3,
}
_NON_BLOCKING = [
    name for name in dir(MPI.Intracomm) if name.startswith("I") and not name.startswith("Is_") and name != "Ishrink"
] + ["isend", "issend", "ibsend", "irecv"]
_PEER_NAMES = ("source", "dest")


def _tracked(name: str, position: int | None) -> Callable[..., Any]:
    base = getattr(TrackedComm, name)

    def method(self: TrackedComm, /, *args: Any, **kwargs: Any) -> Any:
        tracker = self.tracker
        peer = -1
        if position is not None:
            given = [kwargs[key] for key in _PEER_NAMES if key in kwargs]
            peer = given[0] if given else args[position] if len(args) > position else -1
        tracker.enter(name, peer if isinstance(peer, int) and peer >= 0 else -1)
        try:
            return base(self, *args, **kwargs)
        finally:
            tracker.leave()

    method.__name__ = name
    method.__qualname__ = f"TrackedComm.{name}"
    method.__doc__ = base.__doc__
    return method


def _counted(name: str) -> Callable[..., Any]:
    base = getattr(TrackedComm, name)

    def method(self: TrackedComm, /, *args: Any, **kwargs: Any) -> Any:
        self.tracker.n_entries += 1
        return base(self, *args, **kwargs)

    method.__name__ = name
    method.__qualname__ = f"TrackedComm.{name}"
    method.__doc__ = base.__doc__
    return method


for _name in _COLLECTIVE:
    setattr(TrackedComm, _name, _tracked(_name, None))
for _name, _position in _PEER_POSITION.items():
    setattr(TrackedComm, _name, _tracked(_name, _position))
for _name in _NON_BLOCKING:
    setattr(TrackedComm, _name, _counted(_name))
