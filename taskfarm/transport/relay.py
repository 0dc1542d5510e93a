"""The link between a rank and its task child: frames over a Unix socket, their raw buffers in shared memory.

A child has no MPI. What it sends to whatever rank goes to its own rank first, which passes it on, and the other way
round; so on the link every frame is preceded by the rank that it is for, or from::

    | sizes and counts, rank | control message | references to buffers | segments let go, and segments that are gone |

Nothing blocks: what the socket does not take is kept and moved later. Everything that a frame refers to has been copied
or is in shared memory when `SharedLink.put` returns, so nobody needs to wait for a send to complete.
"""

from __future__ import annotations

import array
import math
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Sequence
from struct import Struct

from taskfarm.errors import ProtocolError
from taskfarm.transport.base import Incoming
from taskfarm.transport.shared import Arena, Mapped, adopt, give_away
from taskfarm.transport.stream import StreamTransport
from taskfarm.wire.frames import Buffer, Frame, Head, encode, parse_head, parse_whole

__all__ = ["ChildTransport", "SharedLink"]

_HEAD = Struct("<IiIII")  # size of the control message, rank, number of references, of releases, of segments dropped
_REFERENCE = Struct("<BQQQ")  # flags, segment, offset, the segment's size
_YOURS, _GIVEN, _NEW = 1, 2, 4
_TIMEVAL = Struct("@ll")  # seconds, microseconds
FIRST_WAIT_S = 0.02  # of a child, in which `wake` of another thread does not end its wait
_HEAD_SIZE, _DONTWAIT = _HEAD.size, int(socket.MSG_DONTWAIT)  # hot path: see `taskfarm.fast`
_READ_BYTES = 1 << 14  # how much is asked of a socket at once; a larger buffer takes longer to make
_MAX_DESCRIPTORS = 64  # of one message; SCM_MAX_FD of Linux is 253
_DESCRIPTORS_BYTES = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)


class SharedLink:
    """One end of the link.

    Parameters
    ----------
    sock : socket
        Connected stream socket; the link owns it.
    arena : Arena
        Segments of this process. It outlives the link.

    Attributes
    ----------
    is_open : bool
        False when the other end has gone.
    """

    rank = 0  # of the other end, for a child: where everything goes

    def __init__(self, sock: socket.socket, arena: Arena) -> None:
        sock.setblocking(True)  # each call says whether it may block
        self.sock = sock
        self.is_open = True
        self.unsent: deque[memoryview] = deque()
        self._descriptors: deque[list[int]] = deque()  # per entry of `unsent`
        self._arena = arena
        self._mapped = Mapped()
        self._lent: Counter[int] = Counter()
        self._known: set[int] = set()  # segments of ours that the other end has mapped
        self._unread = bytearray()
        self._received: deque[int] = deque()  # descriptors

    # Sending

    def put(self, rank: int, frame: Frame, *, keep: bool = False) -> None:
        """Send `frame`, which is for or from `rank`; with `keep`, its memory stays as it is whatever is done to it."""
        control, bulk = encode(frame)
        if not (bulk or self.unsent or self._mapped.ended or self._arena.dropped) and self.is_open:
            if not (rest := self._send_at_once(_HEAD.pack(len(control), rank, 0, 0, 0) + control)):
                return
            self.unsent.append(rest)
            self._descriptors.append([])
            return
        descriptors: list[int] = []
        references = (self._give(bulk, descriptors) if keep else self._refer(bulk, descriptors)) if bulk else b""
        ended, dropped = self._mapped.ended, self._arena.dropped
        if ended or dropped:
            released = [ended.popleft() for _ in range(len(ended))]
            gone = [number for number in _all_of(dropped) if number in self._known]
            self._known.difference_update(gone)
            numbers = array.array("Q", released + gone).tobytes()
            head = _HEAD.pack(len(control), rank, len(bulk), len(released), len(gone))
        else:
            numbers = b""
            head = _HEAD.pack(len(control), rank, len(bulk), 0, 0)
        self.unsent.append(memoryview(b"".join((head, control, references, numbers))))
        self._descriptors.append(descriptors)
        self.push()

    def _send_at_once(self, data: bytes) -> memoryview | None:
        """Send `data`, behind which nothing waits; return what the socket did not take."""
        try:
            n = self.sock.send(data, _DONTWAIT)
        except BlockingIOError:
            n = 0
        except OSError:
            self.is_open = False
            return None
        return None if n == len(data) else memoryview(data)[n:]

    def _give(self, bulk: Sequence[Buffer], descriptors: list[int]) -> bytes:
        descriptors.extend(give_away(buffer) for buffer in bulk)
        return _REFERENCE.pack(_GIVEN, 0, 0, 0) * len(bulk)

    def _refer(self, bulk: Sequence[Buffer], descriptors: list[int]) -> bytes:
        arena = self._arena
        places: list[tuple[bool, int, int] | None] = []
        for buffer in bulk:
            own = arena.find(buffer)
            other = self._mapped.find(buffer) if own is None else None
            places.append((False, *own) if own else (True, *other) if other else None)
        strangers = [buffer for buffer, place in zip(bulk, places, strict=True) if place is None]
        if strangers:
            stored, offsets = arena.store(strangers)
            first = iter(offsets)
            places = [place or (False, stored, next(first)) for place in places]
        parts = []
        for place in places:
            assert place is not None
            parts.append(self._reference(*place, descriptors))
        if strangers:
            arena.release(stored)  # from now on its users are at the other end
        return b"".join(parts)

    def _reference(self, is_yours: bool, number: int, offset: int, descriptors: list[int]) -> bytes:
        if is_yours:
            return _REFERENCE.pack(_YOURS, number, offset, 0)
        capacity = self._arena.capacity(number)
        self._arena.lend(number)
        self._lent[number] += 1
        flags = 0
        if number not in self._known:
            self._known.add(number)
            descriptors.append(os.dup(self._arena.descriptor(number)))
            flags = _NEW
        return _REFERENCE.pack(flags, number, offset, capacity)

    def push(self) -> None:
        """Send what the socket takes."""
        unsent = self.unsent
        while unsent and self.is_open:
            waiting = self._descriptors[0]
            try:
                if waiting:
                    batch = waiting[:_MAX_DESCRIPTORS]
                    data = unsent[0] if len(waiting) <= _MAX_DESCRIPTORS else unsent[0][:1]
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", batch))
                    n = self.sock.sendmsg([data], [rights], _DONTWAIT)
                    for descriptor in batch:
                        os.close(descriptor)
                    del waiting[:_MAX_DESCRIPTORS]
                else:
                    n = self.sock.send(unsent[0], _DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                self.is_open = False
                return
            if n == len(unsent[0]):
                unsent.popleft()
                self._descriptors.popleft()
            else:
                unsent[0] = unsent[0][n:]

    # Receiving

    def pull(self, found: deque[Incoming], flags: int = _DONTWAIT) -> None:
        """Read what has come, and append the frames that are whole, with their ranks, to `found`.

        Without flags, the first read waits for up to the receive timeout of the socket.
        """
        while self.is_open:
            try:
                data, rights, _, _ = self.sock.recvmsg(_READ_BYTES, _DESCRIPTORS_BYTES, flags)
            except BlockingIOError:
                return
            except OSError:
                data, rights = b"", []
            for level, kind, content in rights:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers = array.array("i")
                    numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                    self._received.extend(numbers)
            if not data:
                self.is_open = False
                return
            if not self._unread and self._parse_single(data, found):
                return
            self._unread += data
            while self._parse(found):
                pass
            flags = _DONTWAIT
            if len(data) < _READ_BYTES and not rights:
                return  # the next look would find nothing, most likely

    def _parse_single(self, data: bytes, found: deque[Incoming]) -> bool:
        """Append the frame that `data` is, if it is one whole frame without buffers: nearly all of them are."""
        if len(data) < _HEAD_SIZE:
            return False
        size, rank, n_references, n_released, n_dropped = _HEAD.unpack_from(data)
        if len(data) != _HEAD_SIZE + size or n_references or n_released or n_dropped:
            return False
        frame = parse_whole(data[_HEAD_SIZE:])
        if frame is None:
            return False
        found.append((rank, frame))
        return True

    def _parse(self, found: deque[Incoming]) -> bool:
        unread = self._unread
        if len(unread) < _HEAD.size:
            return False
        size, rank, n_references, n_released, n_dropped = _HEAD.unpack_from(unread)
        end = _HEAD.size + size
        if not n_references and not n_released and not n_dropped and len(unread) >= end:
            frame = parse_whole(bytes(unread[_HEAD.size : end]))
            if frame is not None:
                del unread[:end]
                found.append((rank, frame))
                return True
        first_number = end + n_references * _REFERENCE.size
        whole = first_number + 8 * (n_released + n_dropped)
        if len(unread) < whole:
            return False
        head = parse_head(bytes(unread[_HEAD.size : end]))
        if len(head.bulk_sizes) != n_references:
            raise ProtocolError(f"a frame with {len(head.bulk_sizes)} buffers comes with {n_references} references")
        frame = self._complete(head, end) if n_references else head.frame
        numbers = array.array("Q")
        numbers.frombytes(bytes(unread[first_number:whole]))
        del unread[:whole]
        for number in numbers[:n_released]:
            self._lent[number] -= 1
            self._arena.release(number)
        for number in numbers[n_released:]:
            self._mapped.drop(number)
        found.append((rank, frame))
        return True

    def _complete(self, head: Head, position: int) -> Frame:
        bulk: list[Buffer] = []
        for size_bytes in head.bulk_sizes:
            flags, number, offset, capacity = _REFERENCE.unpack_from(self._unread, position)
            position += _REFERENCE.size
            if flags & _YOURS:
                bulk.append(self._arena.view(number, offset, size_bytes))
            elif flags & _GIVEN:
                bulk.append(adopt(self._received.popleft(), size_bytes))
            else:
                if flags & _NEW:
                    self._mapped.add(number, self._received.popleft(), capacity)
                bulk.append(self._mapped.view(number, offset, size_bytes))
        return head.complete(bulk)

    def close(self) -> None:
        """Close the socket, and take back what the other end, which is gone, had of this process's memory."""
        self.is_open = False
        self.sock.close()
        self.unsent.clear()
        for descriptor in [*self._received, *(number for numbers in self._descriptors for number in numbers)]:
            os.close(descriptor)
        self._received.clear()
        self._descriptors.clear()
        for number, n in self._lent.items():
            for _ in range(n):
                self._arena.release(number)
        self._lent.clear()


class ChildTransport(StreamTransport):
    """The transport of a task child, whose frames its rank passes on; see `taskfarm.transport.base.Transport`.

    Parameters
    ----------
    rank, size : int
        Those of the rank that it works for.
    sock : socket
        To it.
    """

    def __init__(self, rank: int, size: int, sock: socket.socket) -> None:
        super().__init__(rank, size, {})
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(0, round(FIRST_WAIT_S * 1e6)))
        self._link = SharedLink(sock, Arena())
        self._links = {0: self._link}  # type: ignore[dict-item]

    def send_to(self, dests: Sequence[int], frame: Frame, *, borrowed: bool = False) -> None:
        """Send `frame` to several ranks; when this returns, its memory may be changed."""
        for dest in dests:
            self._link.put(dest, frame)

    def receive(self, deadline: float) -> Incoming | None:
        """Wait for the next frame; see the protocol. It mostly comes soon: one system call waits and reads."""
        link = self._link
        if deadline == math.inf and link.is_open and not (self._ready or self._lost or self._woken or link.unsent):
            link.pull(self._ready, 0)
            if self._ready:
                return self._ready.popleft()
        return super().receive(deadline)

    def send_or_copy(self, dest: int, frame: Frame) -> None:
        """Send `frame`; when this returns, its memory may be changed."""
        self._link.put(dest, frame)

    def complete_sends(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Do nothing: everything was copied."""
        return True

    def flush(self, deadline: float) -> bool:
        """Return when the socket has taken everything, or `deadline` has passed."""
        return super().complete_sends(deadline, lambda source, frame: None)


def _all_of(numbers: deque[int]) -> list[int]:
    return [numbers.popleft() for _ in range(len(numbers))]
