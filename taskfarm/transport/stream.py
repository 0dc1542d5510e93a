"""Frames between a process and the workers that it started on its own host, over connected Unix sockets.

The same frames as through MPI, for programs that run without it. Rank 0 has a socket to each worker, a worker has one
to rank 0; workers do not talk to each other. On a socket a frame is a length, the control message, and the bulk
messages, which are read straight into the memory that the receiver keeps. Nothing blocks: what a socket does not take
is kept, with the memory that it borrows, and moved by later calls.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from struct import Struct

from taskfarm.errors import UsageError, WorkerLostError
from taskfarm.transport.base import Direct, Incoming, LandingMemory, raise_if_interrupted
from taskfarm.transport.local import LocalHub
from taskfarm.wire.codec import empty_buffer
from taskfarm.wire.frames import Buffer, Frame, Head, Kind, encode, parse_head

__all__ = ["StreamTransport", "adopt_socket", "pause"]

_LENGTH = Struct("<Q")
_READ_BYTES = 1 << 18  # how much is asked of a socket at once; more than its buffer holds
_MAX_WAIT_S = 1.0  # a wait ends by a byte on a socket; this bounds what a lost one costs
_MAX_PARTS = 64  # of one system call; far below the limits of the systems (IOV_MAX, 1024 and more)


class _Link:
    """One socket: what is to be sent, and how far the frame that is coming in is."""

    def __init__(self, rank: int, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.rank = rank
        self.sock = sock
        self.unsent: deque[memoryview] = deque()
        self.allocate: Callable[[int], memoryview] = empty_buffer
        self.is_open = True
        self._unread = bytearray()
        self._head: Head | None = None
        self._bulk: list[Buffer] = []
        self._missing: memoryview = memoryview(b"")  # the rest of the bulk message that is being filled

    def push(self) -> None:
        """Send what the socket takes."""
        while self.unsent and self.is_open:
            parts = [self.unsent[index] for index in range(min(len(self.unsent), _MAX_PARTS))]
            try:
                n = self.sock.sendmsg(parts)
            except BlockingIOError:
                return
            except OSError:
                self.is_open = False
                return
            while n:
                first = self.unsent.popleft()
                if n < len(first):
                    self.unsent.appendleft(first[n:])
                    break
                n -= len(first)

    def pull(self, found: deque[Incoming]) -> None:
        """Read what has come, and append the frames that are whole to `found`."""
        while self.is_open:
            try:
                if len(self._missing):
                    n = self.sock.recv_into(self._missing)
                    self._missing = self._missing[n:]
                else:
                    data = self.sock.recv(_READ_BYTES)
                    n = len(data)
                    self._unread += data
            except BlockingIOError:
                return
            except OSError:
                n = 0
            if not n:
                self.is_open = False
                return
            self._parse(found)

    def _parse(self, found: deque[Incoming]) -> None:
        while not len(self._missing):
            if self._head is None:
                if len(self._unread) < _LENGTH.size:
                    return
                end = _LENGTH.size + _LENGTH.unpack_from(self._unread)[0]
                if len(self._unread) < end:
                    return
                self._head = parse_head(bytes(self._unread[_LENGTH.size : end]))
                del self._unread[:end]
                self._bulk = []
            elif len(self._bulk) < len(self._head.bulk_sizes):
                buffer = self.allocate(self._head.bulk_sizes[len(self._bulk)])
                self._bulk.append(buffer)
                here = min(len(buffer), len(self._unread))
                buffer[:here] = self._unread[:here]
                del self._unread[:here]
                self._missing = buffer[here:]
            else:
                head, self._head = self._head, None
                found.append((self.rank, head.complete(self._bulk) if self._bulk else head.frame))


class StreamTransport:
    """Transport over connected sockets; see `taskfarm.transport.base.Transport` for the methods.

    Parameters
    ----------
    rank : int
        Rank of this process.
    size : int
        Number of processes.
    sockets : mapping of int to socket
        Connected stream sockets, by the rank of the other side; the transport owns them.
    """

    def __init__(self, rank: int, size: int, sockets: Mapping[int, socket.socket]) -> None:
        self.rank = rank
        self.size = size
        self.interrupted = False
        self._woken = False
        self._links = {other: _Link(other, sock) for other, sock in sockets.items()}
        self._ready: deque[Incoming] = deque()
        self._lost: deque[tuple[int, str]] = deque()
        self._told: set[int] = set()
        # Of a hub without others: what exchanges arrays beside frames needs a session over MPI, and never comes here.
        self.direct: Direct = LocalHub(1).transports()[0].direct
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._rope.setblocking(False)

    # Sending

    def send(self, dest: int, frame: Frame, *, borrowed: bool = False) -> None:
        """Start to send `frame`; see the protocol."""
        self.send_to((dest,), frame, borrowed=borrowed)

    def send_to(self, dests: Sequence[int], frame: Frame, *, borrowed: bool = False) -> None:
        """Start to send `frame` to several ranks; see the protocol. A frame to a lost rank is dropped."""
        control, bulk = encode(frame)
        for dest in dests:
            link = self._links.get(dest)
            if link is None:
                raise UsageError(f"dest={dest} is not connected to rank {self.rank}")
            if not link.is_open:
                continue
            link.unsent.append(memoryview(_LENGTH.pack(len(control)) + bytes(control)))
            link.unsent.extend(memoryview(buffer) for buffer in bulk if len(buffer))
            link.push()

    def send_or_copy(self, dest: int, frame: Frame) -> None:
        """Send `frame`, whose buffers the caller may change afterwards; see the protocol."""
        self.send(dest, frame)
        unsent = self._links[dest].unsent
        for index, part in enumerate(unsent):
            unsent[index] = memoryview(bytes(part))

    @property
    def n_unsent(self) -> int:
        """Number of pieces that the sockets have not taken."""
        return sum(len(link.unsent) for link in self._links.values() if link.is_open)

    def complete_sends(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Move until everything is sent; see the protocol."""
        while self.n_unsent:
            item = self.receive_nowait()
            if item is not None:
                on_frame(*item)
                continue
            if not self.n_unsent:
                break
            raise_if_interrupted(self)
            if time.monotonic() >= deadline:
                return False
            self._wait(min(deadline - time.monotonic(), _MAX_WAIT_S))
        return True

    # Receiving

    def receive_nowait(self) -> Incoming | None:
        """Move everything once; see the protocol.

        Raises
        ------
        WorkerLostError
            If the process that started this one is gone. Of others, a LOST frame tells.
        """
        if not self._ready:
            for link in self._links.values():
                if link.unsent:
                    link.push()
                if link.is_open:
                    link.pull(self._ready)
                if not link.is_open:
                    self.lose(link.rank, "ended, and its connection with it")
        if self._ready:
            return self._ready.popleft()
        if self._lost:
            rank, how = self._lost.popleft()
            if rank == 0:
                raise WorkerLostError(f"the process of rank {rank} is gone", [rank])
            return rank, Frame(Kind.LOST, rank, body=how.encode())
        return None

    def lose(self, rank: int, how: str) -> None:
        """Give up a process; see the protocol. Nothing is known here of those without a connection."""
        link = self._links.get(rank)
        if link is not None and rank not in self._told:
            link.is_open = False
            self._told.add(rank)
            self._lost.append((rank, how))

    def receive(self, deadline: float) -> Incoming | None:
        """Wait for the next frame; see the protocol, and `receive_nowait`."""
        while True:
            item = self.receive_nowait()
            if item is not None:
                return item
            raise_if_interrupted(self)
            if self._woken:
                self._woken = False
                self._silence()
                return None
            now = time.monotonic()
            if now >= deadline:
                return None
            self._wait(min(deadline - now, _MAX_WAIT_S))

    # Sleeping

    def _wait(self, timeout_s: float, others: Sequence[int] = ()) -> None:
        poll = select.poll()
        for descriptor in others:
            poll.register(descriptor, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        for link in list(self._links.values()):
            if link.is_open:
                poll.register(link.sock, select.POLLIN | (select.POLLOUT if link.unsent else 0))
        pause(poll, math.ceil(max(timeout_s, 0.0) * 1e3))

    def _silence(self) -> None:
        """Take the bell's bytes away; only for the thread that moves frames, since another one may sleep, too."""
        with contextlib.suppress(BlockingIOError):
            while self._bell.recv(256):
                pass

    def begin_doze(self) -> bool:
        """Tell whether there is nothing to do."""
        woken, self._woken = self._woken, False
        self._silence()
        return not (woken or self._ready or self._lost)

    def doze(self, timeout_s: float, others: Sequence[int] = ()) -> None:
        """Sleep until a byte comes; see the protocol."""
        with contextlib.suppress(OSError, ValueError):  # another thread has closed
            self._wait(timeout_s, others)

    def end_doze(self) -> None:
        """Do nothing: nobody was told."""

    def wake(self) -> None:
        """End a wait of this process early; see the protocol."""
        self._woken = True
        with contextlib.suppress(OSError):
            self._rope.send(b"!")

    def use_memory(self, memory: LandingMemory) -> None:
        """Take the memory for what arrives from `memory`."""
        for link in self._links.values():
            link.allocate = memory.take

    # The end

    def close(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Send what is left, then close every connection; see the protocol."""
        done = self.complete_sends(deadline, on_frame)
        for link in self._links.values():
            link.is_open = False
            link.sock.close()
        self._bell.close()
        self._rope.close()
        return done


def pause(poll: select.poll, timeout_ms: int) -> None:
    """Wait for one of the registered sockets; nothing is in hand here, so an interrupt may be raised."""
    poll.poll(timeout_ms)


def adopt_socket(descriptor: int) -> socket.socket:
    """Return the socket that the starting process has left in `descriptor`."""
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)
