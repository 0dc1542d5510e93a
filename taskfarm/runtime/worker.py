"""Ranks above 0: receive, run, send.

The loop runs in the main thread, and so does what it runs in-process. A worker may spend its whole life inside a
partly executed import (a host package may part the ranks while it is being imported): so the loop imports nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from taskfarm.errors import ProtocolError, UsageError
from taskfarm.fast import new_tuple
from taskfarm.runtime import work
from taskfarm.runtime.endpoint import CutOff, Endpoint, Surroundings
from taskfarm.runtime.executor.batches import BatchRunner, Progress
from taskfarm.runtime.executor.portions import read_group
from taskfarm.runtime.executor.relay import Relay
from taskfarm.runtime.executor.teams import Teams
from taskfarm.runtime.interrupts import deferred_on_worker
from taskfarm.runtime.options import CallOption, ResultWanted
from taskfarm.runtime.runner import Outcome, encode_failure, end_forked_child, failure_of, flush_output, run
from taskfarm.runtime.sharing.receiving import BlockReceiver
from taskfarm.runtime.survival.vitals import Mark
from taskfarm.scheduling.calls import REPORT_EVERY
from taskfarm.scheduling.mailbox import Letter
from taskfarm.scheduling.tree import children
from taskfarm.transport.base import Incoming, Transport
from taskfarm.wire import work as wire
from taskfarm.wire.codec import pack
from taskfarm.wire.frames import TREE_KINDS, Frame, Kind

__all__ = ["Worker"]

logger = logging.getLogger(__name__)

_DONE = Kind.DONE  # hot path: see `taskfarm.fast`
_VALUE_WANTED = ResultWanted.VALUE
_DONE_CALL, _CURRENT_CALL = int(Mark.DONE_CALL), int(Mark.CURRENT_CALL)

SERVE_S = 1.0  # a wait for frames, between two looks whether others will come
# What is reacted to in the middle of a task, a call or a relay; the rest is work, and waits its turn.
_AT_ONCE = frozenset(
    {
        Kind.MESSAGE,
        Kind.ARRAY,
        Kind.QUERY,
        Kind.QUIT,
        Kind.DEBUG,
        Kind.LOST,
        Kind.TEAM_STOP,
        Kind.TEAM_MEET,
        Kind.SHARE,
    }
)


def _read_and_call(read: Callable[..., wire.Work], source: Sequence[Any]) -> Any:
    fn, args, kwargs = read(*source)
    return fn(*args, **kwargs)


class Worker(Endpoint):
    """The session on a rank above 0.

    Parameters
    ----------
    transport : Transport
        Moves the frames.
    surroundings : Surroundings
        The rest of the rank.
    clock : callable, optional
        Returns the time in seconds, by which batches are measured.
    progress : Progress, optional
        Is told which item of which batch begins.

    Attributes
    ----------
    done_call : int
        Number of the last call that ended; like `current_call`, read by the watching thread.
    is_damaged : bool
        Whether a rank has died, as rank 0 said when it ended the session.
    """

    def __init__(
        self,
        transport: Transport,
        surroundings: Surroundings,
        *,
        clock: Callable[[], float] = time.monotonic,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(transport, surroundings, None)
        self.done_call = 0
        self.is_damaged = False
        self._reported = 0
        self._host = self.host = surroundings.host
        self._children = children(transport.rank, transport.size)
        self._quitting = False
        self._in_user_code = False
        self._relays = False
        self._forked = False
        self._deferred: deque[Incoming] = deque()
        self._home: str | None = None
        batches = self.batches = self._new_batches(clock, progress)
        self._group: Relay | None = None  # this rank is its controller
        self.teams = Teams(self, batches, self._run_user_code, self._complete_sends)
        self.keep = batches.keep
        self.let_go = batches.let_go
        self._handlers.update(
            {
                Kind.TEAM_TASK: self.teams.on_task,
                Kind.TEAM_STOP: self.teams.on_stop,
                Kind.TEAM_MEET: self.teams.on_meet,
                Kind.TEAM_FORGET: self.teams.on_forget,
                Kind.FUNCTION: batches.on_function,
                Kind.BATCH: batches.on_batch,
                Kind.FORGET: batches.on_forget,
                Kind.GROUP: self.on_group,
                Kind.SHARE: BlockReceiver(transport, batches.keep).on_frame,
                Kind.SPAWN: self.on_spawn,
                Kind.CALL: self.on_call,
                Kind.SYNC: self.on_sync,
                Kind.REMOVE: self.on_remove,
                Kind.RENEW_COMM: self.on_renew_comm,
                Kind.DEBUG: self.on_debug,
                Kind.QUIT: self.on_quit,
                Kind.LOST: self.on_lost,
            }
        )

    def _new_batches(self, clock: Callable[[], float], progress: Progress | None) -> BatchRunner:
        registry, run_user_code = self._surroundings.registry, self._run_user_code
        return BatchRunner(self.transport, self.host, registry, run_user_code, self._complete_sends, clock, progress)

    def run(self) -> None:
        """Serve until rank 0 ends the session; the last frame sent is the good-bye."""
        os.register_at_fork(after_in_child=self._note_fork)  # asking for the process number takes 0.2 us each time
        with contextlib.suppress(OSError):  # the directory may be gone
            self._home = os.getcwd()
        with deferred_on_worker(self.transport, self.is_interruptible):
            self.serve_until_end()
            self.transport.send(0, Frame(Kind.BYE))

    def serve_until_end(self) -> None:
        """Serve until rank 0 ends the session."""
        while not self._quitting or self._deferred:
            due = math.inf if self._group is None else self._group.due
            item = self._deferred.popleft() if self._deferred else self.transport.receive(due)
            if item is not None:
                self.handle(*item)
                del item  # its arrays must not stay until the next ones have come
            if self._group is not None:
                self._group.send_parts()

    def is_interruptible(self) -> bool:
        """Tell whether an interrupt that comes now ends the user's function; called by the signal handler."""
        return self._in_user_code

    def _note_fork(self) -> None:
        self._forked = True

    def handle(self, source: int, frame: Frame) -> None:
        """Pass a frame of the tree on, then react to it; while work is under way, new work waits."""
        if (self._in_user_code or self._relays) and frame.kind not in _AT_ONCE:
            self._deferred.append((source, frame))
            return
        if self._children and frame.kind in TREE_KINDS:
            self._relay(frame)
        Endpoint.handle(self, source, frame)

    def serve_at_once(self) -> None:
        """Wait for a frame in the middle of a task, and react to it, unless it is work; raise if nobody may wait."""
        item = self.transport.receive(time.monotonic() + SERVE_S)
        if item is not None and item[1].kind in _AT_ONCE:
            Endpoint.handle(self, *item)
        elif item is not None:
            self._deferred.append(item)
        self.check_waiting()

    def _relay(self, frame: Frame) -> None:
        self.transport.send_to(self._children, frame, borrowed=True)
        if frame.buffers:  # the function may change the arrays
            self._complete_sends(math.inf)

    def _complete_sends(self, limit_s: float) -> None:
        """Move until borrowed memory may be changed; up to `limit_s` seconds until all is sent. New work waits."""
        self._relays = True
        try:
            deadline = time.monotonic() + limit_s
            self.transport.complete_sends(deadline, self.handle)
            while limit_s < math.inf and self.transport.n_unsent and time.monotonic() < deadline:
                item = self.transport.receive_nowait()
                if item is not None:
                    self.handle(*item)
        finally:
            self._relays = False

    # Tasks

    def on_spawn(self, source: int, frame: Frame) -> None:
        """Run a task and send how it ended."""
        _, number, attempt, option, body, buffers = frame
        self.mailbox.start(number)
        self.arrays.answer_orphans()
        self._log(1, "task %d started", number)
        value, exc = self._run_work(work.unpack_work, body, buffers, self._registry)
        body, buffers = b"", ()
        if exc is None and option & _VALUE_WANTED:
            packed, exc = run(pack, (value,))  # any __reduce__ may raise anything
            if exc is None:
                body, buffers = packed
        if exc is not None:
            failure = failure_of(exc, self.transport.rank, self._host)
            option |= ResultWanted.FAILED
            body = encode_failure(failure)
            self._log(1, "task %d failed: %s", number, failure.headline())
        self.mailbox.finish()
        self.arrays.answer_orphans()
        self._log(1, "task %d ended", number)
        self.transport.send(0, new_tuple(Frame, (_DONE, number, attempt, option, body, buffers)))
        flush_output()  # this and the next while the reply is on its way
        self._go_home()

    def _go_home(self) -> None:
        """Return to the directory in which the worker started: a task's `os.chdir` is its own affair."""
        try:
            moved = os.getcwd() != self._home
        except OSError:  # the task removed the directory that it was in
            moved = True
        if moved and self._home is not None:
            try:
                os.chdir(self._home)
            except OSError as exc:
                logger.warning("rank %d cannot return to %s: %s", self.transport.rank, self._home, exc)
                self._home = None

    def _run_work(self, read: Callable[..., wire.Work], *args: Any) -> Outcome:
        """Unpack and run work; a request that does not unpickle is a failure like any other."""
        return self._run_user_code(_read_and_call, read, args)

    def _run_user_code(self, fn: Callable[..., Any], *args: Any) -> Outcome:
        self._in_user_code = True
        try:
            outcome = run(fn, args)
            if self._forked:
                end_forked_child(outcome.exception)
            return outcome
        except KeyboardInterrupt as exc:  # a signal between two bytecodes of this method
            return Outcome(None, exc)
        finally:
            self._in_user_code = False
            self.transport.interrupted = False

    def take_letter(self, deadline: float, rank: int | None = None) -> Letter | None:
        """Wait for a letter on behalf of the running task; ends the task if the session ends meanwhile."""
        if self.current_call:
            raise UsageError(f"receiveMessage inside call {self.current_call}: no task runs while the call does")
        if self._quitting and not self.mailbox.holds(rank):
            raise CutOff("the session has ended")
        return self.receive_letter(deadline, rank)

    def is_reachable(self, rank: int, number: int) -> bool:
        """Tell whether such a task can exist; only of its own rank does a worker know which one runs."""
        if rank == self.transport.rank:
            return number == self.mailbox.number
        return (0 < rank < self.transport.size and number > 0) or rank == number == 0

    def check_waiting(self) -> None:
        """End the task that is about to wait, if the session has ended."""
        if self._quitting:
            raise CutOff("the session has ended")

    # Collective calls

    def on_call(self, source: int, frame: Frame) -> None:
        """Run this rank's part of a call."""
        number = frame.a
        option = frame.option
        if self._report is None:
            self.watch()
        self._registry.start_call(frame.b)
        self.current_call = number
        self.marks[_CURRENT_CALL] = number
        outcome = self._run_work(wire.unpack_work, frame.body, frame.buffers)
        if outcome.exception is None and option & CallOption.VALUE:
            outcome = self._send_value(number, outcome)
        if outcome.exception is not None:
            self._report_failure(number, outcome.exception, option)
        self.current_call = 0
        self.done_call = number
        self.marks[_DONE_CALL] = number
        self.marks[_CURRENT_CALL] = 0
        if outcome.exception is not None or option & CallOption.REPORT or number - self._reported >= REPORT_EVERY:
            self._report_done()

    def _send_value(self, number: int, outcome: Outcome) -> Outcome:
        packed = run(pack, (outcome.value,))
        if packed.exception is None:
            body, buffers = packed.value
            self.transport.send(0, Frame(Kind.CALL_VALUE, number, 0, 0, body, buffers))
        return packed

    def _report_failure(self, number: int, exc: BaseException, option: int) -> None:
        failure = failure_of(exc, self.transport.rank, self._host)
        self.watch()(number, failure.headline())
        if option & CallOption.PRINT:
            sys.stderr.write(f"Exception on rank {self.transport.rank}:\n{failure.traceback}")
            sys.stderr.flush()
        else:
            body = encode_failure(failure)
            self.transport.send(0, Frame(Kind.CALL_FAILED, number, self._registry.counter, 0, body))

    def _report_done(self) -> None:
        self._reported = self.done_call
        self.transport.send(0, Frame(Kind.CALLS_DONE, self.done_call, self._surroundings.n_comm_entries()))

    def on_sync(self, source: int, frame: Frame) -> None:
        """Say up to which call this rank is through."""
        self._report_done()

    def on_remove(self, source: int, frame: Frame) -> None:
        """Forget managed objects."""
        if len(frame.body) % 8:
            raise ProtocolError(f"a list of ids has {len(frame.body)} bytes")
        self._registry.discard(np.frombuffer(frame.body, dtype="<i8").tolist())

    def on_renew_comm(self, source: int, frame: Frame) -> None:
        """Replace the user's communicator, together with all other ranks."""
        self._surroundings.renew_comm()

    # Groups

    def on_group(self, source: int, frame: Frame) -> None:
        """Become the controller of a group, or note that this rank is in one."""
        members = read_group(frame, self.transport.rank, self.transport.size)
        if not members:
            self.batches.set_feeder(source, frame.b)
            return
        self._group = group = Relay(self.transport, members, frame.a, self.batches.on_forget)
        self._handlers.update(
            {
                Kind.FUNCTION: group.on_function,
                Kind.PORTION: group.on_portion,
                Kind.FORGET: group.on_forget,
                Kind.RECALL: group.on_recall,
                Kind.BATCH_DONE: group.on_batch_done,
            }
        )

    # The session

    def on_debug(self, source: int, frame: Frame) -> None:
        """Set the debug level."""
        self.debug = frame.a

    def on_lost(self, source: int, frame: Frame) -> None:
        """Give up another worker, of whose death rank 0 tells; then the transport does as from that one."""
        how = bytes(frame.body).decode(errors="replace")
        if source == frame.a:
            self.arrays.on_lost(source)
            self.teams.on_lost(source, how)
        elif source == 0 and frame.a != self.transport.rank:
            self.transport.lose(frame.a, how)

    def on_quit(self, source: int, frame: Frame) -> None:
        """Leave the loop, now or when the running task has ended; a task that waits for a message is ended."""
        self._quitting = True
        self.is_damaged = bool(frame.a)
        if self._waits or self.arrays.waits:
            raise CutOff("the session has ended")

    def _log(self, level: int, text: str, *args: object) -> None:
        """Send debug text to rank 0, which prints it in `receiveMessage`."""
        if self.debug >= level:
            line = f"[rank {self.transport.rank} {self._host}] " + text % args
            self.transport.send(0, Frame(Kind.LOG, body=line.encode(errors="backslashreplace")))
