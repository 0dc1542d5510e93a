"""Is a process alive, and can the job do without it? Decided from what its supervisor sees of it.

A *pulse* is judged from outside. A rank's own thread counts beats; it stops when the process is stopped, or when C code
holds the interpreter's lock. The latter is no fault as long as the process computes, so the time that counts against it
is the time in which it neither beats nor uses its processor. Looks are expected at short, even intervals: time in which
nobody looked (the machine slept, the whole job was suspended) counts against nobody.
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
    beat : int
        How often its own thread has beaten.
    cpu_s : float
        Processor time that it has used.
    state : str
        Letter of its state in ``/proc``: T if it is stopped, t if by a debugger, D while it waits for a disk.
    """

    now: float
    beat: int
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
        self._idle_s = 0.0
        self._silent_s = 0.0

    def on_look(self, look: Look) -> str:
        """Take in a look; return what is wrong with the process, or an empty string."""
        last, self._last = self._last, look
        if last is None or look.beat != last.beat or look.state in ("t", "D"):
            self._idle_s = self._silent_s = 0.0
            return ""
        passed = look.now - last.now
        if passed > MAX_LATE * self._interval_s:
            return ""
        self._silent_s += passed
        self._idle_s = 0.0 if look.cpu_s - last.cpu_s > BUSY * passed else self._idle_s + passed
        if self._idle_s >= self._limit_s:
            return f"was stopped for {self._limit_s:g} s" if look.state == "T" else self._no_sign(self._limit_s)
        if self._silent_s >= self._busy_limit_s:
            return self._no_sign(self._busy_limit_s)
        return ""

    @staticmethod
    def _no_sign(limit_s: float) -> str:
        return f"gave no sign of life for {limit_s:g} s"


class Standing(NamedTuple):
    """Where a rank was with collective calls when it died: the last call that it has left, and the one it was in."""

    done_call: int
    current_call: int


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
    return ""
