"""Frames through MPI, on two communicators of our own.

Theory of operation. *Sending* never blocks: every MPI send is an ``Isend`` whose request is kept, with the memory it
borrows, until it tests complete. *Receiving* never blocks either, since a sender may die in the middle of a message:
an inlet (`taskfarm.transport.inlets`) gives the next control message, whole or with the request that fills it. Control
messages carry the head of a frame, its bulk follows on the second communicator, where (source, tag) order is all that
is needed to find it. A control message that is longer than the receiver's posted memory goes there, too, and a short
one announces it. Frames of one sender are delivered in order: a complete small frame waits behind a large one that is
still coming in.

One bulk message is at most `BULK_CHUNK_BYTES` long, so that counts stay below 2^31 in every MPI.

MPI moves large messages only inside MPI calls. So while anything is unfinished, the loop polls without sleeping.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI

from taskfarm.errors import ProtocolError, UsageError
from taskfarm.transport.arriving import BULK_CHUNK_BYTES, Arrival, chunks
from taskfarm.transport.base import Incoming, LandingMemory, raise_if_interrupted
from taskfarm.transport.clearance import Clearance, Signal, patience_s
from taskfarm.transport.direct import MpiDirect
from taskfarm.transport.doorbell import Doorbell
from taskfarm.transport.dozing import Dozing
from taskfarm.transport.inlets import CONTROL_MAX_BYTES, TAG, Inlet
from taskfarm.transport.losing import Losing, Send
from taskfarm.transport.pool import BufferPool
from taskfarm.transport.waiting import Waiter
from taskfarm.wire.codec import empty_buffer
from taskfarm.wire.frames import Buffer, Frame, encode, encode_signal, parse_head, parse_signal, parse_whole

__all__ = ["BULK_CHUNK_BYTES", "MpiTransport"]

logger = logging.getLogger(__name__)

_TESTS_PER_POLL = 32
_BYTE = MPI.BYTE


class MpiTransport(Dozing, Losing):
    """Transport over MPI; see `taskfarm.transport.base.Transport` for the methods.

    Parameters
    ----------
    control, bulk : MPI.Intracomm
        Two private duplicates of the world; the transport frees them when it is closed.
    waiter : Waiter
        How to wait.
    bell : Doorbell or None
        How to wake others.
    inlet : Inlet
        Takes in the control messages.
    """

    def __init__(
        self, control: MPI.Intracomm, bulk: MPI.Intracomm, waiter: Waiter, bell: Doorbell | None, inlet: Inlet
    ) -> None:
        self._control = control
        self._bulk = self.parent = bulk
        self._waiter = waiter
        self._bell = bell
        self._asleep = bell.asleep if bell is not None else bytes(control.size)
        self._ring = bell.ring if bell is not None else lambda rank: None
        self._isend = control.Isend
        self._inlet = inlet
        self._poll = self._inlet.poll
        self.rank: int = control.rank
        self.size: int = control.size
        self.interrupted = False
        self._woken = False
        self._sends: deque[Send] = deque()
        self._borrowed: deque[Send] = deque()
        self._arriving: dict[int, deque[Arrival]] = {}
        self._ready: deque[Incoming] = deque()
        self._clearance = Clearance(self._send_control)
        self._pool: LandingMemory = BufferPool()
        self._wait_ends = -math.inf  # when the wait that this rank is in will end
        self._news: Sequence[int] = (0,)  # the first is the number of losses that `_take_losses` has to tell
        self._n_news = 0
        self._take_losses: Callable[[], Sequence[tuple[int, str]]] = list
        self._abandoned: list[object] = []  # requests that never complete, and their memory, which MPI may still know
        self.lost: set[int] = set()
        self._n_sent_to = [0] * self.size
        self._n_received = 0
        self.direct = MpiDirect(self, bulk, waiter, self._wake)

    # Sending

    def send(self, dest: int, frame: Frame, *, borrowed: bool = False) -> None:
        """Start to send `frame`; see the protocol."""
        control, bulk = encode(frame)
        if bulk or len(control) > CONTROL_MAX_BYTES:
            self._send_large(dest, control, bulk, borrowed)
        else:
            self._send_control(dest, control)

    def send_to(self, dests: Sequence[int], frame: Frame, *, borrowed: bool = False) -> None:
        """Start to send `frame` to several ranks; see the protocol."""
        control, bulk = encode(frame)
        is_large = bulk or len(control) > CONTROL_MAX_BYTES
        for dest in dests:
            if is_large:
                self._send_large(dest, control, bulk, borrowed)
            else:
                self._send_control(dest, control)

    def _send_control(self, dest: int, control: bytes) -> None:
        if not 0 <= dest < self.size or dest == self.rank:
            raise UsageError(f"dest={dest} is not another rank of {self.size}")
        if self.lost and dest in self.lost:
            return
        self._n_sent_to[dest] += 1
        request = self._isend((control, _BYTE), dest, TAG)
        if not request.Test():
            self._sends.append((request, control, dest))
        self._wake(dest)

    def _wake(self, dest: int) -> None:
        if self._asleep[dest]:
            self._ring(dest)

    def _send_large(self, dest: int, control: bytes, bulk: Sequence[Buffer], borrowed: bool) -> None:
        if len(control) > CONTROL_MAX_BYTES:
            self._send_control(dest, encode_signal(Signal.LONG, len(control)))
            self._send_bulk(dest, control, self._sends)
        else:
            self._send_control(dest, control)
        for buffer in bulk:
            self._send_bulk(dest, buffer, self._borrowed if borrowed else self._sends)

    def send_or_copy(self, dest: int, frame: Frame) -> None:
        """Send `frame`, whose buffers the caller may change afterwards; see the protocol."""
        control, bulk = encode(frame)
        n_own = len(bulk) - len(frame.buffers)  # the body, if it is in bulk
        self._send_large(dest, control, bulk[:n_own], False)
        if not frame.buffers or dest in self.lost:
            return
        size = sum(map(len, frame.buffers))
        clearance, sends = self._clearance, self._sends
        clearance.ask(dest)
        meanwhile: list[Incoming] = []
        give_up = time.monotonic() + patience_s(size)
        while not clearance.is_clear and not self.interrupted and time.monotonic() < give_up:
            self._move_once(meanwhile)
        if clearance.is_clear:
            for buffer in frame.buffers:
                self._send_bulk(dest, buffer, self._borrowed)
            while self._borrowed:
                self._move_once(meanwhile)
        else:
            clearance.withdraw(dest)
            for buffer in frame.buffers:
                copy = self._pool.take(len(buffer))
                copy[:] = buffer
                self._send_bulk(dest, copy, sends)
        self._put_back(meanwhile)

    def _move_once(self, arrived: list[Incoming]) -> None:
        item = self.receive_nowait()
        if item is not None:
            arrived.append(item)
        else:
            self._waiter.busy()

    def _put_back(self, arrived: list[Incoming]) -> None:
        self._ready.extendleft(reversed(arrived))

    def _send_bulk(self, dest: int, buffer: Buffer, sends: deque[Send]) -> None:
        for chunk in chunks(buffer) if dest not in self.lost else ():
            sends.append((self._bulk.Isend((chunk, _BYTE), dest, TAG), chunk, dest))

    @property
    def n_unsent(self) -> int:
        """Number of MPI sends that are not complete."""
        return len(self._sends) + len(self._borrowed)

    @property
    def is_moving(self) -> bool:
        """Whether frames are under way that only MPI calls move on."""
        return bool(self._sends or self._borrowed or self._arriving)

    def _move_sends(self) -> None:
        """Forget what is sent. Some at a time, in turn: to test all in every poll would cost n^2 for n sends."""
        for sends in (self._borrowed, self._sends):
            for _ in range(min(len(sends), _TESTS_PER_POLL)):
                item = sends.popleft()
                if not item[0].Test():
                    sends.append(item)

    def complete_sends(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Move until all borrowed memory is sent; see the protocol."""
        while self._borrowed:
            item = self.receive_nowait()
            if item is not None:
                on_frame(*item)
            elif self._borrowed:
                raise_if_interrupted(self)
                if time.monotonic() >= deadline:
                    return False
                self._waiter.busy()
        return True

    # Receiving

    def receive_nowait(self) -> Incoming | None:
        """Move everything once; return the next complete frame, or None."""
        if self._ready:
            return self._ready.popleft()
        if self._sends or self._borrowed:
            self._move_sends()
        taken = self._poll()
        if taken is not None:
            self._n_received += 1
            source, data, request = taken
            if self.lost and source in self.lost:
                self._abandoned.append(taken)
                return None
            if request is None:
                if source not in self._arriving:
                    frame = parse_whole(data)
                    if frame is not None:
                        return source, frame
                signal = parse_signal(data)
                if signal is not None and signal[0] != Signal.LONG:
                    self._on_signal(source, *signal)
                    return None
            self._arriving.setdefault(source, deque()).append(Arrival(data, [] if request is None else [request]))
        elif self._news[0] != self._n_news:
            self._n_news = self._news[0]
            for rank, how in self._take_losses():
                self.lose(rank, how)
            if self._ready:
                return self._ready.popleft()
        if self._arriving:
            self._move_arrivals()
            if self._ready:
                return self._ready.popleft()
        return None

    def _on_signal(self, source: int, signal: int, number: int) -> None:
        queue = self._arriving.get(source)
        time_left_s = self._wait_ends - time.monotonic()
        self._clearance.on_signal(source, signal, number, queue[-1] if queue else None, time_left_s)

    def _move_arrivals(self) -> None:
        for source in list(self._arriving):
            queue = self._arriving[source]
            for arrival in list(queue):  # bulk of later frames must be posted in order, and may overtake nothing
                while True:
                    while arrival.requests and arrival.requests[-1].Test():
                        arrival.requests.pop()
                    if arrival.requests or arrival.head is not None:
                        break
                    if not self._begin_next(source, arrival):
                        queue.remove(arrival)
                        break
                if arrival.head is None and arrival.requests:
                    break
            while queue and not queue[0].requests and (done := queue[0].head) is not None:
                arrival = queue.popleft()
                self._ready.append((source, done.complete(arrival.bulk) if arrival.bulk else done.frame))
            if not queue:
                del self._arriving[source]

    def _begin_next(self, source: int, arrival: Arrival) -> bool:
        """Start to take in what the complete control message of `arrival` announces; False if it makes no sense."""
        signal = parse_signal(arrival.data)
        if signal is not None and signal[0] == Signal.LONG:
            arrival.data = empty_buffer(signal[1])
            self._post(source, arrival, arrival.data)
            return True
        if signal is not None:
            self._clearance.on_signal(source, *signal, None, 0.0)
            return False
        try:
            arrival.head = parse_head(arrival.data)
        except ProtocolError:
            logger.exception("rank %d: dropped a bad message from rank %d", self.rank, source)
            return False
        for bulk_size in arrival.head.bulk_sizes:
            buffer = self._pool.take(bulk_size)
            arrival.bulk.append(buffer)
            self._post(source, arrival, buffer)
        arrival.requests.reverse()  # tested from the end: they complete in the order in which they were posted
        return True

    def _post(self, source: int, arrival: Arrival, memory: Buffer) -> None:
        for chunk in chunks(memory):
            arrival.requests.append(self._bulk.Irecv((chunk, _BYTE), source, TAG))

    def receive(self, deadline: float) -> Incoming | None:
        """Wait for the next frame; see the protocol."""
        waiter = self._waiter
        self._wait_ends = deadline
        try:
            for _ in range(waiter.n_first_polls):
                item = self.receive_nowait()
                if item is not None:
                    return item
            while True:
                item = self.receive_nowait()
                if item is not None:
                    return item
                if self.interrupted:
                    raise_if_interrupted(self)
                if self._woken:
                    self._woken = False
                    return None
                now = time.monotonic()
                if now >= deadline:
                    return None
                if self._sends or self._borrowed or self._arriving:
                    waiter.busy()
                else:
                    waiter.idle(now, deadline)
        finally:
            self._wait_ends = -math.inf
            if waiter.has_begun:
                waiter.reset()
            if self._clearance.promised:
                self._keep_promises()

    def _keep_promises(self) -> None:
        """Stay until what was promised to be taken in is here; everything else waits its turn."""
        arrived: list[Incoming] = []
        while self._clearance.has_open_promises() and not self.interrupted:
            self._move_once(arrived)
        self._clearance.promised.clear()  # an interrupt ends the wait; the transfer goes on whenever MPI is looked at
        self._put_back(arrived)

    # The end

    def close(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Take in every frame that was sent to this rank, then free the communicators; see the protocol.

        How many frames, and answers to offers of arrays, that is comes from a non-blocking reduction of everybody's
        counts, so that nothing is left unread (which some MPI libraries punish at finalize). Nobody leaves before all
        are through: a rank that has left polls no more, and a sender may still wait for its acknowledgement.
        """
        total = np.zeros(1, dtype=np.int64)
        direct = self.direct
        counts = np.array([self._n_sent_to, direct.n_sent_to], dtype=np.int64).sum(axis=0)
        reduction = self._control.Ireduce_scatter_block(counts, total)
        reduced = False
        barrier: MPI.Request | None = None
        while True:
            while (item := self.receive_nowait()) is not None:
                on_frame(*item)
            if self.lost:
                return True  # there is nothing to agree on with the dead, and nothing that could be freed
            direct.move()
            reduced = reduced or reduction.Test()
            n_received = self._n_received + direct.n_received
            if reduced and n_received == total[0] and not self.is_moving and not direct.n_unfinished:
                barrier = barrier or self._control.Ibarrier()
            if barrier is not None and barrier.Test():
                break
            now = time.monotonic()
            if now >= deadline:
                return False
            self._waiter.busy() if self.is_moving or direct.n_unfinished else time.sleep(100e-6)
        direct.close()
        self._inlet.close()
        self._control.Free()
        self._bulk.Free()
        if self._bell is not None:
            self._bell.close()
        return True
