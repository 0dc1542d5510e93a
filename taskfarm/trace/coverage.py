"""How much of each moment a rank spent on what: spans on a grid of time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taskfarm.runtime.recording.recorder import Track
from taskfarm.trace.reading import Floats, Line, RankTrace

__all__ = ["BATCH", "IDLE", "OTHER", "WAITING", "coverage", "rank_coverage"]

# What is not a function's name.
BATCH = "batches: packing"
WAITING = "waiting inside tasks"
OTHER = "other functions"
IDLE = "idle"


def coverage(lines: Sequence[Line], edges: Floats) -> Floats:
    """Return which share of each bin the spans of `lines` cover, counted twice where they overlap.

    Parameters
    ----------
    lines : sequence of Line
        Spans; of merged ones, the time that they took is spread evenly from start to end.
    edges : ndarray
        Of the bins: seconds, ascending, shape (n_bins + 1,).
    """
    start = np.concatenate([line.start for line in lines] or [np.empty(0)])
    if not start.size:
        return np.zeros(len(edges) - 1)
    end = np.concatenate([line.end for line in lines])
    busy = np.concatenate([line.busy for line in lines])
    length = np.maximum(end - start, 1e-9)
    rate = busy / length
    times = np.concatenate([start, start + length])
    order = np.argsort(times, kind="stable")
    times = times[order]
    rates = np.cumsum(np.concatenate([rate, -rate])[order])
    together = np.concatenate([[0.0], np.cumsum(rates[:-1] * np.diff(times))])  # time spent until each moment
    widths: Floats = np.diff(edges)
    shares: Floats = np.diff(np.interp(edges, times, together)) / widths
    return shares


def rank_coverage(rank: RankTrace, names: Sequence[str], edges: Floats) -> dict[str, Floats]:
    """Return the shares of one rank's time for each of `names`, `OTHER`, `BATCH` and `WAITING`; the rest is idle."""
    tasks, items = rank.lines.get(Track.TASK, {}), rank.lines.get(Track.ITEM, {})
    shares = {name: coverage([line[name] for line in (tasks, items) if name in line], edges) for name in names}
    others = [line for group in (tasks, items) for name, line in group.items() if name not in names]
    shares[OTHER] = coverage(others, edges)
    in_batches = coverage(list(rank.lines.get(Track.BATCH, {}).values()), edges)
    shares[BATCH] = np.clip(in_batches - coverage(list(items.values()), edges), 0.0, 1.0)
    waits = [line for track in (Track.WAIT, Track.COMM) for line in rank.lines.get(track, {}).values()]
    waiting = np.clip(coverage(waits, edges), 0.0, 1.0)
    busy = sum(shares.values(), np.zeros(len(edges) - 1))
    kept = np.where(busy > 0, np.clip(busy - waiting, 0.0, 1.0) / np.maximum(busy, 1e-12), 0.0)
    return {name: share * kept for name, share in shares.items()} | {WAITING: np.minimum(waiting, busy)}
