"""Rank 0's side of the executor: jobs in, batches out, results back, from whichever thread has the time.

Theory of operation. One thread at a time talks to MPI: the one that holds the crew's lock. That may be

* a caller in `post` (a `submit`): it sends at once what can be sent, and goes on;
* a caller in `wait` (a `result`, the next value of a `map`): it *leads*, that is, it moves frames itself until what
  it waits for is there. No other thread has to be woken, which would cost more than the message;
* the pump (`taskfarm.runtime.executor.pump`), a background thread, when work is under way and nobody leads: for
  callbacks, `as_completed`, `asyncio`, and programs that compute meanwhile.

Who finds the lock taken leaves a request in the inbox, and the holder is woken for it. After releasing the lock a
thread looks at the inbox once more, so no request is left behind. What runs code of the user's (results, callbacks)
is a *delivery*: it is done when the lock is free again, by any thread, in order.

What is sent, and what comes of the answers, is in `taskfarm.runtime.executor.dispatch`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from taskfarm.runtime.controller import Controller
from taskfarm.runtime.executor.deliveries import Deliveries
from taskfarm.runtime.executor.dispatch import Clock, Dispatch
from taskfarm.runtime.forks import Home
from taskfarm.transport.base import raise_if_interrupted

__all__ = ["Crew"]

logger = logging.getLogger(__name__)

FOLLOW_S = 0.01  # between two tries of a waiting thread to lead; the leader notifies it of results sooner
LOOK_EVERY_S = 200e-6  # calls in quick succession do not each look for results
_MISSES = 2  # a first MPI probe may only make progress and let the second one see the message (MPICH 5)


class Crew(Dispatch):
    """The workers, and what is under way to them.

    Parameters
    ----------
    controller : Controller
        Has the transport to the workers.
    workers : sequence of int
        Their ranks.
    clock : callable, optional
        Returns the time in seconds.
    """

    def __init__(self, controller: Controller, workers: Sequence[int], clock: Clock = time.monotonic) -> None:
        self.home = Home("an executor")
        self._leader: int | None = None  # the thread that leads
        self.wake_pump: Callable[[], None] = _do_nothing
        self._lock = threading.Lock()
        self._inbox: deque[Callable[[], object]] = deque()
        self._deliveries = Deliveries()
        self._changed = threading.Condition()
        self._n_followers = 0
        self._looked_at = -math.inf
        super().__init__(controller, workers, clock)
        # By way of the inbox: who notices a death may not have the lock.
        controller.loss_listeners.append(lambda rank, how: self._inbox.append(lambda: self.lose_worker(rank, how)))

    # From any thread

    def post(self, request: Callable[[], object]) -> None:
        """Have `request` done with the lock held: now if the lock is free, else by the thread that holds it."""
        self.home.check()
        if not self._lock.acquire(False):
            self._inbox.append(request)
            self.transport.wake()
            if not self._lock.acquire(False):
                return
            request = _do_nothing
        try:
            if self._inbox:
                self._empty_inbox()
            request()
            if not self.closed:
                if self.dealer.flying:
                    now = self.clock()
                    if now - self._looked_at >= LOOK_EVERY_S:
                        self._looked_at = now
                        self._take_in(_MISSES)
                if self.dealer.has_waiting or self.desk.is_used:
                    self.send_batches()
        finally:
            self._lock.release()
        if self._inbox or self._deliveries:
            self._after_release()
        self.wake_pump()
        if self.transport.interrupted:
            self._raise_in_main_thread()

    def post_now(self, request: Callable[[], object], afterwards: Callable[[], None]) -> bool:
        """Have `request` done here and now, and `afterwards` when what it led to was sent; False if that cannot be."""
        self.home.check()
        if not self._lock.acquire(False):
            return False
        try:
            self._empty_inbox()
            request()
            if not self.closed:
                self.send_batches()
            afterwards()
        finally:
            self._lock.release()
        self._after_release()
        self.wake_pump()
        return True

    def wait(self, until: Callable[[], bool], deadline: float) -> bool:
        """Return when `until` holds (True) or `deadline` has passed (False); move frames meanwhile."""
        self.home.check()
        me = threading.get_ident()
        while not until():
            now = self.clock()
            if now >= deadline or self.closed:
                return until()
            before = self._leader  # this thread, if a delivery of its own waits
            if (before is not None and before != me) or not self._lock.acquire(timeout=min(FOLLOW_S, deadline - now)):
                self.follow(until, deadline)
                continue
            self._leader = me
            try:
                self._lead(until, deadline)
            finally:
                self._leader = before
                self._lock.release()
            self._after_release()
            self.notify()
            self.wake_pump()
            if self.transport.interrupted:
                self._raise_in_main_thread()
        return True

    def notify(self) -> None:
        """Let other threads that wait look again: what they wait for may have come true."""
        if self._leader not in (None, threading.get_ident()):
            self.transport.wake()
        if self._n_followers:
            with self._changed:
                self._changed.notify_all()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block, no thread moves frames for this crew, and nothing is under way."""
        while True:
            self.wait(self.is_at_rest, math.inf)
            with self._lock:
                if self.is_at_rest():
                    self.transport.end_doze()
                    yield
                    return

    def is_at_rest(self) -> bool:
        """Tell whether no item is under way or waiting, or ever will be."""
        return self.broken is not None or not (self.dealer.flying or self.dealer.has_waiting or self.desk.is_busy)

    def close(self) -> None:
        """Move nothing any more: the workers are about to be sent away."""
        with self._lock:
            self.closed = True

    def serve(self) -> bool:
        """Move what can be moved, as the pump does; return False if another thread is at it, or all is quiet."""
        if self.is_led or not self._lock.acquire(False):
            return False
        try:
            self.transport.end_doze()
            moved = self._step()
            quiet = not moved and self.transport.begin_doze()
        finally:
            self._lock.release()
        self._after_release()
        return not quiet

    @property
    def is_led(self) -> bool:
        """Whether a thread that waits moves the frames."""
        return self._leader is not None

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way."""
        under_way = (self.dealer.flying or self.desk.is_busy) and self.broken is None
        return not self.closed and bool(under_way or self._inbox or self._deliveries)

    # With the lock held

    def deliver_later(self, delivery: Callable[[], None]) -> None:
        """Have `delivery`, which may run code of the user's, done when the lock is free."""
        self._deliveries.add(delivery)

    # Moving

    def _lead(self, until: Callable[[], bool], deadline: float) -> None:
        self.transport.end_doze()  # the pump may have announced that this process sleeps
        while True:
            if self._inbox or self.functions.dying:
                self._empty_inbox()
            if self.dealer.has_waiting or self.desk.is_used:
                self.send_batches()
            if self._deliveries:
                self._lock.release()
                try:
                    self._deliveries.run()
                    self.notify()
                finally:
                    self._lock.acquire()
            if until() or self.closed:
                return
            if self._inbox or self._deliveries:
                continue
            item = self.transport.receive(deadline)
            if item is not None:
                self.controller.handle(*item)
                if not self._deliveries:
                    self._take_in(1)
            elif self.clock() >= deadline:
                return

    def follow(self, until: Callable[[], bool], deadline: float) -> None:
        """Wait a moment for what another thread does; nothing is in hand here, so an interrupt may be raised."""
        with self._changed:
            self._n_followers += 1
            try:
                if not until():
                    self._changed.wait(max(0.0, min(FOLLOW_S, deadline - self.clock())))
            finally:
                self._n_followers -= 1

    def _step(self) -> bool:
        self._empty_inbox()
        if self.closed:
            return False
        moved = self._take_in(_MISSES)
        self.send_batches()
        return moved

    def _empty_inbox(self) -> None:
        inbox, dying = self._inbox, self.functions.dying
        while inbox:
            inbox.popleft()()
        while dying:
            self.forget(dying.popleft())

    def _take_in(self, max_misses: int) -> bool:
        receive_nowait, handle = self.transport.receive_nowait, self.controller.handle
        misses = 0
        moved = False
        while misses < max_misses:
            item = receive_nowait()
            if item is None:
                misses += 1
            else:
                misses = 0
                moved = True
                handle(*item)
        return moved

    # Without the lock

    def _after_release(self) -> None:
        while self._inbox and self._lock.acquire(False):  # left while the lock was held, unseen by its holder
            try:
                self._step()
            finally:
                self._lock.release()
        if self._deliveries and not self._deliveries.run_here:
            self._deliveries.run()
            self.notify()

    def _raise_in_main_thread(self) -> None:
        if threading.current_thread() is threading.main_thread():
            raise_if_interrupted(self.transport)


def _do_nothing() -> None: ...
