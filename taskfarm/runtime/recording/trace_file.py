"""The trace as a file: Chrome's trace event format, which Perfetto (https://ui.perfetto.dev) and chrome://tracing open.

A rank is a process of the trace, and each `Track` a thread of it. Spans are complete events (``ph: "X"``), marks are
instants (``ph: "i"``). What the format has no place for stands under ``"taskfarm"``. The file is written as the ranks
hand in what they recorded: rank 0 never holds more than one of them beside its own.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from taskfarm.runtime.recording.recorder import Recording, Span, Track

__all__ = ["FORMAT", "Clock", "TraceFile"]

FORMAT = 1  # number of this form of the "taskfarm" part
_NAMES = {
    Track.TASK: "tasks",
    Track.BATCH: "batches",
    Track.ITEM: "tasks in batches",
    Track.IDLE: "idle",
    Track.WAIT: "waiting inside tasks",
    Track.COMM: "comm",
    Track.SEND: "sends",
    Track.RECEIVE: "arrivals",
}
_MARKS = 9  # the line of the marks


class Clock(NamedTuple):
    """How a rank's clock differs from that of rank 0, at one moment; nanoseconds.

    Attributes
    ----------
    at : int
        When, by the rank's clock.
    offset : int
        The rank's clock minus that of rank 0.
    error : int
        Uncertainty of `offset`.
    """

    at: int
    offset: int
    error: int

    @classmethod
    def from_answer(cls, sent: int, theirs: int, received: int) -> Clock:
        """Return what follows of a question, sent and answered by rank 0's clock, and the clock in the answer."""
        error = (received - sent + 1) // 2
        offset = theirs - (sent + received) // 2
        return cls(theirs, 0 if abs(offset) <= error else offset, error)


class TraceFile:
    """A trace that is being written, beside its place; it takes its place when it is complete.

    Parameters
    ----------
    path : str
        Its place.
    size : int
        Number of ranks.
    ended : int, optional
        When the program had ended, ns of rank 0's clock: that workers wait until they are asked is no part of it.
    """

    def __init__(self, path: str, size: int, ended: int | None = None) -> None:
        self._path = path
        self._part = f"{path}.part"
        self._size = size
        self._ended = ended
        self._ranks: list[dict[str, Any]] = []
        self._origin = 0
        self._end = 0
        self._separator = ""
        self._file: TextIO = open(self._part, "w", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        self._file.write('{"displayTimeUnit": "ms", "traceEvents": [')

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()
        if exc is None:
            os.replace(self._part, self._path)
        else:
            os.unlink(self._part)

    def add(self, recording: Recording, clocks: Sequence[Clock]) -> None:
        """Write what a rank recorded; rank 0's, whose clock counts, comes first."""
        shift, drift, error = _fit(clocks)
        spans = [Span(*span) for span in recording.spans]
        if not self._ranks:
            self._origin = recording.started
        limit = math.inf if self._ended is None else (self._ended - self._origin) / 1e3
        rank = recording.rank

        def microseconds(at: int) -> float:
            ours = at - shift - drift * (at - (clocks[0].at if clocks else at))
            return max(0.0, round((ours - self._origin) / 1e3, 3))  # ranks open a moment before rank 0 has done so

        self._write_names(recording)
        for span in spans:
            start = microseconds(span.start)
            end = min(microseconds(span.end), limit)
            if start > end:
                continue
            self._end = max(self._end, int(end))
            args = {"n": span.n, "busy": round(min(span.busy / 1e3, end - start), 3)} if span.n != 1 else {}
            args |= {key: value for key, value in (("number", span.number), ("bytes", span.size)) if value}
            event = {
                "ph": "X", "pid": rank, "tid": int(span.track), "ts": start, "dur": round(end - start, 3),
                "name": span.name, "cat": _NAMES[Track(span.track)],
            }  # fmt: skip
            self._write(event | ({"args": args} if args else {}))
        for mark in recording.marks:
            event = {
                "ph": "i", "s": "p", "pid": rank, "tid": _MARKS, "ts": microseconds(mark.at), "name": mark.event,
                "cat": "marks", "args": {"text": mark.text},
            }  # fmt: skip
            self._write(event)
        self._ranks.append(_about(recording, clocks, shift, drift, error))

    def _write_names(self, recording: Recording) -> None:
        rank = recording.rank
        self._write(_metadata("process_name", rank, 0, {"name": f"rank {rank} on {recording.host}"}))
        self._write(_metadata("process_sort_index", rank, 0, {"sort_index": rank}))
        for track, name in [*_NAMES.items(), (_MARKS, "marks")]:
            self._write(_metadata("thread_name", rank, int(track), {"name": name}))
            self._write(_metadata("thread_sort_index", rank, int(track), {"sort_index": int(track)}))

    def _write(self, event: dict[str, Any]) -> None:
        self._file.write(self._separator + "\n" + json.dumps(event))
        self._separator = ","

    def finish(self, absent: Sequence[int]) -> None:
        """Write the end; `absent` ranks did not hand in anything."""
        about = {
            "format": FORMAT,
            "size": self._size,
            "length_us": self._end,
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "absent": list(absent),
            "ranks": self._ranks,
        }
        self._file.write('\n], "taskfarm": ' + json.dumps(about) + "}\n")


def _fit(clocks: Sequence[Clock]) -> tuple[int, float, int]:
    """Return offset (ns), drift, and uncertainty (ns) of a rank's clock, which was read once or twice, or never."""
    if not clocks:
        return 0, 0.0, 0
    first, last = clocks[0], clocks[-1]
    drift = (last.offset - first.offset) / (last.at - first.at) if last.at > first.at else 0.0
    return first.offset, drift, max(first.error, last.error)


def _metadata(name: str, pid: int, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "args": args}


def _about(recording: Recording, clocks: Sequence[Clock], shift: int, drift: float, error: int) -> dict[str, Any]:
    return {
        "rank": recording.rank,
        "host": recording.host,
        "pid": recording.pid,
        "clock": {
            "aligned": recording.rank == 0 or bool(clocks),
            "offset_us": shift / 1e3,
            "drift_ppm": drift * 1e6,
            "error_us": error / 1e3,
        },
        "resolution_us": recording.resolution / 1e3,
        "n_marks": recording.n_marks,
        "merged": {name: [n, ns / 1e3, longest / 1e3] for name, (n, ns, longest) in recording.merged.items()},
        "sent": recording.sent,
        "received": recording.received,
    }
