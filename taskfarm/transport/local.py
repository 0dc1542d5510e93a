"""Ranks within one process: the transport of a one-process session, and of the tests that need no MPI.

Every frame is encoded and decoded as it would be for MPI.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition

from taskfarm.errors import InternalError, UsageError
from taskfarm.transport.base import Incoming, raise_if_interrupted
from taskfarm.wire.frames import Buffer, Frame, encode, parse_head

__all__ = ["LocalHub", "LocalTransport"]


class LocalHub:
    """The medium that `size` local transports share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = Condition()
        self.queues: list[deque[tuple[int, bytes, list[bytearray]]]] = [deque() for _ in range(size)]
        self.closing: set[int] = set()

    def transports(self) -> list[LocalTransport]:
        """Return one transport per rank."""
        return [LocalTransport(self, rank) for rank in range(self.size)]


class LocalTransport:
    """One rank's end of a `LocalHub`; may be used from a thread of its own."""

    def __init__(self, hub: LocalHub, rank: int) -> None:
        self._hub = hub
        self.rank = rank
        self.size = hub.size
        self.interrupted = False

    def send(self, dest: int, frame: Frame, *, borrowed: bool = False) -> None:
        """Copy `frame` into the queue of `dest`."""
        self.send_to((dest,), frame, borrowed=borrowed)

    def send_or_copy(self, dest: int, frame: Frame) -> None:
        """Copy `frame` into the queue of `dest`."""
        self._send(dest, frame)

    def send_to(self, dests: Sequence[int], frame: Frame, *, borrowed: bool = False) -> None:
        """Copy `frame` into the queue of each of `dests`."""
        for dest in dests:
            self._send(dest, frame)

    def _send(self, dest: int, frame: Frame) -> None:
        if not 0 <= dest < self.size or dest == self.rank:
            raise UsageError(f"dest={dest} is not another rank of {self.size}")
        control, bulk = encode(frame)
        with self._hub.changed:
            self._hub.queues[dest].append((self.rank, control, [bytearray(buffer) for buffer in bulk]))
            self._hub.changed.notify_all()

    def receive_nowait(self) -> Incoming | None:
        """Return the oldest frame for this rank, or None."""
        queue = self._hub.queues[self.rank]
        if not queue:
            return None
        source, control, bulk = queue.popleft()
        head = parse_head(control)
        if tuple(map(len, bulk)) != head.bulk_sizes:
            raise InternalError(f"local transport lost bulk of {head.frame.kind.name}")
        buffers: list[Buffer] = [memoryview(buffer) for buffer in bulk]
        return source, head.complete(buffers) if buffers else head.frame

    def receive(self, deadline: float) -> Incoming | None:
        """Wait for a frame until `deadline`."""
        with self._hub.changed:
            while not self._hub.queues[self.rank]:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._hub.changed.wait(min(left, 60.0))
                raise_if_interrupted(self)
        return self.receive_nowait()

    def complete_sends(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Return True at once: a local send copies."""
        return True

    @property
    def n_unsent(self) -> int:
        """Always 0: a local send copies."""
        return 0

    def close(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Wait until every rank closes, handing what arrives to `on_frame`."""
        with self._hub.changed:
            self._hub.closing.add(self.rank)
            self._hub.changed.notify_all()
        while True:
            while (item := self.receive_nowait()) is not None:
                on_frame(*item)
            with self._hub.changed:
                if len(self._hub.closing) == self.size and not self._hub.queues[self.rank]:
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._hub.changed.wait(min(left, 0.1))
