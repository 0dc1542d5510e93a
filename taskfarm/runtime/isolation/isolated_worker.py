"""A worker whose tasks run in a task child: it passes frames on, and lives on when the child dies.

Theory of operation. Tasks and batches wait in a *queue*; the first of them are *given* to the child, in order, and
leave the list when the child has answered. The child is a worker like any other, except that its frames go through
this rank. So messages, questions about who waits for what, and debug text pass through; collective calls, placed tasks
and managed objects stay in the rank.

If the child dies, the first of what it was given is lost: its batch is reported with the position of the item that was
being run (the child notes it in a shared page), a task of the virtual machine ends as failed. The rest was not begun,
and goes to the next child, which is forked at once. Functions and initializers are kept here, and given to a child
before the first batch that needs them.

While the child works, the rank waits for both: for frames from other ranks (it announces that it sleeps, so that
senders ring), and for the child's socket. It wakes now and then only if the running item has a time limit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from taskfarm.errors import WorkerLostError
from taskfarm.runtime.endpoint import Surroundings
from taskfarm.runtime.executor.batches import encode_times
from taskfarm.runtime.executor.limits import Limits, Sentence, read_limits
from taskfarm.runtime.executor.losses import LostItem, pack_loss
from taskfarm.runtime.executor.results import ReplyOption
from taskfarm.runtime.isolation.nursery import Child, ForkServerLostError, Nursery, describe_status
from taskfarm.runtime.isolation.page import Identity
from taskfarm.runtime.options import LossCause, ResultWanted
from taskfarm.runtime.runner import encode_failure, failure_of, print_error
from taskfarm.runtime.worker import Worker
from taskfarm.transport.base import Incoming, Transport
from taskfarm.transport.relay import SharedLink
from taskfarm.transport.shared import Arena
from taskfarm.wire.frames import Frame, Kind

if TYPE_CHECKING:
    from taskfarm.transport.world import PeerInfo

__all__ = ["IsolatedWorker"]

logger = logging.getLogger(__name__)

MAX_GIVEN = 2  # the child should find its next batch when it has done one
MAX_SLEEP_S = 1.0  # whatever happens ends the sleep
LOOK_EVERY_S = 5e-3  # at what the child is at, while items have time limits or are to be cancelled
FIRST_WAIT_MS = 1  # for the child alone: short tasks need not announce that the rank sleeps, which takes 5 us
SILENT_S = 1.0  # for a child that has closed its socket to end by itself; nobody can hear of it any more
LEAVE_S = 1.0  # for a child that has been told to leave, before it is killed


class IsolatedWorker(Worker):
    """The session on a rank whose tasks run in a child.

    Parameters
    ----------
    transport, surroundings
        See `Worker`.
    nursery : Nursery
        Forks the children; the worker owns it.
    peers : sequence of PeerInfo
        What the ranks told of themselves; empty where only the executor uses it.
    """

    def __init__(
        self, transport: Transport, surroundings: Surroundings, nursery: Nursery, peers: Sequence[PeerInfo]
    ) -> None:
        super().__init__(transport, surroundings)
        self._nursery = nursery
        self._peers = [(peer.host, peer.pid, peer.memory_key) for peer in peers]
        self._arena = Arena()
        self._child: Child | None = None
        self._link: SharedLink | None = None
        self._from_child: deque[Incoming] = deque()
        self._queue: deque[Frame] = deque()
        self._given: deque[Frame] = deque()
        self._functions: dict[int, Frame] = {}
        self._child_knows: set[int] = set()
        self._known_here: set[int] = set()  # functions that placed tasks have needed
        self._limits = Limits()
        self._sentence: Sentence | None = None
        self._poll: select.poll | None = None  # for the child
        self._silent_since = math.inf  # when the child closed its socket
        self._is_fresh = False  # whether the child has just been given work
        self._handlers.update(
            {
                Kind.FUNCTION: self.on_function,
                Kind.BATCH: self.on_work,
                Kind.FORGET: self.on_forget,
                Kind.SPAWN: self.on_work,
                Kind.LIMIT: self.on_limit,
                Kind.CANCEL: self.on_cancel,
                Kind.TEAM_TASK: self.on_team_task,
            }
        )
        transport.use_memory(self._arena)

    # The loop

    def serve_until_end(self) -> None:
        """Serve until rank 0 ends the session and no task runs."""
        self._renew_child()
        try:
            while not self._quitting or self._deferred or self._queue or self._given:
                item = self._deferred.popleft() if self._deferred else self._next_frame()
                if item is not None:
                    self.handle(*item)
                    del item
        except ForkServerLostError as exc:
            print_error(f"taskfarm: rank {self.transport.rank}: {exc}; the rank can run nothing any more, and ends")
            os._exit(1)  # as if it had died: under a supervisor the others go on
        finally:
            self._dismiss_child()

    def _next_frame(self) -> Incoming | None:
        if not (self._given or self._queue):
            return self.transport.receive(math.inf)
        transport = self.transport
        if self._poll is not None and self._is_fresh and not transport.n_unsent:
            self._is_fresh = False  # whatever else may come can wait for a millisecond
            self._poll.poll(FIRST_WAIT_MS)
        if self._move_child():
            return transport.receive_nowait()
        dozed = transport.begin_doze()
        if dozed:
            transport.doze(self._sleep_s(), self._descriptors())
        transport.end_doze()
        item = None if dozed and self._move_child() else transport.receive_nowait()
        if item is None and not dozed:
            os.sched_yield()  # a transfer is under way, which MPI moves only when it is polled
        return item

    def _descriptors(self) -> list[int]:
        link = self._link
        hears = link is not None and link.is_open
        return [self._nursery.fileno(), link.sock.fileno()] if link and hears else [self._nursery.fileno()]

    def _sleep_s(self) -> float:
        if self._link is not None and not self._link.is_open:
            self._judge_silence(time.monotonic())
            return LOOK_EVERY_S
        if self._link is not None and self._link.unsent:
            return LOOK_EVERY_S
        first = self._given[0]
        if first.kind is Kind.BATCH and self._limits.are_for(first.a):
            self._judge(first)
            return LOOK_EVERY_S
        return MAX_SLEEP_S

    def is_interruptible(self) -> bool:
        """Tell whether an interrupt ends a function that runs in this process; pass it on to one in the child."""
        if self._given and self._child is not None:
            self._nursery.send_signal(self._child.number, signal.SIGINT)
            return False
        return super().is_interruptible()

    # Frames for the child

    def on_function(self, source: int, frame: Frame) -> None:
        """Keep the function of a job, or an initializer, for the children."""
        self._functions[frame.a] = frame

    def on_forget(self, source: int, frame: Frame) -> None:
        """Drop the function of a job, when the batches before are done: until then, another child may need it."""
        self._queue.append(frame)
        self._give()

    def on_team_task(self, source: int, frame: Frame) -> None:
        """Run a placed task in this process, which has MPI, and the objects that live on this rank."""
        for number, function in self._functions.items():
            if number not in self._known_here:
                self._known_here.add(number)
                self.batches.on_function(source, function)
        self.teams.on_task(source, frame)

    def on_limit(self, source: int, frame: Frame) -> None:
        """Note how long the items of a batch may take."""
        self._limits.set(frame.a, read_limits(frame.body))

    def on_cancel(self, source: int, frame: Frame) -> None:
        """Kill the child when it is at a certain item of a batch, now or later."""
        if any(work.a == frame.a for work in (*self._given, *self._queue) if work.kind is Kind.BATCH):
            self._limits.cancel(frame.a, frame.b)

    def on_work(self, source: int, frame: Frame) -> None:
        """Take in a task or a batch."""
        if frame.kind is Kind.SPAWN:
            self.mailbox.start(frame.a)
        self._queue.append(frame)
        self._give()

    def _give(self) -> None:
        while self._queue and len(self._given) < MAX_GIVEN and self._link is not None:
            for number, function in self._functions.items():
                if number not in self._child_knows:
                    self._child_knows.add(number)
                    self._link.put(0, function, keep=True)
            frame = self._queue[0]
            if frame.kind is Kind.FORGET:
                if self._given:
                    return
                self._functions.pop(frame.a, None)
                self._child_knows.discard(frame.a)
                self._known_here.discard(frame.a)
                self.batches.on_forget(0, frame)
            else:
                self._given.append(frame)
            self._queue.popleft()
            self._link.put(0, frame)
            self._is_fresh = True

    def on_message(self, source: int, frame: Frame) -> None:
        """Pass a message on to the task that runs in the child."""
        self._n_received += 1
        if self._link is not None:
            self._link.put(source, frame)

    def on_query(self, source: int, frame: Frame) -> None:
        """Have the child say what its task waits for; without a task, nothing waits here."""
        if self._given and self._link is not None:
            self._link.put(source, frame)
        else:
            super().on_query(source, frame)

    def on_debug(self, source: int, frame: Frame) -> None:
        """Set the debug level, here and in the child."""
        super().on_debug(source, frame)
        if self._link is not None:
            self._link.put(source, frame)

    def on_quit(self, source: int, frame: Frame) -> None:
        """Leave the loop when the child has ended its task; one that waits for a message is ended there."""
        super().on_quit(source, frame)
        if self._given and self._link is not None:
            self._link.put(source, frame)

    # Frames from the child

    def _move_child(self) -> bool:
        """Take in what the child has sent, and see whether it lives; tell whether anything has happened."""
        if self._hear_child():
            return True
        ended = self._nursery.next_ended()
        if ended is None or self._child is None or ended[0] != self._child.number:
            return False
        self._hear_child()  # its last words
        self._on_child_ended(ended[1])
        return True

    def _hear_child(self) -> bool:
        link, found = self._link, self._from_child
        if link is None:
            return False
        if link.unsent:
            link.push()
        link.pull(found)
        heard = bool(found)
        while found:
            self._on_child_frame(*found.popleft())
        return heard

    def _on_child_frame(self, dest: int, frame: Frame) -> None:
        kind = frame.kind
        if kind is Kind.BATCH_DONE or kind is Kind.DONE:
            if not self._given or self._given[0].a != frame.a:
                return
            self._given.popleft()
            self.on_answer(frame)
            self._limits.forget(frame.a)
            self._give()
            if kind is Kind.DONE:
                self.mailbox.finish()
        elif kind is Kind.MESSAGE:
            self._n_sent += 1
        elif kind is Kind.STATUS:
            status = self.read_status(frame.body)
            counted = replace(status, n_sent=self._n_sent, n_received=self._n_received)
            frame = frame._replace(body=self.write_status(counted))
        elif kind is Kind.BYE:
            return
        self.transport.send(dest, frame)

    def on_answer(self, frame: Frame) -> None:
        """Note that the first of what the child was given has ended."""

    # Deaths

    def _judge(self, first: Frame) -> None:
        """Kill the child if the item that it is at has had its time, or is not wanted any more."""
        if self._child is None or self._sentence is not None:
            return
        seen = self._child.page.read()
        if seen[0] == first.a and self._child.page.read() == seen:
            self._sentence = self._limits.judge(*seen, time.monotonic())
        if self._sentence is not None:
            self._nursery.send_signal(self._child.number, signal.SIGKILL)

    def _judge_silence(self, now: float) -> None:
        """Kill a child that has closed its socket and lives on, as after ``os.closerange``."""
        self._silent_since = min(self._silent_since, now)
        if now - self._silent_since >= SILENT_S and self._child is not None and self._sentence is None:
            text = "it had closed the descriptors by which its rank hears of it"
            self._sentence = Sentence(LossCause.DEATH, text)
            self._nursery.send_signal(self._child.number, signal.SIGKILL)

    def _on_child_ended(self, status: int) -> None:
        sentence, self._sentence = self._sentence, None
        child, link = self._child, self._link
        assert child is not None
        text = describe_status(status)
        words = sentence.text if sentence is not None else text
        logger.warning("rank %d: the task child has ended: %s", self.transport.rank, words, extra={"event": "lost"})
        if link is not None:
            link.close()
        child_page = child.page.read()
        self._child = self._link = self._poll = None
        self._silent_since = math.inf
        self._renew_child()
        if self._given:
            lost = self._given.popleft()
            self._queue.extendleft(reversed(self._given))
            self._given.clear()
            if lost.kind is Kind.BATCH:
                self._report_lost_batch(lost, child_page, sentence or Sentence(LossCause.DEATH, text))
            else:
                self._report_lost_task(lost, words)
        self._give()

    def _report_lost_batch(self, lost: Frame, page: tuple[int, int, float], sentence: Sentence) -> None:
        batch, position, _ = page
        known = batch == lost.a and position >= 0
        self._limits.forget(lost.a)
        loss = LostItem(position if known else None, sentence.cause, sentence.text)
        body = encode_times(0.0, 0.0) + pack_loss(loss)
        self.transport.send(0, Frame(Kind.BATCH_DONE, lost.a, 0, ReplyOption.LOST, body))

    def _report_lost_task(self, lost: Frame, text: str) -> None:
        rank, host = self.transport.rank, self._host
        error = WorkerLostError(
            f"task {rank}:{lost.a} was lost with the process that ran it on rank {rank}: {text}", []
        )
        option = lost.option | ResultWanted.FAILED
        body = encode_failure(failure_of(error, rank, host))
        self.mailbox.finish()
        self.transport.send(0, Frame(Kind.DONE, lost.a, lost.b, option, body))

    # The child

    def _renew_child(self) -> None:
        """Start a child; it imports and connects while this rank goes on."""
        path, argv, environment = list(sys.path), list(sys.argv), dict(os.environ)
        directory = self._home or os.curdir
        rank, size = self.transport.rank, self.transport.size
        identity = Identity(rank, size, self._host, self._peers, path, argv, directory, environment, self.debug)
        self._child = self._nursery.new_child(identity)
        self._link = SharedLink(self._child.sock, self._arena)
        self._poll = select.poll()
        self._poll.register(self._child.sock, select.POLLIN)
        self._poll.register(self._nursery.fileno(), select.POLLIN)
        self._child_knows.clear()

    def _dismiss_child(self) -> None:
        """Let the child go, and end the fork server."""
        link, child = self._link, self._child
        if link is not None and child is not None:
            with contextlib.suppress(ForkServerLostError):  # the fork server is gone, and with it the child
                self._see_off(link, child)
            link.close()
        self._child = self._link = None
        self._nursery.close()

    def _see_off(self, link: SharedLink, child: Child) -> None:
        link.put(0, Frame(Kind.QUIT))
        deadline = time.monotonic() + LEAVE_S
        poll = select.poll()
        poll.register(self._nursery.fileno(), select.POLLIN)
        while time.monotonic() < deadline:
            link.push()
            ended = self._nursery.next_ended()
            if ended is not None and ended[0] == child.number:
                break
            poll.poll(1e3 * max(0.0, deadline - time.monotonic()))
