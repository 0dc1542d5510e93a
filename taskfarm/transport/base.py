"""What every transport can do, whether it moves bytes through MPI or within one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from taskfarm.transport.memory import AnyArray
from taskfarm.wire.frames import Frame

__all__ = [
    "ANSWER_MAX_BYTES",
    "Direct",
    "Incoming",
    "LandingMemory",
    "PeerFailed",
    "Transfer",
    "Transport",
    "raise_if_interrupted",
]

ANSWER_MAX_BYTES = 1024  # holds the description of an array; eager in every MPI that was tried

Incoming = tuple[int, Frame]


class PeerFailed(BaseException):
    """Ends a rank's part in a task because another rank has failed; not an `Exception`, so that it gets through."""


class Transfer(Protocol):
    """The data of one array, under way."""

    def is_done(self) -> bool:
        """Move the data; tell whether that is over, and the memory the caller's again."""

    def cancel(self) -> None:
        """Give up a receive for which nothing was, nor will be, sent."""


class Direct(Protocol):
    """Arrays from the memory of one rank straight into that of another, and the answers that come before.

    Ranks agree with frames: one offers, having called `expect_answer`; the other one starts to receive, if it wants
    the array, and answers; then the first one starts to send. Data are in order between two ranks, and so are answers.
    """

    def expect_answer(self, source: int) -> None:
        """Make ready for an answer of rank `source`; repeating it is harmless."""

    def next_answer(self, source: int) -> bytes | None:
        """Return the next answer of rank `source`, or None if none is here."""

    def answer(self, dest: int, data: bytes) -> None:
        """Send an answer of at most `ANSWER_MAX_BYTES` to rank `dest`, which expects one; wakes it."""

    def send(self, dest: int, array: AnyArray) -> Transfer:
        """Start to send the memory of `array` to rank `dest`, which has started to receive it."""

    def receive(self, source: int, array: AnyArray) -> Transfer:
        """Start to receive from rank `source` into the memory of `array`, of the same size."""

    def wait_until(
        self, condition: Callable[[], bool], deadline: float, on_frame: Callable[[int, Frame], None]
    ) -> bool:
        """Wait until `condition` holds, which is looked at often; frames that arrive go to `on_frame`.

        Returns
        -------
        bool
            False if `deadline` passed first.
        """

    def finish(self, transfer: Transfer, on_frame: Callable[[int, Frame], None], given_up: Callable[[], bool]) -> bool:
        """Move until `transfer` is done; frames that arrive go to `on_frame`. Never sleeps, cannot be interrupted.

        Parameters
        ----------
        given_up : callable
            Tells, after a frame has arrived, that the other side will not send: then the transfer is cancelled.

        Returns
        -------
        bool
            False if it was cancelled.
        """


class LandingMemory(Protocol):
    """Where buffers that arrive are put."""

    def take(self, size_bytes: int) -> memoryview:
        """Return writable memory with any content, which belongs to who refers to it."""


class Transport(Protocol):
    """Frames between ranks: never blocking, in order per sender, with memory on both sides.

    Attributes
    ----------
    rank, size : int
        This process's rank and the number of ranks.
    interrupted : bool
        Set by a signal handler; the next safe point of a wait then raises `KeyboardInterrupt`.
    """

    rank: int
    size: int
    interrupted: bool

    @property
    def direct(self) -> Direct:
        """Moves arrays into memory that the receiver owns."""

    def send(self, dest: int, frame: Frame, *, borrowed: bool = False) -> None:
        """Start to send `frame` to another rank and return.

        The memory of ``frame.buffers`` must not change until it is sent. If it is `borrowed` from somebody who will
        change it, `complete_sends` waits for it. A frame to a rank that does not receive is kept; nothing blocks.
        """

    def send_to(self, dests: Sequence[int], frame: Frame, *, borrowed: bool = False) -> None:
        """Start to send `frame`, encoded once, to each of `dests`."""

    def send_or_copy(self, dest: int, frame: Frame) -> None:
        """Send `frame`, whose buffers the caller may change afterwards, without waiting for a busy receiver.

        The buffers leave from their own memory if the receiver is waiting for messages, else from a copy.
        """

    def receive_nowait(self) -> Incoming | None:
        """Move what can be moved; return the next complete frame and its sender, or None."""

    def receive(self, deadline: float) -> Incoming | None:
        """Wait for the next complete frame until `deadline` (``time.monotonic()`` seconds), then return None."""

    def complete_sends(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Move until all borrowed memory is sent or `deadline` has passed; frames that arrive go to `on_frame`.

        Returns
        -------
        bool
            Whether borrowed memory may be changed.
        """

    def lose(self, rank: int, how: str) -> None:
        """Give up a rank that died: nothing is sent to it or taken from it any more, and nobody waits for it.

        A LOST frame from it, made here, is the last that `receive` returns of it.
        """

    @property
    def n_unsent(self) -> int:
        """Number of MPI sends that are not complete."""

    def begin_doze(self) -> bool:
        """Announce that this process is going to `doze`; False if it has something to do first."""

    def doze(self, timeout_s: float, others: Sequence[int] = ()) -> None:
        """Sleep until a frame may have come, `wake` is called, or `timeout_s` seconds are over; moves nothing.

        So does something to read on one of the descriptors `others`. The one method that may be called while another
        thread moves frames.
        """

    def end_doze(self) -> None:
        """Take back what `begin_doze` announced; harmless if it did not."""

    def use_memory(self, memory: LandingMemory) -> None:
        """Take the memory for large buffers that arrive from `memory` from now on."""

    def wake(self) -> None:
        """End a `receive` or `doze` of this process early; may be called from any thread."""

    def close(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Agree with all other ranks, which call it too, that every frame has arrived; then free everything.

        Returns
        -------
        bool
            False if `deadline` passed first; the transport is unusable either way.
        """


def raise_if_interrupted(transport: Transport) -> None:
    """Raise the interrupt that was noted while a message was being moved."""
    if transport.interrupted:
        transport.interrupted = False
        raise KeyboardInterrupt
