"""How to wait for a message: spin, then yield, then sleep.

Spinning is fastest but only when no rank takes another one's core away. Yielding lets the others run and costs a few
microseconds. Sleeping costs no CPU; the doorbell ends it when a message comes. Where the bell does not reach, sleep
gets longer step by step up to `POLL_SLEEP_S`.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence

from taskfarm.transport.doorbell import Doorbell

__all__ = ["POLLS_BEFORE_SLEEP", "RINGING_RANKS_PER_CORE", "Waiter"]

SPIN_S = 300e-6  # longer than a round trip with a busy partner; short against a time slice
FIRST_POLLS = 32  # 10 us, before the clock is read for the first time: a partner that is awake answers within that
YIELD_S = 2e-3  # longer than two wake-ups on a busy machine: partners must not put each other to sleep in turn
# Where many ranks share a core, each one that yields takes turns with those that work: 8 ranks on 2 cores do 1.5 times
# as many empty tasks with this as with YIELD_S (MPICH 5.0.2; no difference in Open MPI 5.0.11). With two ranks to a
# core they would fall asleep between collective calls, which then take three times as long.
CROWDED_YIELD_S = 50e-6
CROWDED_RANKS_PER_CORE = 2
FIRST_POLL_SLEEP_S = 50e-6
POLL_SLEEP_S = 2e-3
LONG_POLL_SLEEP_S = 5e-3  # after LONG_WAIT_S: 0.5 % CPU over TCP, against 1.2 % for 2 ms (benchmarks/idle.py)
POLL_GROWTH = 1.2
MAX_SLEEP_S = 0.02  # bounds the latency that a lost ring costs
LONG_WAIT_S = 0.25
LONG_SLEEP_S = 0.05  # after LONG_WAIT_S; a wake-up costs some 0.1 ms of CPU, so 20 ms would be 0.5 %
# With very many ranks to a core each ring has the kernel put somebody off it in the middle of his work: an empty map
# over 32 workers on 2 cores takes twice, over 64 four times as long as where they look by themselves (MPICH 5.0.2).
RINGING_RANKS_PER_CORE = 8
# But to look costs 30 us: 64 ranks on 2 cores take 0.41 of a core when idle. More of them look less often.
POLLING_RANKS_PER_CORE = 32
POLLS_PER_YIELD = 16  # 10 us of spinning; the call takes 0.5 us where nobody else wants the core
# After publishing, and after the bell has rung. A first MPI probe may only make progress and let the next one see the
# message (MPICH 5.0.2): with one poll, a message was slept over for MAX_SLEEP_S.
POLLS_BEFORE_SLEEP = 3


class Waiter:
    """Decides, poll by poll, whether to go on at once, to yield or to sleep.

    Parameters
    ----------
    spin : bool
        Whether every rank of the host has a core to itself.
    bell : Doorbell or None
        This rank's doorbell.
    all_ring : bool
        Whether every rank that may send can ring the bell.
    ranks_per_core : float
        How many ranks of the host share a core.

    Attributes
    ----------
    n_first_polls : int
        How often to poll before a wait begins.
    """

    def __init__(self, spin: bool, bell: Doorbell | None, all_ring: bool, ranks_per_core: float = 1.0) -> None:
        self.n_first_polls = FIRST_POLLS if spin else 1
        self._spin_s = SPIN_S if spin else 0.0
        crowding = ranks_per_core / CROWDED_RANKS_PER_CORE
        self._yield_s = CROWDED_YIELD_S if bell is not None and crowding > 1 else YIELD_S
        self._long_sleep_s = LONG_SLEEP_S * max(1.0, crowding)
        self._stretch = max(1.0, ranks_per_core / POLLING_RANKS_PER_CORE)
        self._bell = bell
        self._all_ring = all_ring
        self._since: float | None = None
        self._sleep_s = FIRST_POLL_SLEEP_S
        self._published = False
        self._polls_due = 0
        self._n_busy = 0

    @property
    def has_begun(self) -> bool:
        """Whether there is a wait that `reset` must end."""
        return self._since is not None

    def reset(self) -> None:
        """Begin a new wait."""
        self._since = None
        self._sleep_s = FIRST_POLL_SLEEP_S
        self._polls_due = 0
        if self._published and self._bell is not None:
            self._published = False
            self._bell.publish(False)

    def busy(self) -> None:
        """Pause between polls while a transfer is unfinished: never sleep, MPI moves it only when polled."""
        self.offer_core()

    def offer_core(self) -> None:
        """Do what `busy` does, where no interrupt may be raised.

        Now and then the core is offered to others even where every rank should have one to itself: on a machine that
        does other things as well, the other side of the transfer may be waiting for this very core.
        """
        self._n_busy += 1
        if not self._spin_s or self._n_busy % POLLS_PER_YIELD == 0:
            os.sched_yield()

    def idle(self, now: float, deadline: float) -> None:
        """Pause between polls that found nothing."""
        if self._since is None:
            self._since = now
        waited = now - self._since
        if waited < self._spin_s:
            return
        if waited < self._spin_s + self._yield_s:
            os.sched_yield()
            return
        limit = max(deadline - now, 0.0)
        if self._bell is None:
            time.sleep(min(self._next_poll_sleep(waited), limit))
        elif self._polls_due:
            self._polls_due -= 1
        elif not self._published:
            self._published = True
            self._bell.publish(True)
            self._polls_due = POLLS_BEFORE_SLEEP
        else:
            self._bell.sleep(min(self._next_bell_sleep(waited), limit))
            self._polls_due = POLLS_BEFORE_SLEEP

    def announce(self) -> None:
        """Publish that this rank is going to `doze`; the caller polls `POLLS_BEFORE_SLEEP` times before it does."""
        if self._bell is not None:
            self._published = True
            self._bell.publish(True)

    def doze(self, timeout_s: float, others: Sequence[int] = ()) -> None:
        """Sleep until the bell rings, for at most `timeout_s` seconds, or as long as polling allows.

        Something to read on one of the descriptors `others` ends the sleep, too.
        """
        if self._bell is not None:
            self._bell.sleep(min(timeout_s, MAX_SLEEP_S if self._all_ring else POLL_SLEEP_S), others)
        elif others:
            poll = select.poll()
            for descriptor in others:
                poll.register(descriptor, select.POLLIN)
            poll.poll(max(1, int(1e3 * min(timeout_s, POLL_SLEEP_S))))
        else:
            time.sleep(min(timeout_s, POLL_SLEEP_S))

    def wake(self) -> None:
        """End a sleep of this process in `idle` or `doze`; may be called from any thread."""
        if self._bell is not None:
            self._bell.ring_self()

    def _next_bell_sleep(self, waited: float) -> float:
        if not self._all_ring:
            return self._next_poll_sleep(waited)
        return MAX_SLEEP_S if waited < LONG_WAIT_S else self._long_sleep_s

    def _next_poll_sleep(self, waited: float) -> float:
        limit = POLL_SLEEP_S if waited < LONG_WAIT_S else LONG_POLL_SLEEP_S
        self._sleep_s = min(self._sleep_s * POLL_GROWTH, limit * self._stretch)
        return self._sleep_s
