"""What every transport can do, whether it moves bytes through MPI or within one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from taskfarm.wire.frames import Frame

__all__ = ["Incoming", "Transport", "raise_if_interrupted"]

Incoming = tuple[int, Frame]


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

    @property
    def n_unsent(self) -> int:
        """Number of MPI sends that are not complete."""

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
