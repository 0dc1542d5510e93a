"""Time limits of collective calls: which calls have one, and what each rank does about it by itself.

Theory of operation. A call with a limit is noted here by rank 0 when it is sent, and crossed out for rank 0 when its
own part has ended. The watching thread (`taskfarm.runtime.watcher`) sleeps until the first limit is over, asks all
ranks where they are, and ends the job if any of them has not left the call: each may be inside code that
communicates, so none of them can be taken out of it by itself.

Code that holds the interpreter's lock keeps the watching thread from running. So each rank also has a timer of
`faulthandler` run while it is in such a call, which needs no lock: it prints the stacks of a rank that cannot be asked,
and ends rank 0, if that is the one.
"""

from __future__ import annotations

import faulthandler
import math
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["CallLimits", "main_thread_stack", "run_alone", "run_within"]

SHOW_AFTER_S = 0.6  # behind the limit: ranks that can be asked have answered, and are shown in the error
END_AFTER_S = 3.0  # behind the limit: the watching thread of rank 0 has not ended the job, since it cannot run
MAX_KEPT = 1024  # of calls with limits, before those that have ended are sought; rank 0 may be 256 ahead
MAX_TIMER_S = 1e8  # three years; `faulthandler` cannot do for ever
MAX_FRAMES = 40  # of a stack that is shown; the innermost ones
_STDERR = 2

_backstop = threading.Lock()  # the timer, of which a process has one: that of the outermost call


class _Limit(NamedTuple):
    """When a call is to be over, the limit that it was given, and what it calls."""

    deadline: float
    limit_s: float
    what: str


class CallLimits:
    """The limits of one session.

    Attributes
    ----------
    limit_s : float or None
        For calls that are made now.
    wake : callable
        Is called when a limit ends earlier than all others.
    """

    def __init__(self) -> None:
        self.limit_s: float | None = None
        self.wake: Callable[[], None] = _do_nothing
        self._limits: dict[int, _Limit] = {}  # by call
        self._inside: set[int] = set()  # calls whose part on rank 0 has not ended
        self._next = math.inf
        self._lock = threading.Lock()

    def begin(self, number: int, limit_s: float, what: str, done_everywhere: int, now: float) -> None:
        """Note that a call begins, given the last one that all workers have left."""
        with self._lock:
            if len(self._limits) >= MAX_KEPT:
                for old in [old for old in self._limits if old <= done_everywhere and old not in self._inside]:
                    del self._limits[old]
            self._inside.add(number)
            limit = self._limits[number] = _Limit(now + limit_s, limit_s, what)
            is_first = limit.deadline < self._next
            self._next = min(self._next, limit.deadline)
        if is_first:
            self.wake()

    def left(self, number: int) -> None:
        """Note that rank 0 has left a call."""
        self._inside.discard(number)

    def has_left(self, number: int) -> bool:
        """Tell whether rank 0 has left a call that has, or had, a limit."""
        return number not in self._inside

    def seconds_left(self, now: float) -> float | None:
        """Return how long it takes until a limit is over, None if there is none."""
        return None if self._next == math.inf else max(0.0, self._next - now)

    def take_due(self, done_up_to: Mapping[int, int], now: float) -> list[tuple[int, str]]:
        """Return the calls whose time is over, as far as they are not known to have ended, and what to say of them."""
        if now < self._next:
            return []
        with self._lock:
            due = [(number, limit) for number, limit in self._limits.items() if limit.deadline <= now]
            for number, _ in due:
                del self._limits[number]
            self._next = min((limit.deadline for limit in self._limits.values()), default=math.inf)
        known = min(done_up_to.values(), default=0)
        return [
            (number, f"call {number} ({limit.what}) has not ended on all ranks after its {limit.limit_s:g} s")
            for number, limit in due
            if known < number or number in self._inside
        ]


def run_within(limit_s: float, is_last: bool, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run ``fn(*args, **kwargs)`` as a part of a call that has `limit_s` seconds.

    With `is_last`, nobody else can end the job if this process cannot be asked: it ends itself then, with status 1.
    """
    if not _backstop.acquire(blocking=False):
        return fn(*args, **kwargs)
    try:
        after_s = END_AFTER_S if is_last else SHOW_AFTER_S
        faulthandler.dump_traceback_later(min(limit_s + after_s, MAX_TIMER_S), exit=is_last, file=_STDERR)
        try:
            return fn(*args, **kwargs)
        finally:
            faulthandler.cancel_dump_traceback_later()
    finally:
        _backstop.release()


def run_alone(
    limit_s: float, what: str, end_job: Callable[[str], None], fn: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """Run ``fn(*args, **kwargs)`` as a call of the one rank that there is; `what` says what the call is."""

    def end() -> None:
        end_job(f"{what} has not ended after its {limit_s:g} s:\n{main_thread_stack().rstrip()}\n  ending the job")

    timer = threading.Timer(min(limit_s, MAX_TIMER_S), end)
    timer.daemon = True
    timer.start()
    try:
        return run_within(limit_s, True, fn, *args, **kwargs)
    finally:
        timer.cancel()


def main_thread_stack() -> str:
    """Return the main thread's stack as a traceback shows it: of a call with a time limit, what the call does."""
    ident = threading.main_thread().ident
    frames = traceback.extract_stack(sys._current_frames().get(ident) if ident is not None else None)
    own = [index for index, entry in enumerate(frames) if entry.filename == __file__]
    inside = frames[own[-1] + 1 :] if own else frames
    return "".join(traceback.format_list(inside[-MAX_FRAMES:]))


def _do_nothing() -> None: ...
