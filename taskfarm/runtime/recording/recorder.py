"""What one rank remembers for the trace: spans of time, in bounded memory.

A span is a plain tuple, since one is made per task. When more than `MAX_SPANS` are here, neighbours on the same track
that lie together within the *resolution* become one span with a count and the sum of their times; the resolution
doubles until half of the places are free. From then on each track has an *open* span, a list, into which the next ones
go as long as they lie within the resolution: a span that comes late costs no place, and no more than an early one. So
spans longer than the resolution stay as they are, sums stay exact, and the trace says what its resolution is.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from types import FunctionType
from typing import Any, NamedTuple

from taskfarm.runtime.call_limits import run_within

__all__ = [
    "MAX_MARKS",
    "MAX_SPANS",
    "MIN_WAIT_NS",
    "SEVERAL",
    "Mark",
    "MarkHandler",
    "Recorder",
    "Recording",
    "Span",
    "Track",
    "max_spans",
    "name_of",
    "untimed",
]

MAX_SPANS = 100_000  # per rank: 25 MB of memory, 12 MB of the file
MAX_TOTAL_SPANS = 500_000  # of all ranks: a file of 60 MB
_MIN_SPANS = 2_000
MAX_MARKS = 1_000  # the last ones are kept: a program that fails does so at its end
MIN_WAIT_NS = 5_000  # what a message takes that is there already; not a wait
_FIRST_RESOLUTION_NS = 1_000
SEVERAL = "several"  # the name of merged spans of different names
_HELPERS = "taskfarm.objects._helpers"
_PLAIN = "taskfarm_plain"  # attribute of a timed function


class Track(IntEnum):
    """The lines of a rank in the trace."""

    TASK = 1  #: spawned tasks, and collective calls
    BATCH = 2  #: batches of the executor, with unpacking and packing
    ITEM = 3  #: tasks of the executor, which lie in batches
    IDLE = 4  #: nothing to do
    WAIT = 5  #: inside a task, for a message
    COMM = 6  #: inside a method of `objects.comm`
    SEND = 7  #: sends that have buffers, as long as they keep the rank
    RECEIVE = 8  #: arrivals of frames that have buffers; no length


_NAMED = frozenset({int(Track.TASK), int(Track.ITEM)})  # tracks whose names are counted when spans are merged


class Span(NamedTuple):
    """A span, or several that were merged.

    Attributes
    ----------
    track : Track
        Its line.
    name : str
        What was done.
    start, end : int
        Nanoseconds of this rank's clock.
    n : int
        How many spans it stands for; of a batch, its items.
    busy : int
        Sum of their lengths, ns.
    size : int
        Bytes that were moved.
    number : int
        Of the task, call or batch; of a transfer, the other rank.
    """

    track: int
    name: str
    start: int
    end: int
    n: int = 1
    busy: int = 0
    size: int = 0
    number: int = 0


Row = tuple[Any, ...]  # the fields of a span; a named tuple would take three times as long to make and to pickle

# An open span is a list of the same fields, and the longest of those that went into it.
_TRACK, _NAME, _START, _END, _N, _BUSY, _SIZE, _, _LONGEST = range(9)
_NEVER = 1 << 63
_NONE_OPEN: list[Any] = [0, "", 0, _NEVER, 0, 0, 0, 0, 0]  # nothing begins behind its end; never changed


class Mark(NamedTuple):
    """Something that happened: a moment, the event's name, and one line about it."""

    at: int
    event: str
    text: str


class Recording(NamedTuple):
    """All that one rank remembers, as it travels to rank 0.

    Attributes
    ----------
    rank : int
        Which one.
    host, pid : str and int
        Its process.
    started : int
        When it began, ns of its clock.
    resolution : int
        Shorter neighbours were merged, ns; 0 if none were.
    spans, marks : list
        In the order of their ends.
    n_marks : int
        How many marks there were; the last `MAX_MARKS` are kept.
    merged : dict
        Of the tasks that lost their names to merging, by name: how many, ns together, ns of the longest.
    sent, received : tuple of int
        Frames, and bytes of their bodies and buffers.
    """

    rank: int
    host: str
    pid: int
    started: int
    resolution: int
    spans: Sequence[Row]
    marks: Sequence[Mark]
    n_marks: int
    merged: Mapping[str, tuple[int, int, int]]
    sent: tuple[int, int]
    received: tuple[int, int]


class Recorder:
    """Takes in what happens on this rank.

    Parameters
    ----------
    rank : int
        This rank.
    host : str
        Name of its host.
    max_spans : int
        How many spans to keep.
    clock : callable
        Nanoseconds.

    Attributes
    ----------
    depth : int
        Inside how many functions of the user's this rank is.
    """

    def __init__(
        self, rank: int, host: str, max_spans: int = MAX_SPANS, clock: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self.rank = rank
        self.host = host
        self.clock = clock
        self.depth = 0
        self._started = clock()
        self.resolution = 0
        self.sent = [0, 0]
        self.received = [0, 0]
        self._max_spans = max_spans
        self._spans: list[Any] = []  # rows, and lists of which some are open
        self._open: list[list[Any]] = [_NONE_OPEN] * (max(Track) + 1)
        self._marks: deque[Mark] = deque(maxlen=MAX_MARKS)
        self._n_marks = 0
        self._merged: dict[str, list[int]] = {}

    def add(self, track: int, name: str, start: int, end: int, n: int = 1, size: int = 0, number: int = 0) -> None:
        """Note that something took from `start` to `end`."""
        busy = end - start
        resolution = self.resolution
        if not resolution:
            row: Any = (track, name, start, end, n, busy, size, number)
        else:
            one = self._open[track]
            if start >= one[_END] and end - one[_START] <= resolution:
                if one[_NAME] != name:
                    self._mix(one, name, busy)
                one[_END] = end
                one[_N] += n
                one[_BUSY] += busy
                one[_SIZE] += size
                if busy > one[_LONGEST]:
                    one[_LONGEST] = busy
                return
            self._count_open(one)
            self._open[track] = row = [track, name, start, end, n, busy, size, number, busy]
        spans = self._spans
        spans.append(row)
        if len(spans) >= self._max_spans:
            self._merge()

    def add_together(self, name: str, start: int, end: int, n: int) -> None:
        """Note that `n` items of a batch took from `start` to `end`; how long each of them took is not known."""
        if n > 1:
            self._close(Track.ITEM)
            self._spans.append((int(Track.ITEM), name, start, end, n, end - start, 0, 0))
            self._count_merged(name, n, end - start, (end - start) // n)
            if len(self._spans) >= self._max_spans:
                self._merge()
        elif n:
            self.add(Track.ITEM, name, start, end)

    def mark(self, event: str, text: str) -> None:
        """Note that `event` (failed, retry, lost, ...) happened just now."""
        self._n_marks += 1
        self._marks.append(Mark(self.clock(), event, text))

    def call(
        self, track: int, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], number: int = 0
    ) -> Any:
        """Run ``fn(*args, **kwargs)`` as a span; what it raises is marked, and goes on."""
        name = fn.__qualname__ if fn.__class__ is FunctionType and fn.__module__ != _HELPERS else name_of(fn, args)
        clock = self.clock
        self.depth += 1
        start = clock()
        try:
            return fn(*args, **kwargs)
        except BaseException as exc:
            self.mark("failed", f"{name}: {type(exc).__name__}")
            raise
        finally:
            self.add(track, name, start, clock(), 1, 0, number)
            self.depth -= 1

    def timed(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return `fn` as a function whose calls are spans."""
        clock, add, name, track = self.clock, self.add, name_of(fn), int(Track.ITEM)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                return fn(*args, **kwargs)
            except BaseException as exc:
                self.mark("failed", f"{name}: {type(exc).__name__}")
                raise
            finally:
                add(track, name, start, clock())

        timed.__dict__[_PLAIN] = fn
        return timed

    def recording(self) -> Recording:
        """Return everything that was noted."""
        self._close_all()
        return Recording(
            self.rank,
            self.host,
            os.getpid(),
            self._started,
            self.resolution,
            [tuple(row[: len(Span._fields)]) for row in self._spans],
            list(self._marks),
            self._n_marks,
            {name: (n, total, longest) for name, (n, total, longest) in self._merged.items()},
            (self.sent[0], self.sent[1]),
            (self.received[0], self.received[1]),
        )

    # Bounded memory

    def _merge(self) -> None:
        self._close_all()
        while len(self._spans) > self._max_spans // 2:
            self.resolution = max(_FIRST_RESOLUTION_NS, 2 * self.resolution)
            self._merge_neighbours()

    def _close_all(self) -> None:
        """Count what the open spans hold; the next ones open others."""
        for track in range(len(self._open)):
            self._close(track)

    def _close(self, track: int) -> None:
        self._count_open(self._open[track])
        self._open[track] = _NONE_OPEN

    def _count_open(self, one: Sequence[Any]) -> None:
        """Count the tasks of an open span, whose place is taken by another."""
        if one[_N] > 1 and one[_TRACK] in _NAMED and one[_NAME] != SEVERAL:
            self._count_merged(one[_NAME], one[_N], one[_BUSY], one[_LONGEST])

    def _mix(self, one: list[Any], name: str, busy: int) -> None:
        """Take the name from a span into which one of another name goes, and count both under theirs."""
        if one[_TRACK] in _NAMED:
            if one[_NAME] != SEVERAL:
                self._count_merged(one[_NAME], one[_N], one[_BUSY], one[_LONGEST])
            self._count_merged(name, 1, busy, busy)
        one[_NAME] = SEVERAL

    def _merge_neighbours(self) -> None:
        """Make one of neighbours that lie within the resolution; none is open."""
        resolution = self.resolution
        result: list[Any] = []
        last: dict[int, list[Any]] = {}  # by track
        for row in self._spans:
            track, name, start, end, n, busy, size, *_ = row
            one = last.get(track)
            if one is not None and start >= one[_END] and end - one[_START] <= resolution:
                if track in _NAMED:
                    if one[_N] == 1:
                        self._count_merged(one[_NAME], 1, one[_BUSY], one[_BUSY])
                    if n == 1:
                        self._count_merged(name, 1, busy, busy)
                if one[_NAME] != name:
                    one[_NAME] = SEVERAL
                one[_END] = end
                one[_N] += n
                one[_BUSY] += busy
                one[_SIZE] += size
                continue
            last[track] = one = list(row[: len(Span._fields)])
            result.append(one)
        self._spans = [tuple(row) for row in result]

    def _count_merged(self, name: str, n: int, busy: int, longest: int) -> None:
        sums = self._merged.get(name)
        if sums is None:
            self._merged[name] = [n, busy, longest]
        else:
            sums[0] += n
            sums[1] += busy
            if longest > sums[2]:
                sums[2] = longest


class MarkHandler(logging.Handler):
    """Turns what is logged from WARNING on into marks: ``extra={"event": "retry"}`` names the event."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(logging.WARNING)
        self._recorder = recorder

    def emit(self, record: logging.LogRecord) -> None:
        """Mark one record, unless it was made, and marked, on another rank."""
        if getattr(record, "rank", self._recorder.rank) == self._recorder.rank:
            self._recorder.mark(getattr(record, "event", None) or record.levelname.lower(), record.getMessage())
        # A program that has not set up logging is shown warnings only where there is no handler; here is this one.
        if logging.lastResort is not None and not logging.getLogger().handlers:
            logging.lastResort.handle(record)


def untimed(fn: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the function that `Recorder.timed` was given, None if `fn` does not come from there."""
    plain: Callable[..., Any] | None = getattr(fn, _PLAIN, None) if fn.__class__ is FunctionType else None
    return plain


def max_spans(size: int) -> int:
    """Return how many spans each of `size` ranks keeps."""
    return min(MAX_SPANS, max(_MIN_SPANS, MAX_TOTAL_SPANS // size))


def name_of(fn: Callable[..., Any], args: Sequence[Any] = ()) -> str:
    """Return what a function is called in the trace; of our own helpers (`method_call`, ...) with what they call."""
    if fn.__class__ is FunctionType and fn.__module__ != _HELPERS:  # the usual case
        return fn.__qualname__
    while isinstance(fn, functools.partial):
        fn = fn.func
    if fn is run_within:  # a call with a time limit
        return name_of(args[2], args[3:])
    name: str = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    if getattr(fn, "__module__", None) == _HELPERS:
        for arg in args:
            if callable(arg) or (isinstance(arg, str) and arg.isidentifier()):
                return f"{name}({arg if isinstance(arg, str) else name_of(arg)})"
    return name
