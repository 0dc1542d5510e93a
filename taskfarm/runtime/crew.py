"""Rank 0's side of the executor: jobs in, batches out, results back, from whichever thread has the time.

Theory of operation. One thread at a time talks to MPI: the one that holds the crew's lock. That may be

* a caller in `post` (a `submit`): it sends at once what can be sent, and goes on;
* a caller in `wait` (a `result`, the next value of a `map`): it *leads*, that is, it moves frames itself until what
  it waits for is there. No other thread has to be woken, which would cost more than the message;
* the pump (`taskfarm.runtime.pump`), a background thread, when work is under way and nobody leads: for callbacks,
  `as_completed`, `asyncio`, and programs that compute meanwhile.

Who finds the lock taken leaves a request in the inbox, and the holder is woken for it. After releasing the lock a
thread looks at the inbox once more, so no request is left behind. What runs code of the user's (results, callbacks)
is a *delivery*: it is done when the lock is free again, by any thread, in order.

What is decided (how many items, for whom) is the dealer's business; what items and results mean is the job's.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

from taskfarm.errors import ProtocolError, WorkerLostError
from taskfarm.runtime.batches import read_report
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.deliveries import Deliveries
from taskfarm.runtime.forks import Home
from taskfarm.runtime.functions import FunctionBook
from taskfarm.runtime.jobs import Job, Parcel, Supplies
from taskfarm.runtime.options import BatchOption
from taskfarm.runtime.results import ReplyOption, Results
from taskfarm.runtime.runner import decode_failure, run
from taskfarm.runtime.team_desk import TeamDesk
from taskfarm.scheduling.dealing import Batch, Dealer
from taskfarm.transport.base import raise_if_interrupted
from taskfarm.wire.frames import Frame, Kind

__all__ = ["Crew"]

logger = logging.getLogger(__name__)

FOLLOW_S = 0.01  # between two tries of a waiting thread to lead; the leader notifies it of results sooner
LOOK_EVERY_S = 200e-6  # calls in quick succession do not each look for results
# Hot path: see `taskfarm.fast`.
_APART, _LATE, _LONG, _FRESH = ReplyOption.APART, ReplyOption.LATE, int(BatchOption.LONG), int(BatchOption.FRESH)
_MISSES = 2  # a first MPI probe may only make progress and let the second one see the message (MPICH 5)


class Crew:
    """The workers, and what is under way to them.

    Parameters
    ----------
    controller : Controller
        Has the transport to the workers.
    workers : sequence of int
        Their ranks.
    """

    def __init__(self, controller: Controller, workers: Sequence[int]) -> None:
        self.home = Home("an executor")
        self.controller = controller
        self.transport = controller.transport
        self.workers = tuple(workers)
        self.dealer = Dealer(workers)
        self._leader: int | None = None  # the thread that leads
        self.wake_pump: Callable[[], None] = _do_nothing
        self.broken: BaseException | None = None
        self.closed = False
        self._lock = threading.Lock()
        self._inbox: deque[Callable[[], object]] = deque()
        self._deliveries = Deliveries()
        self._changed = threading.Condition()
        self._n_followers = 0
        self._jobs: dict[int, Job] = {}
        self.supplies = Supplies(workers)
        self._numbers = count(1)
        self.functions = FunctionBook(self.new_number)
        self._looked_at = -math.inf
        self.desk = TeamDesk(self, controller)
        controller.add_handler(Kind.BATCH_DONE, self._on_batch_done)

    # From any thread

    def new_number(self) -> int:
        """Return a number for a job or an initializer that was never used."""
        return next(self._numbers)

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
                    now = time.monotonic()
                    if now - self._looked_at >= LOOK_EVERY_S:
                        self._looked_at = now
                        self._take_in(_MISSES)
                if self.dealer.has_waiting or self.desk.is_used:
                    self._send_batches()
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
                self._send_batches()
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
            now = time.monotonic()
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

    def add_job(self, job: Job, n_workers: int, unit: int = 1) -> None:
        """Take a new job; its items come by `add_items`."""
        self._jobs[job.number] = job
        self.dealer.on_job(job.number, n_workers, unit)
        if self.broken is not None:  # after the executor has looked
            job.on_broken(self.broken)

    def add_items(self, job: Job, n: int) -> bool:
        """Note that `n` more items of `job` are available; False if they will not be run, as the job has ended."""
        if self.closed or job.number not in self._jobs:
            return False
        self.dealer.on_items(job.number, n)
        return True

    def end_job(self, job: Job) -> None:
        """Forget a job of which nothing is waited for any more; what is flying comes back unheard."""
        if self._jobs.pop(job.number, None) is None:
            return
        self.dealer.drop_job(job.number)
        self.forget(job.number)

    def forget(self, number: int) -> None:
        """Let the workers drop the function of a job, or the outcome of an initializer."""
        for worker in self.supplies.forget(number):
            if not self.closed:
                self.transport.send(worker, Frame(Kind.FORGET, number))

    def deliver_later(self, delivery: Callable[[], None]) -> None:
        """Have `delivery`, which may run code of the user's, done when the lock is free."""
        self._deliveries.add(delivery)

    def _on_lost(self, error: WorkerLostError) -> None:
        """Note that workers are gone, and with them everything that is under way."""
        self.broken = error
        self.controller.count_out(error.ranks)
        for job in list(self._jobs.values()):
            job.on_broken(error)
        self.desk.on_lost()

    # Moving

    def _lead(self, until: Callable[[], bool], deadline: float) -> None:
        self.transport.end_doze()  # the pump may have announced that this process sleeps
        while True:
            if self._inbox or self.functions.dying:
                self._empty_inbox()
            if self.dealer.has_waiting or self.desk.is_used:
                self._send_batches()
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
            try:
                item = self.transport.receive(deadline)
            except WorkerLostError as exc:
                self._on_lost(exc)
                continue
            if item is not None:
                self.controller.handle(*item)
                if not self._deliveries:
                    self._take_in(1)
            elif time.monotonic() >= deadline:
                return

    def follow(self, until: Callable[[], bool], deadline: float) -> None:
        """Wait a moment for what another thread does; nothing is in hand here, so an interrupt may be raised."""
        with self._changed:
            self._n_followers += 1
            try:
                if not until():
                    self._changed.wait(max(0.0, min(FOLLOW_S, deadline - time.monotonic())))
            finally:
                self._n_followers -= 1

    def _step(self) -> bool:
        self._empty_inbox()
        if self.closed:
            return False
        moved = self._take_in(_MISSES)
        self._send_batches()
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
            try:
                item = receive_nowait()
            except WorkerLostError as exc:
                self._on_lost(exc)
                return True
            if item is None:
                misses += 1
            else:
                misses = 0
                moved = True
                handle(*item)
        return moved

    def _send_batches(self) -> None:
        now = time.monotonic()
        self.desk.place(now)
        for batch in self.dealer.deal(now):
            job = self._jobs[batch.job]
            packed = run(job.pack, (batch.start, batch.stop))
            if packed.exception is not None:
                self.dealer.on_unsent(batch.number)
                job.on_returned(batch.start, batch.stop)
                if batch.stop - batch.start == 1:
                    job.on_item_failed(batch.start, batch.stop, packed.exception)
            elif packed.value is None:
                self.dealer.on_void(batch.number)
            else:
                self.dealer.on_packed(batch.number, packed.value.size_bytes)
                self._send(batch, job, packed.value)

    def _send(self, batch: Batch, job: Job, parcel: Parcel) -> None:
        worker, send = batch.worker, self.transport.send
        for missing in self.supplies.missing(worker, job, parcel.needs):
            send(worker, missing)
        frame = Frame(Kind.BATCH, batch.number, job.number, parcel.option, parcel.body, parcel.buffers)
        (self.transport.send_or_copy if parcel.borrows else send)(worker, frame)

    def _on_batch_done(self, source: int, frame: Frame) -> None:
        report = read_report(frame.body)
        batch = self.dealer.flying.get(frame.a)
        if batch is None or batch.worker != source:
            raise ProtocolError(f"batch {frame.a} is not under way at rank {source}")
        job = self._jobs.get(batch.job)
        n_items = batch.stop - batch.start
        if frame.option <= ReplyOption.APART:
            results = Results(frame.b, report.body, frame.buffers, frame.option)
            self.dealer.on_done(batch.number, frame.b, report.seconds, report.gap_s, results.size_bytes)
            self.desk.placer.on_plain_work(report.seconds)
            if job is not None and frame.b:
                job.on_results(batch.start, results)
            return
        failure = decode_failure(report.body)
        if frame.option == ReplyOption.UNREADABLE and n_items > 1:
            self.dealer.on_unsent(batch.number)
            if job is not None:
                job.on_returned(batch.start, batch.stop)
            return
        self.dealer.on_void(batch.number)
        if job is not None and frame.option == ReplyOption.UNREADABLE:
            job.on_item_failed(batch.start, batch.stop, failure)
        elif job is not None:
            job.on_broken(failure)

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
