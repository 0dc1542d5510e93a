"""Collective calls, as rank 0 makes them.

What is known of the calls is in the book (`taskfarm.scheduling.calls`); this carries out what follows from it: sending
calls along the tree, running rank 0's own part, raising what workers reported, and repairing what a failure left.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from taskfarm.config import OnError
from taskfarm.errors import ProtocolError, RankFailure, RemoteError, WorkerLostError
from taskfarm.fast import new_tuple
from taskfarm.runtime.call_limits import run_within
from taskfarm.runtime.endpoint import Endpoint, Surroundings
from taskfarm.runtime.options import CallOption
from taskfarm.runtime.runner import decode_failure, describe, failure_of, run
from taskfarm.runtime.survival.vitals import Mark
from taskfarm.runtime.work import pack_work
from taskfarm.scheduling.calls import CallBook
from taskfarm.scheduling.tree import children
from taskfarm.wire.codec import unpack
from taskfarm.wire.frames import Frame, Kind

__all__ = ["Caller"]

logger = logging.getLogger(__name__)

_CALL = Kind.CALL  # hot path: see `taskfarm.fast`
_DEFERRED, _REPORT = OnError.DEFERRED, CallOption.REPORT
_LAST_CALL = int(Mark.LAST_CALL)
NOTES_PATIENCE_S = 1.0  # how long a failing call waits for the other ranks' outcomes before it raises


class Caller:
    """Rank 0's side of collective calls.

    Parameters
    ----------
    endpoint : Endpoint
        Rank 0's endpoint; serves frames while the caller waits.
    workers : sequence of int
        The other ranks.
    surroundings : Surroundings
        The rest of the rank.
    drain_tasks : callable
        Returns when no task is running, or raises.

    """

    def __init__(
        self,
        endpoint: Endpoint,
        workers: Sequence[int],
        surroundings: Surroundings,
        drain_tasks: Callable[[], None],
    ) -> None:
        self.book = CallBook(workers)
        self._outermost = 0  # where calls are nested: the first of those that rank 0 is inside of
        self._endpoint = endpoint
        self._transport = endpoint.transport
        self._workers = workers
        self._surroundings = surroundings
        self._registry = surroundings.registry
        self._drain_tasks = drain_tasks
        self._children = children(0, endpoint.transport.size)
        self._watched = False
        self.has_workers = bool(workers)
        self._limits = surroundings.call_limits
        self._values: dict[int, dict[int, Frame]] = {}
        self._lost: dict[int, str] = {}

    @property
    def done(self) -> int:
        """Number of the last call that rank 0 has left; calls inside a call do not count."""
        return self._outermost - 1 if self._outermost else self.book.last

    # Frames

    def on_failed(self, source: int, frame: Frame) -> None:
        """Note that a worker raised in a call."""
        failure = decode_failure(frame.body)
        if failure.rank != source:
            raise ProtocolError(f"a failure of rank {failure.rank} came from rank {source}")
        self.book.on_failed(frame.a, frame.b, failure)

    def on_value(self, source: int, frame: Frame) -> None:
        """Keep a worker's return value for the call that wants it."""
        if frame.a in self._values:
            self._values[frame.a][source] = frame

    def on_done(self, source: int, frame: Frame) -> None:
        """Note up to which call a worker is through."""
        self.book.on_done_up_to(source, frame.a, frame.b)

    def on_lost(self, rank: int, how: str) -> None:
        """Note that a worker died, outside of any call: there can be no other one."""
        self._lost[rank] = how
        self._workers = [worker for worker in self._workers if worker != rank]
        self.book.on_done_up_to(rank, self.book.last)

    def _check_complete(self) -> None:
        if self._lost:
            story = ", ".join(f"rank {rank} {how}" for rank, how in self._lost.items())
            raise WorkerLostError(f"call: a collective call needs all ranks, and {story}", tuple(self._lost))

    # Calls

    def call(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        mode: OnError,
        *,
        values: bool = False,
    ) -> Any:
        """Run ``fn(*args, **kwargs)`` on every rank; return rank 0's value, or with `values` everybody's.

        Raises
        ------
        RemoteError
            If workers failed in an earlier call (this one did not happen then), or, in mode ``wait`` or with
            `values`, in this one.
        UsageError
            If the function or an argument does not pickle, or tasks wait for messages that nobody sends.
        WorkerLostError
            If a rank has died; nothing was sent then.
        """
        self._prepare()
        self._check_complete()
        limit_s = self._limits.limit_s
        packed = (
            pack_work("call", fn, args, kwargs)
            if limit_s is None
            else pack_work("call", run_within, (limit_s, False, fn, *args), kwargs)
        )
        if not self._watched:
            self._watched = True
            self._endpoint.watch()
        counter = self._registry.counter
        number = self.book.begin(fn, counter)
        self._endpoint.marks[_LAST_CALL] = number
        option = 0
        if values:
            option = CallOption.REPORT | CallOption.VALUE
            self._values[number] = {}
        elif mode is not _DEFERRED:
            option = CallOption.REPORT if mode is OnError.WAIT else CallOption.PRINT
        body, buffers = packed
        frame = new_tuple(Frame, (_CALL, number, counter, option, body, buffers))
        if limit_s is None:
            result = self._send_and_run(frame, fn, args, kwargs)
        else:
            result = self._send_and_run_within(limit_s, frame, fn, args, kwargs)
        if not option & _REPORT:
            return result
        self._endpoint.serve_until(lambda: not self.book.behind(number))
        frames = self._values.pop(number, {})
        self._raise_untold()
        return [result, *self._worker_values(describe(fn), frames)] if values else result

    def _worker_values(self, what: str, frames: Mapping[int, Frame]) -> list[Any]:
        values = []
        for rank in self._workers:
            loaded = run(unpack, (frames[rank].body, frames[rank].buffers))
            if loaded.exception is not None:
                failure = failure_of(loaded.exception, rank, self._surroundings.host)
                raise RemoteError(f"loading the value of {what} from rank {rank}", [failure])
            values.append(loaded.value)
        return values

    def _send_and_run(
        self, frame: Frame, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Send a call and run rank 0's own part; from here on, the call ends here whatever happens."""
        number = frame.a
        outer, self._endpoint.current_call = self._endpoint.current_call, number
        self._outermost = self._outermost or number
        try:
            self._to_all(frame)
            if frame.buffers:
                self._transport.complete_sends(math.inf, self._endpoint.handle)
            result = fn(*args, **kwargs)
        except BaseException as exc:
            self._return_to(outer)
            self.book.on_local_end(number, self._registry.counter, raised=True)
            self._values.pop(number, None)
            if not outer:
                self._add_notes(number, exc)
            raise
        self._return_to(outer)
        self.book.on_local_end(number, self._registry.counter, raised=False)
        return result

    def _send_and_run_within(
        self, limit_s: float, frame: Frame, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Do as `_send_and_run`, for a call that has to end within `limit_s` seconds from now on."""
        number = frame.a
        self._limits.begin(number, limit_s, describe(fn), self.book.done_everywhere, time.monotonic())
        try:
            return self._send_and_run(frame, run_within, (limit_s, True, fn, *args), kwargs)
        finally:
            self._limits.left(number)

    def _return_to(self, outer: int) -> None:
        self._endpoint.current_call = outer
        if not outer:
            self._outermost = 0

    def _add_notes(self, number: int, exc: BaseException) -> None:
        """Attach what happened on the workers to rank 0's own exception."""
        self._endpoint.watch()(number, failure_of(exc, 0, self._surroundings.host).headline())
        if not isinstance(exc, Exception):
            return  # KeyboardInterrupt and SystemExit want to get out now
        self._settle(number, time.monotonic() + NOTES_PATIENCE_S)
        for failure in self.book.take_failures_of(number):
            note = f"[in the same collective call] {failure.headline()}\n{failure.traceback.rstrip()}"
            if hasattr(exc, "add_note"):
                exc.add_note(note)
            else:  # Python 3.10
                exc.__notes__ = [*getattr(exc, "__notes__", []), note]  # type: ignore[attr-defined]
        for rank in self.book.behind(number):
            logger.warning("rank 0: rank %d is still inside call %d, in which rank 0 raised", rank, number)

    def _prepare(self) -> None:
        self._endpoint.serve_now_and_then()
        self._drain_tasks()
        if self.book.is_calm and not self._registry.dying:
            return
        if self.book.has_untold:
            self._settle(self.book.last, time.monotonic() + NOTES_PATIENCE_S)
            self._raise_untold()
        if not self._endpoint.current_call:
            self._repair()
        if self.book.must_wait():
            self._endpoint.serve_until(lambda: not self.book.must_wait())
            if self.book.has_untold:
                self._prepare()
        if dead := self._registry.take_dead():
            self._remove_everywhere(dead)

    def _repair(self) -> None:
        """After a failure: learn every rank's outcome, drop ids that are not everywhere, renew the communicator."""
        if self.book.has_trouble:
            self._settle(self.book.last, math.inf)
            self._raise_untold()
        if orphans := self.book.take_orphans():
            self._remove_everywhere(orphans)
        if self.book.diverged:
            if self.book.has_used_comm(self._surroundings.n_comm_entries()):
                self._to_all(Frame(Kind.RENEW_COMM))
                self._surroundings.renew_comm()
            self.book.on_repaired()

    def before_task(self) -> None:
        """Do what a call does before it starts, as far as a task needs it: a task must not overtake a call."""
        if self.book.is_settled and not self._registry.dying:
            return
        self.settle(math.inf)
        self._raise_untold()
        if dead := self._registry.take_dead():
            self._remove_everywhere(dead)

    def settle(self, deadline: float) -> None:
        """Wait until every worker is through with all calls, or `deadline` has passed."""
        if self.book.done_everywhere < self.book.last:
            self._settle(self.book.last, deadline)

    def _settle(self, number: int, deadline: float) -> None:
        """Wait until every worker is through with call `number`, or `deadline` has passed."""
        if self.book.behind(number):
            self._to_all(Frame(Kind.SYNC))
            self._endpoint.serve_until(lambda: not self.book.behind(number), deadline)

    def _raise_untold(self) -> None:
        untold = self.book.take_untold()
        if untold:
            raise _remote_error(untold)

    def _remove_everywhere(self, obj_ids: Sequence[int]) -> None:
        self._registry.discard(obj_ids)
        self._to_all(Frame(Kind.REMOVE, body=np.array(obj_ids, dtype="<i8").tobytes()))

    def _to_all(self, frame: Frame) -> None:
        if self._lost:  # the tree is broken; who is left hears of what matters without calls, how far they are
            if frame.kind is Kind.SYNC:
                self._transport.send_to(self._workers, frame)
            return
        self._transport.send_to(self._children, frame, borrowed=True)

    def take_untold_failures(self) -> RemoteError | None:
        """Return, once, the failures that nobody has been told of, as the error to raise or print."""
        untold = self.book.take_untold()
        return _remote_error(untold) if untold else None


def _remote_error(untold: Sequence[tuple[int, object, Sequence[RankFailure]]]) -> RemoteError:
    what = ", ".join(f"call {number} ({describe(fn)})" for number, fn, _ in untold)
    return RemoteError(what, [failure for *_, failures in untold for failure in failures])
