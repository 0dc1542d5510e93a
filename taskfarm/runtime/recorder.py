"""What one rank remembers for the trace: spans of time, in bounded memory.

A span is a plain tuple, since one is made per task. When more than `MAX_SPANS` are here, neighbours on the same track
that lie together within the *resolution* become one span with a count and the sum of their times; the resolution
doubles until half of the places are free. So spans longer than the resolution stay as they are, sums stay exact, and
the trace says what its resolution is.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from itertools import islice
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
        self._spans: list[Row] = []
        self._n_merged = 0  # so many of them cannot be merged at this resolution
        self._marks: deque[Mark] = deque(maxlen=MAX_MARKS)
        self._n_marks = 0
        self._merged: dict[str, list[int]] = {}

    def add(self, track: int, name: str, start: int, end: int, n: int = 1, size: int = 0, number: int = 0) -> None:
        """Note that something took from `start` to `end`."""
        spans = self._spans
        spans.append((track, name, start, end, n, end - start, size, number))
        if len(spans) >= self._max_spans:
            self._merge()

    def mark(self, event: str, text: str) -> None:
        """Note that `event` (failed, retry, lost, ...) happened just now."""
        self._n_marks += 1
        self._marks.append(Mark(self.clock(), event, text))

    def call(
        self, track: int, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], number: int = 0
    ) -> Any:
        """Run ``fn(*args, **kwargs)`` as a span; what it raises is marked, and goes on."""
        name = name_of(fn, args)
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
        return Recording(
            self.rank,
            self.host,
            os.getpid(),
            self._started,
            self.resolution,
            list(self._spans),
            list(self._marks),
            self._n_marks,
            {name: (n, total, longest) for name, (n, total, longest) in self._merged.items()},
            (self.sent[0], self.sent[1]),
            (self.received[0], self.received[1]),
        )

    # Bounded memory

    def _merge(self) -> None:
        if self.resolution:
            self._merge_neighbours(self._n_merged)
        while len(self._spans) > self._max_spans // 2:
            self.resolution = max(_FIRST_RESOLUTION_NS, 2 * self.resolution)
            self._merge_neighbours(0)
        self._n_merged = len(self._spans)

    def _merge_neighbours(self, first: int) -> None:
        """Make one of neighbours, from `first` on, that lie within the resolution.

        A plain loop, and lists that are changed in place: this is done to every span.
        """
        resolution = self.resolution
        result = self._spans[:first]
        open_: dict[int, list[Any]] = {}  # by track: the place in the result, then the fields of the span so far
        for row in islice(self._spans, first, None):
            track, name, start, end, n, busy, size, _ = row
            one = open_.get(track)
            if one is not None and start >= one[4] and end - one[3] <= resolution:
                if track in _NAMED:
                    if one[5] == 1:
                        self._count_merged(one[2], one[6])
                    if n == 1:
                        self._count_merged(name, busy)
                if one[2] != name:
                    one[2] = SEVERAL
                one[4] = end
                one[5] += n
                one[6] += busy
                one[7] += size
                result[one[0]] = ()
                continue
            if one is not None and result[one[0]] == ():
                result[one[0]] = tuple(one[1:])
            open_[track] = [len(result), *row]
            result.append(row)
        for one in open_.values():
            result[one[0]] = tuple(one[1:])
        self._spans = result

    def _count_merged(self, name: str, busy: int) -> None:
        sums = self._merged.get(name)
        if sums is None:
            self._merged[name] = [1, busy, busy]
        else:
            sums[0] += 1
            sums[1] += busy
            if busy > sums[2]:
                sums[2] = busy


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
    plain: Callable[..., Any] | None = getattr(fn, "__dict__", {}).get(_PLAIN)
    return plain


def max_spans(size: int) -> int:
    """Return how many spans each of `size` ranks keeps."""
    return min(MAX_SPANS, max(_MIN_SPANS, MAX_TOTAL_SPANS // size))


def name_of(fn: Callable[..., Any], args: Sequence[Any] = ()) -> str:
    """Return what a function is called in the trace; of our own helpers (`method_call`, ...) with what they call."""
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
