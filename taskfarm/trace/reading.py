"""A trace file as arrays."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from taskfarm.errors import UsageError
from taskfarm.runtime.recording.recorder import Track
from taskfarm.runtime.recording.trace_file import FORMAT

__all__ = ["Clock", "Line", "Mark", "RankTrace", "Trace", "read_trace"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """The spans of one track, or of one name on it.

    Attributes
    ----------
    start, end : ndarray
        Seconds, float64, shape (n_spans,).
    busy : ndarray
        Sums of the lengths of the spans that were merged into each; seconds.
    n : ndarray
        How many those were.
    size : ndarray
        Bytes.
    """

    start: Floats
    end: Floats
    busy: Floats
    n: Floats
    size: Floats

    @classmethod
    def of(cls, rows: Sequence[tuple[float, float, float, float, float]]) -> Line:
        """Return a line of rows (start, end, busy, n, size)."""
        columns = np.array(rows, dtype=np.float64).reshape(-1, 5).T
        return cls(*columns)

    @property
    def seconds(self) -> float:
        """The time that all its spans took."""
        return float(self.busy.sum())


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a moment (seconds)."""

    at: float
    event: str
    text: str


@dataclass(frozen=True, slots=True)
class Clock:
    """How a rank's clock was aligned with that of rank 0."""

    aligned: bool
    offset_s: float
    error_s: float
    drift_ppm: float


@dataclass(frozen=True)
class RankTrace:
    """One rank.

    Attributes
    ----------
    lines : mapping of Track to (mapping of str to Line)
        Spans by track, then by name.
    merged : mapping of str to tuple
        Of tasks that lost their names to merging, by name: how many, seconds, seconds of the longest.
    sent, received : tuple of int
        Frames and bytes.
    resolution_s : float
        Neighbours that lay within it were merged; 0 if none were.
    """

    rank: int
    host: str
    clock: Clock
    lines: Mapping[Track, Mapping[str, Line]]
    marks: Sequence[Mark]
    n_marks: int
    merged: Mapping[str, tuple[int, float, float]]
    sent: tuple[int, int]
    received: tuple[int, int]
    resolution_s: float

    def seconds(self, *tracks: Track) -> float:
        """Return the time that the spans of `tracks` took together."""
        return sum(line.seconds for track in tracks for line in self.lines.get(track, {}).values())

    @property
    def busy_s(self) -> float:
        """Time in tasks, calls and batches, without waiting inside of them."""
        return max(0.0, self.seconds(Track.TASK, Track.BATCH) - self.waiting_s)

    @property
    def waiting_s(self) -> float:
        """Time that tasks waited for others."""
        return self.seconds(Track.WAIT, Track.COMM)


@dataclass(frozen=True)
class Trace:
    """A whole trace.

    Attributes
    ----------
    ranks : sequence of RankTrace
        Those that handed in what they recorded.
    absent : sequence of int
        The others.
    length_s : float
        From the opening of the session to the end of the last span.
    """

    name: str
    size: int
    ranks: Sequence[RankTrace]
    absent: Sequence[int]
    length_s: float

    @property
    def workers(self) -> Sequence[RankTrace]:
        """All ranks but rank 0; rank 0 where it is alone."""
        return [rank for rank in self.ranks if rank.rank > 0] or self.ranks


def read_trace(path: str | Path) -> Trace:
    """Read a trace that taskfarm wrote.

    Raises
    ------
    UsageError
        If the file is not there, or something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read ({exc.strerror})") from exc
    except ValueError as exc:
        raise UsageError(f"{path} is not a trace: {exc}") from exc
    about = content.get("taskfarm") if isinstance(content, dict) else None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UsageError(f"{path} is not a trace that this version of taskfarm wrote (`taskfarm run --trace FILE`)")
    spans: dict[int, dict[Track, dict[str, list[tuple[float, float, float, float, float]]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    marks: dict[int, list[Mark]] = defaultdict(list)
    for event in content["traceEvents"]:
        if event["ph"] == "X":
            start, length, args = event["ts"] / 1e6, event["dur"] / 1e6, event.get("args", {})
            row = start, start + length, args.get("busy", event["dur"]) / 1e6, args.get("n", 1), args.get("bytes", 0)
            spans[event["pid"]][Track(event["tid"])][event["name"]].append(row)
        elif event["ph"] == "i":
            marks[event["pid"]].append(Mark(event["ts"] / 1e6, event["name"], event["args"]["text"]))
    ranks = [_rank(entry, spans[entry["rank"]], marks[entry["rank"]]) for entry in about["ranks"]]
    return Trace(Path(path).name, about["size"], ranks, about["absent"], about["length_us"] / 1e6)


def _rank(
    about: Mapping[str, Any],
    spans: Mapping[Track, Mapping[str, Sequence[tuple[float, float, float, float, float]]]],
    marks: Sequence[Mark],
) -> RankTrace:
    clock = about["clock"]
    return RankTrace(
        about["rank"],
        about["host"],
        Clock(clock["aligned"], clock["offset_us"] / 1e6, clock["error_us"] / 1e6, clock["drift_ppm"]),
        {track: {name: Line.of(rows) for name, rows in names.items()} for track, names in spans.items()},
        marks,
        about["n_marks"],
        {name: (n, us / 1e6, longest / 1e6) for name, (n, us, longest) in about["merged"].items()},
        tuple(about["sent"]),
        tuple(about["received"]),
        about["resolution_us"] / 1e6,
    )
