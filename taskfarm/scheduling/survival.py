"""Is a process alive, and can the job do without it? Decided from what its supervisor sees of it.

A *pulse* is judged from outside. A rank's own thread notes the time at short intervals; it stops when the process is
stopped, or when C code holds the interpreter's lock. The latter is no fault as long as the process computes, so the
time that counts against it begins with its last beat, or with the last interval in which it used its processor. Looks
are expected at short, even intervals, and once more at the moment at which the limit is reached (`Pulse.next_look`):
time in which nobody looked (the machine slept, the whole job was suspended) counts against nobody.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["Look", "Pulse", "Standing", "fatal_reason"]

BUSY = 0.01  # part of a look's interval for which a process that computes has used the processor
MAX_LATE = 2.0  # a look later than so many intervals comes from an observer that was suspended itself


class Look(NamedTuple):
    """What was seen of a process.

    Attributes
    ----------
    now : float
        When, seconds.
    beat : float
        When its own thread has beaten last, by the same clock; 0 if never.
    cpu_s : float
        Processor time that it has used.
    state : str
        Letter of its state in ``/proc``: T if it is stopped, t if by a debugger, D while it waits for a disk.
    """

    now: float
    beat: float
    cpu_s: float
    state: str


class Pulse:
    """Judges looks at one process.

    Parameters
    ----------
    interval_s : float
        How often it is looked at.
    limit_s : float
        Seconds without a beat and without work, after which it counts as dead.
    busy_limit_s : float
        Seconds without a beat in which it worked; infinite unless the user sets it, since long tasks are healthy.
    """

    def __init__(self, interval_s: float, limit_s: float, busy_limit_s: float = math.inf) -> None:
        self._interval_s = interval_s
        self._limit_s = limit_s
        self._busy_limit_s = busy_limit_s
        self._last: Look | None = None
        self._is_silent = False
        self._silent_since = 0.0
        self._idle_since = 0.0

    def next_look(self, now: float) -> float:
        """Return when to look again: in an interval, or as soon as the limit is reached."""
        due = self._idle_since + self._limit_s
        return due if self._is_silent and now < due < now + self._interval_s else now + self._interval_s

    def on_look(self, look: Look) -> str:
        """Take in a look; return what is wrong with the process, or an empty string."""
        last, self._last = self._last, look
        if last is None or look.state in ("t", "D") or look.now - last.now > MAX_LATE * self._interval_s:
            return self._begin_anew(look.now)
        if look.beat != last.beat:
            return self._begin_anew(min(look.beat, look.now))
        if (
            not self._is_silent
        ):  # what it used of its processor since the last look, it may have used before it fell silent
            self._is_silent = True
        elif look.cpu_s - last.cpu_s > BUSY * (look.now - last.now):
            self._idle_since = look.now
        if look.now - self._idle_since >= self._limit_s:
            return f"was stopped for {self._limit_s:g} s" if look.state == "T" else self._no_sign(self._limit_s)
        if look.now - self._silent_since >= self._busy_limit_s:
            return self._no_sign(self._busy_limit_s)
        return ""

    def _begin_anew(self, since: float) -> str:
        self._silent_since = self._idle_since = since
        self._is_silent = False
        return ""

    @staticmethod
    def _no_sign(limit_s: float) -> str:
        return f"gave no sign of life for {limit_s:g} s"


class Standing(NamedTuple):
    """Where a rank was with collective operations when it died.

    Attributes
    ----------
    done_call, current_call : int
        The last collective call that it has left, and the one it was in.
    in_meeting : bool
        Whether it was about to make a communicator with the other ranks of a task.
    """

    done_call: int
    current_call: int
    in_meeting: bool = False


def fatal_reason(standing: Standing, last_call: int) -> str:
    """Return why the job cannot go on without a rank, or an empty string.

    Parameters
    ----------
    standing : Standing
        Of the dead rank.
    last_call : int
        Number of the last call that rank 0 has sent.
    """
    if standing.current_call:
        return f"inside collective call {standing.current_call}"
    if standing.done_call < last_call:
        return f"before it had run collective call {standing.done_call + 1}"
    if standing.in_meeting:
        return "while the ranks of a task made their communicator"
    return ""
