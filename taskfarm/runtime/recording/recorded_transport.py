"""A transport that records for the trace what it moves, and how long it waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taskfarm.runtime.recording.recorder import MIN_WAIT_NS, Recorder, Track
from taskfarm.transport.base import Direct, Incoming, LandingMemory, Transport
from taskfarm.wire.frames import Frame

__all__ = ["RecordedTransport"]

_WAIT, _IDLE = int(Track.WAIT), int(Track.IDLE)  # looked up once: see `taskfarm.fast`


class RecordedTransport:
    """A transport that records waits, and the frames that it moves.

    Every frame of a job passes here twice: what is looked up often is at hand, and clocks are read for spans only.

    Parameters
    ----------
    inner : Transport
        Does the work.
    recorder : Recorder
        Takes the spans.
    """

    def __init__(self, inner: Transport, recorder: Recorder) -> None:
        self._inner = inner
        self._inner_send, self._inner_receive = inner.send, inner.receive
        self._recorder = recorder
        self._clock, self._sent, self._received = recorder.clock, recorder.sent, recorder.received
        self.rank, self.size = inner.rank, inner.size
        self.parent = getattr(inner, "parent", None)  # the communicator of all ranks, where there is MPI

    @property
    def interrupted(self) -> bool:
        """Whether an interrupt waits for a safe point."""
        return self._inner.interrupted

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        self._inner.interrupted = value

    @property
    def direct(self) -> Direct:
        """Moves arrays into memory that the receiver owns."""
        return self._inner.direct

    @property
    def n_unsent(self) -> int:
        """Number of sends that are not complete."""
        return self._inner.n_unsent

    def send(self, dest: int, frame: Frame, *, borrowed: bool = False) -> None:
        """Send, and record it."""
        if frame.buffers:
            start = self._clock()
            self._inner_send(dest, frame, borrowed=borrowed)
            self._note_sent((dest,), frame, start)
            return
        self._inner_send(dest, frame, borrowed=borrowed)
        sent = self._sent
        sent[0] += 1
        sent[1] += len(frame.body)

    def send_to(self, dests: Sequence[int], frame: Frame, *, borrowed: bool = False) -> None:
        """Send to several ranks, and record it."""
        start = self._clock()
        self._inner.send_to(dests, frame, borrowed=borrowed)
        self._note_sent(dests, frame, start)

    def send_or_copy(self, dest: int, frame: Frame) -> None:
        """Send or copy, and record it."""
        start = self._clock()
        self._inner.send_or_copy(dest, frame)
        self._note_sent((dest,), frame, start)

    def _note_sent(self, dests: Sequence[int], frame: Frame, start: int) -> None:
        n, size = len(dests), _size(frame) * len(dests)
        self._sent[0] += n
        self._sent[1] += size
        if frame.buffers and dests:
            self._recorder.add(Track.SEND, f"send {frame.kind.name}", start, self._clock(), n, size, dests[0])

    def complete_sends(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Complete sends, and record it."""
        start = self._clock()
        done = self._inner.complete_sends(deadline, on_frame)
        end = self._clock()
        if end - start >= MIN_WAIT_NS:
            self._recorder.add(Track.SEND, "complete sends", start, end, 0)
        return done

    def receive_nowait(self) -> Incoming | None:
        """Receive, and record it."""
        item = self._inner.receive_nowait()
        if item is not None:
            self._note_received(item)
        return item

    def receive(self, deadline: float) -> Incoming | None:
        """Receive, and record how long that took."""
        clock = self._clock
        start = clock()
        item = self._inner_receive(deadline)
        end = clock()
        if end - start >= MIN_WAIT_NS:
            recorder = self._recorder
            if recorder.depth:
                recorder.add(_WAIT, "wait for a message", start, end)
            else:
                recorder.add(_IDLE, "idle", start, end)
        if item is not None:
            frame = item[1]
            if frame.buffers:
                self._note_received(item)
            else:
                received = self._received
                received[0] += 1
                received[1] += len(frame.body)
        return item

    def _note_received(self, item: Incoming) -> None:
        source, frame = item
        size = _size(frame)
        self._received[0] += 1
        self._received[1] += size
        if frame.buffers:
            now = self._clock()
            self._recorder.add(Track.RECEIVE, f"receive {frame.kind.name}", now, now, 1, size, source)

    def begin_doze(self) -> bool:
        """Announce a doze."""
        return self._inner.begin_doze()

    def doze(self, timeout_s: float, others: Sequence[int] = ()) -> None:
        """Sleep."""
        self._inner.doze(timeout_s, others)

    def end_doze(self) -> None:
        """Take the announcement back."""
        self._inner.end_doze()

    def wake(self) -> None:
        """End a sleep."""
        self._inner.wake()

    def use_memory(self, memory: LandingMemory) -> None:
        """Take the memory for large buffers from `memory`."""
        self._inner.use_memory(memory)

    def lose(self, rank: int, how: str) -> None:
        """Give a rank up."""
        self._inner.lose(rank, how)

    def close(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Agree with all other ranks that every frame has arrived."""
        return self._inner.close(deadline, on_frame)


def _size(frame: Frame) -> int:
    return len(frame.body) + sum(map(len, frame.buffers))
