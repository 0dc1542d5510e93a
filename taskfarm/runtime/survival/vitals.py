"""What a rank and its supervisor share, and what the supervisor can see of the rank from outside."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import signal
import time
from enum import IntEnum
from typing import NoReturn

from taskfarm.scheduling.survival import Look

__all__ = [
    "LOOKS_PER_LIMIT",
    "LOST_STATUS",
    "MAX_BEAT_S",
    "SILENCE_OF_HOST",
    "Life",
    "Mark",
    "describe_end",
    "end_like",
    "look_at",
    "map_page",
    "new_page",
    "no_marks",
    "remove_segments",
    "segments_of",
]

LOST_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the job could not go on without a rank that died; try again
LOOKS_PER_LIMIT = 5  # looks at the pulse, and words to the hub, in the time after which silence is death
MAX_BEAT_S = 0.4  # between two beats: a rank that stops is noticed that much earlier than it might be
# Of that time, after which a host that has not said a word is lost: word and look come late by an interval each, and
# the job must have ended when the time is up.
SILENCE_OF_HOST = 0.6
_PAGE_BYTES = 4096
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
# Shared memory that MPICH and Open MPI leave behind when their ranks do not finalize, and the doorbells' own.
_SEGMENT = re.compile(r"/dev/shm/(?:mpich_|sm_segment\.|vader_segment\.|taskfarm-)\S+$")


class Mark(IntEnum):
    """Where a number lies in the page that a rank shares with its supervisor, in units of 8 bytes."""

    BEAT = 0  #: when the rank's thread has beaten last, in nanoseconds of `time.monotonic_ns`
    DONE_CALL = 1  #: the last collective call that it has left
    CURRENT_CALL = 2  #: the one that it is in
    LAST_CALL = 3  #: rank 0: the last one that it has sent
    LIFE = 4  #: rank 0: how far the job is (`Life`)
    STATUS = 5  #: rank 0: the status that the script ended with, once it is LEAVING
    NEWS = 6  #: rank 0: how many losses the supervisor has told it of
    MEETING = 7  #: 1 while other ranks of a task count on this one to make their communicator


class Life(IntEnum):
    """How far a job is, as far as a death is concerned."""

    STARTING = 0  #: nobody can be spared yet
    WORKING = 1  #: workers can be spared
    LEAVING = 2  #: the script has ended; only MPI has to be left


def map_page(descriptor: int) -> memoryview:
    """Return the shared page behind `descriptor` as int64."""
    return memoryview(mmap.mmap(descriptor, _PAGE_BYTES)).cast("q")


def no_marks() -> memoryview:
    """Return what stands for the page in a rank that has no supervisor."""
    return memoryview(bytearray(8 * len(Mark))).cast("q")


def new_page() -> int:
    """Return the descriptor of a new page, which processes that are forked share."""
    descriptor = os.memfd_create("taskfarm-vitals")
    os.ftruncate(descriptor, _PAGE_BYTES)
    return descriptor


def look_at(pid: int, beat_ns: int, now: float) -> Look:
    """Return what is seen of the process `pid` now, whose last beat is known."""
    state, cpu_s = "R", 0.0
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
        state, cpu_s = fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return Look(now, beat_ns * 1e-9, cpu_s, state)


def segments_of(pid: int) -> set[str]:
    """Return the paths of the MPI library's shared memory that a living process maps."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
        return {match[0] for line in maps if (match := _SEGMENT.search(line.rstrip()))}
    return set()


def remove_segments(paths: set[str]) -> None:
    """Unlink shared memory whose users are gone."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)


def describe_end(wait_status: int) -> str:
    """Return what a wait status says, as the rest of a sentence."""
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    return f"exited with status {os.WEXITSTATUS(wait_status)}"


def end_like(wait_status: int) -> NoReturn:
    """End this process in the way in which another one has ended, so that the launcher sees what it always sees."""
    if os.WIFSIGNALED(wait_status):
        import resource

        number = os.WTERMSIG(wait_status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the rank has left one if one is wanted
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        time.sleep(1.0)
        os._exit(128 + number)
    os._exit(os.WEXITSTATUS(wait_status))
