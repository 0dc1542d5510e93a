"""Ranks within one process: the transport of a one-process session, and of the tests that need no MPI.

Every frame is encoded and decoded as it would be for MPI.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from threading import Condition

import numpy as np

from taskfarm.errors import InternalError, UsageError
from taskfarm.transport.base import Incoming, LandingMemory, Transfer, raise_if_interrupted
from taskfarm.transport.memory import AnyArray
from taskfarm.wire.frames import Buffer, Frame, encode, parse_head

__all__ = ["LocalDirect", "LocalHub", "LocalTransfer", "LocalTransport"]


class LocalHub:
    """The medium that `size` local transports share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = Condition()
        self.queues: list[deque[tuple[int, bytes, list[bytearray]]]] = [deque() for _ in range(size)]
        self.closing: set[int] = set()
        self.answers: defaultdict[tuple[int, int], deque[bytes]] = defaultdict(deque)  # by (source, dest)
        self.data: defaultdict[tuple[int, int], deque[bytes]] = defaultdict(deque)

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
        self.direct = LocalDirect(hub, self)
        self._woken = False

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
                raise_if_interrupted(self)
                if self._woken:  # perhaps before this call: whoever called `wake` does not repeat it
                    self._woken = False
                    return None
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._hub.changed.wait(min(left, 60.0))
        return self.receive_nowait()

    def begin_doze(self) -> bool:
        """Tell whether there is nothing to do."""
        woken, self._woken = self._woken, False
        return not (woken or self._hub.queues[self.rank])

    def use_memory(self, memory: LandingMemory) -> None:
        """Do nothing: buffers stay where they are."""

    def doze(self, timeout_s: float, others: Sequence[int] = ()) -> None:
        """Sleep until a frame comes."""
        with self._hub.changed:
            if not self._hub.queues[self.rank] and not self._woken:
                self._hub.changed.wait(timeout_s)  # a `wake` is left for whoever is in `receive`

    def end_doze(self) -> None:
        """Do nothing: nobody was told."""

    def wake(self) -> None:
        """End a wait of this process early."""
        with self._hub.changed:
            self._woken = True
            self._hub.changed.notify_all()

    def complete_sends(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Return True at once: a local send copies."""
        return True

    def lose(self, rank: int, how: str) -> None:
        """Do nothing: no rank of one process dies alone."""

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


class LocalTransfer:
    """Data that are taken in as soon as they are there; a local send is done at once."""

    def __init__(self, source: deque[bytes] | None, target: AnyArray) -> None:
        self._source = source
        self._target = target

    def is_done(self) -> bool:
        """Take the data in if they are there."""
        if self._source:
            sent = np.frombuffer(self._source.popleft(), self._target.dtype)
            self._target.reshape(-1, order="A")[:] = sent
            self._source = None
        return self._source is None

    def cancel(self) -> None:
        """Give up."""
        self._source = None


class LocalDirect:
    """Arrays and answers through the hub."""

    def __init__(self, hub: LocalHub, transport: LocalTransport) -> None:
        self._hub = hub
        self._transport = transport
        self._rank = transport.rank

    def expect_answer(self, source: int) -> None:
        """Do nothing: the hub keeps answers."""

    def next_answer(self, source: int) -> bytes | None:
        """Return the next answer of `source`, or None."""
        answers = self._hub.answers[source, self._rank]
        return answers.popleft() if answers else None

    def answer(self, dest: int, data: bytes) -> None:
        """Put an answer into the hub."""
        with self._hub.changed:
            self._hub.answers[self._rank, dest].append(data)
            self._hub.changed.notify_all()

    def send(self, dest: int, array: AnyArray) -> LocalTransfer:
        """Copy the memory of `array` into the hub."""
        with self._hub.changed:
            self._hub.data[self._rank, dest].append(array.tobytes(order="A"))
            self._hub.changed.notify_all()
        return LocalTransfer(None, array)

    def receive(self, source: int, array: AnyArray) -> LocalTransfer:
        """Get ready to copy from the hub into `array`."""
        return LocalTransfer(self._hub.data[source, self._rank], array)

    def wait_until(
        self, condition: Callable[[], bool], deadline: float, on_frame: Callable[[int, Frame], None]
    ) -> bool:
        """Wait until `condition` holds; what changes it is a frame, an answer or data."""
        hub, transport = self._hub, self._transport
        while True:
            with hub.changed:
                if condition():
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                raise_if_interrupted(transport)
                if not hub.queues[self._rank]:
                    hub.changed.wait(min(left, 60.0))
            item = transport.receive_nowait()
            if item is not None:
                on_frame(*item)

    def finish(self, transfer: Transfer, on_frame: Callable[[int, Frame], None], given_up: Callable[[], bool]) -> bool:
        """Wait until `transfer` is done, or given up."""
        self.wait_until(lambda: transfer.is_done() or given_up(), math.inf, on_frame)
        if transfer.is_done():
            return True
        transfer.cancel()
        return False
