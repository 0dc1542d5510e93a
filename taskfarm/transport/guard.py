"""What keeps a rank of a team from waiting for ever for one that has failed.

Theory of operation. A rank that is blocked inside MPI cannot be interrupted, so ranks of a team are never blocked
there: each blocking method of their communicator is a non-blocking one and a loop that tests it, and takes in frames
now and then. When the frame comes that says that another rank of the team has failed, the loop raises `PeerFailed`.

What is under way then must be ended, or the communicator could never be freed:

* receives are cancelled. Those that the program itself waits for, in ``MPI.Request.Waitall``, are cancelled by a second
  thread, which looks for such a frame while the first one does not (it needs ``MPI_THREAD_MULTIPLE``, the default);
* collective operations cannot be cancelled. So before each the ranks *meet*, in a barrier, and only start it when all
  are there. What is left unfinished is a barrier, then, and the ranks that have not come to it are made to. A rank may
  also leave the barrier because of a failure while others are through, and have begun the operation: it *owes* that,
  and begins it afterwards;
* messages that nobody received are counted, and received when everything else is over.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from mpi4py import MPI

from taskfarm.transport.base import PeerFailed

__all__ = ["Guard", "GuardedRequest"]

TESTS_PER_LOOK = 64  # at frames, while a request is tested; some 20 us
YIELD_AFTER = 256  # tests, some 0.1 ms
SLEEP_AFTER_S = 0.05
SLEEP_S = 200e-6
FRESH_S = 0.05  # the second thread looks if the first one has not for so long
MANY = 64  # requests that are kept before the finished ones are dropped

_LOST: list[MPI.Request] = []  # of communicators that are never freed: with the memory that they borrow


class Guard:
    """One rank's part in a task of several ranks.

    Parameters
    ----------
    look : callable
        Takes in a frame, if one is here; sets `failed` if it says so. May raise, to end the task.

    Attributes
    ----------
    on_receive : callable or None
        Called when a receive begins that the main thread may wait for without looking.
    failed : str
        What happened to another rank of the team; empty while nothing did.
    n_met : int
        How often the ranks of the team's own communicator were to meet.
    owed : callable or None
        Begins the collective operation that the last such meeting was for; None if it has begun, or there is none.
    n_sent_to : dict of int to int
        Messages to each other rank on that communicator.
    n_received : int
        Messages from there.
    is_countable : bool
        Whether these numbers, and nothing else, say what is left unfinished.
    unfinished : list of MPI.Request
        What is left unfinished on that communicator, with the memory that it borrows.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self.on_receive: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._receives: list[GuardedRequest] = []
        self._sends: list[GuardedRequest] = []
        self.unfinished: list[MPI.Request] = []
        self.failed = ""
        self.n_met = 0
        self.owed: Callable[[], MPI.Request] | None = None
        self.n_sent_to: dict[int, int] = {}
        self.n_received = 0
        self.is_countable = True
        self.is_over = False

    @property
    def n_unmatched(self) -> int:
        """Messages sent less those received; the sum over the team is 0 if each was received."""
        return sum(self.n_sent_to.values()) - self.n_received

    @property
    def n_steps(self) -> int:
        """How far this rank has come: one step to a meeting, one to what it was for."""
        return 2 * self.n_met - (self.owed is not None)

    def catch_up(self, comm: MPI.Intracomm, n_steps: int) -> list[MPI.Request]:
        """Begin what this rank has not, but the one that has come farthest; return the requests."""
        begun = []
        if self.owed is not None and n_steps >= 2 * self.n_met:
            begun.append(self.owed())
        return begun + [comm.Ibarrier() for _ in range((n_steps + 1) // 2 - self.n_met)]

    def check(self) -> None:
        """Raise `PeerFailed` if another rank of the team has failed."""
        if self.failed:
            raise PeerFailed(self.failed)

    def look(self) -> None:
        """Take in a frame."""
        with self._lock:
            self._looked_at = time.monotonic()
            self._look()
        self.check()

    def look_for_other_thread(self) -> None:
        """Take in a frame, and cancel receives if it says so, because the main thread is somewhere in MPI."""
        with self._lock:
            if self.is_over or time.monotonic() - self._looked_at < FRESH_S:
                return
            if not self.failed:
                self._look()
            if self.failed:
                for request in self._receives:
                    if request:
                        request.Cancel()

    @property
    def is_waited_for(self) -> bool:
        """Whether receives are under way that the main thread may wait for without looking."""
        return bool(self._receives)

    def finish(self, test: Callable[[], Any]) -> Any:
        """Return what `test` returns, once that is true."""
        n = 0
        since = 0.0
        while not (found := test()):
            n += 1
            if n % TESTS_PER_LOOK == 0 or since:
                self.look()
            if n == YIELD_AFTER:
                since = time.monotonic()
            elif since:
                os.sched_yield()
                if time.monotonic() - since > SLEEP_AFTER_S:
                    time.sleep(SLEEP_S)
        return found

    def wait(self, comm: Any, request: MPI.Request, status: MPI.Status | None = None) -> None:
        """Return when `request` is complete."""
        if MPI.Request.Test(request, status):
            return
        try:
            self.finish(lambda: MPI.Request.Test(request, status))
        except BaseException:
            self._give_up(comm, request)
            raise

    def _give_up(self, comm: Any, request: MPI.Request) -> None:
        (self.unfinished if comm.is_own else _LOST).append(request)

    def wait_received(self, comm: Any, source: Any, request: MPI.Request, status: MPI.Status | None = None) -> None:
        """Return when a receive is complete; cancel it if it will never be."""
        counts = self.count_received(comm, source)
        try:
            self.finish(lambda: MPI.Request.Test(request, status))
        except BaseException:
            self._cancel(request, counts)
            raise

    def wait_both(
        self, comm: Any, source: Any, receive: MPI.Request, send: MPI.Request, status: MPI.Status | None
    ) -> None:
        """Return when both are complete."""
        try:
            self.wait_received(comm, source, receive, status)
        except BaseException:
            self._give_up(comm, send)
            raise
        self.wait(comm, send)

    def _cancel(self, request: MPI.Request, counts: bool) -> None:
        if request:
            status = MPI.Status()
            request.Cancel()
            with contextlib.suppress(MPI.Exception):  # too short for its message, which it has taken all the same
                MPI.Request.Wait(request, status)
            self.n_received -= counts and status.Is_cancelled()

    def meet(self, comm: Any, start: Callable[[], MPI.Request] | None = None) -> None:
        """Return when all ranks of `comm` have come to this point; `start` begins what they come for."""
        self.check()
        if comm.is_own:
            self.n_met += 1
            self.owed = start
        self.wait(comm, MPI.Intracomm.Ibarrier(comm))

    def operate(self, comm: Any, start: Callable[[], MPI.Request]) -> None:
        """Return when the collective operation is complete that `start` begins once all ranks of `comm` have met."""
        self.meet(comm, start)
        request = start()
        self.owed = None
        self.wait(comm, request)

    def count_sent(self, comm: Any, dest: Any) -> None:
        """Note a message to rank `dest`, which is on its way: one that cannot be pickled never is."""
        if comm.is_own and dest != MPI.PROC_NULL:
            self.n_sent_to[dest] = self.n_sent_to.get(dest, 0) + 1

    def count_received(self, comm: Any, source: Any) -> bool:
        """Note a message from rank `source`; tell whether it counts."""
        counts = bool(comm.is_own and source != MPI.PROC_NULL)
        self.n_received += counts
        return counts

    def keep_send(self, request: MPI.Request) -> GuardedRequest:
        """Return a send as a request that can be waited for."""
        if len(self._sends) >= MANY:
            self._sends = [one for one in self._sends if one and not MPI.Request.Test(one)]
        kept = GuardedRequest.of(request, self, False)
        self._sends.append(kept)
        return kept

    def keep_receive(self, comm: Any, source: Any, request: MPI.Request) -> GuardedRequest:
        """Return a receive as a request that can be waited for."""
        kept = GuardedRequest.of(request, self, self.count_received(comm, source))
        with self._lock:
            if len(self._receives) >= MANY:
                self._receives = [one for one in self._receives if one]
            self._receives.append(kept)
        if self.on_receive is not None and MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            self.on_receive()
        return kept

    def end(self) -> None:
        """End what the task has left under way on this rank."""
        with self._lock:
            self.is_over = True
        for request in self._receives:
            self._cancel(request, request.counts)
        self._receives.clear()
        self.unfinished += [request for request in self._sends if request]
        self._sends.clear()


class GuardedRequest(MPI.Request):
    """A request whose methods do not wait for a rank that has failed."""

    guard: Guard
    counts: bool

    @classmethod
    def of(cls, request: MPI.Request, guard: Guard, counts: bool) -> GuardedRequest:
        """Return `request` as one that `guard` watches over."""
        new = cls(request)
        new.guard = guard
        new.counts = counts
        return new

    def Wait(self, status: MPI.Status | None = None) -> Any:
        """Return when the operation is complete."""
        self.guard.finish(lambda: MPI.Request.Test(self, status))
        return True

    def Test(self, status: MPI.Status | None = None) -> bool:
        """Tell whether the operation is complete."""
        done = MPI.Request.Test(self, status)
        if not done:
            self.guard.look()
        return done

    def wait(self, status: MPI.Status | None = None) -> Any:
        """Return the object that was received, when it is here."""
        return self.guard.finish(lambda: _found(MPI.Request.test(self, status)))[0]

    def test(self, status: MPI.Status | None = None) -> tuple[bool, Any]:
        """Tell whether the operation is complete, and return the object that was received."""
        done, value = MPI.Request.test(self, status)
        if not done:
            self.guard.look()
        return done, value

    @classmethod
    def Waitall(cls, requests: Sequence[MPI.Request], statuses: list[MPI.Status] | None = None) -> Any:
        """Return when all operations are complete."""
        guards = [request.guard for request in requests if isinstance(request, GuardedRequest)]
        return guards[0].finish(lambda: MPI.Request.Testall(requests, statuses)) if guards else True


def _found(answer: tuple[bool, Any]) -> tuple[Any] | None:
    return (answer[1],) if answer[0] else None
