"""Sleeping outside of `receive`, while other threads of the process may move frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from taskfarm.transport.base import Incoming, LandingMemory
from taskfarm.transport.waiting import POLLS_BEFORE_SLEEP, Waiter

__all__ = ["Dozing"]


class Dozing:
    """The part of the MPI transport that lets a second thread wait for it, and others bring the memory."""

    _waiter: Waiter
    _pool: LandingMemory
    _woken: bool
    _ready: deque[Incoming]
    _arriving: dict[int, Any]
    n_unsent: Any

    def receive_nowait(self) -> Incoming | None:
        """Move everything once; see the protocol."""
        raise NotImplementedError

    def use_memory(self, memory: LandingMemory) -> None:
        """Take the memory for what arrives from `memory`; see the protocol."""
        self._pool = memory

    def begin_doze(self) -> bool:
        """Announce that this rank is going to sleep; see the protocol."""
        if self.n_unsent or self._arriving or self._ready or self._woken:
            self._woken = False
            return False
        self._waiter.announce()
        for _ in range(POLLS_BEFORE_SLEEP):
            item = self.receive_nowait()
            if item is not None:
                self._ready.appendleft(item)
                self._waiter.reset()
                return False
        return not self._arriving

    def doze(self, timeout_s: float, others: Sequence[int] = ()) -> None:
        """Sleep, see the protocol; touches no MPI."""
        self._waiter.doze(timeout_s, others)

    def end_doze(self) -> None:
        """Take the announcement back; see the protocol."""
        self._waiter.reset()

    def wake(self) -> None:
        """End a wait of this rank early; see the protocol."""
        self._woken = True
        self._waiter.wake()
