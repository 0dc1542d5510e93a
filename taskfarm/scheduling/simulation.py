"""A farm with a virtual clock, to see what the dealer makes of given task times: a hundred thousand workers in seconds.

A message takes `latency_s` from rank 0 to a worker and as long back. Rank 0 handles one message at a time, each of
which takes it `handling_s`. A worker runs its batches in the order in which they arrive, and gives back what it has not
begun of one that takes too long, as the real one does.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from taskfarm.scheduling.dealing import Batch, Dealer
from taskfarm.scheduling.lanes import give_back_s

__all__ = ["Report", "simulate"]

_JOB = 1


@dataclass(frozen=True)
class Report:
    """What a simulated map did.

    Attributes
    ----------
    makespan_s : float
        From the beginning until the last result is at rank 0.
    n_batches : int
        Batches that were dealt.
    runs : list of int
        How often each item was run.
    """

    makespan_s: float
    n_batches: int
    runs: list[int]


class _Worker:
    def __init__(self) -> None:
        self.waiting: deque[Batch] = deque()
        self.is_running = False
        self.idle_since = 0.0
        self.late = False


class _Step(Enum):
    """What happens to a batch."""

    ARRIVES = "at its worker"
    ENDS = "on its worker"
    IS_REPORTED = "to rank 0"


class _Report(NamedTuple):
    """How far a batch got: items that were run, seconds that they took, seconds that the worker had waited."""

    n_done: int = 0
    seconds: float = 0.0
    gap_s: float = 0.0
    late: bool = False


class _Farm:
    """The simulated farm; see `simulate` for the parameters."""

    def __init__(
        self, durations: Sequence[float], n_workers: int, latency_s: float, handling_s: float, unit: int
    ) -> None:
        self._durations = durations
        self._latency_s = latency_s
        self._handling_s = handling_s
        self._give_back_s = give_back_s(n_workers)
        self._unit = unit
        self._dealer = Dealer(range(1, n_workers + 1))
        self._dealer.on_job(_JOB, n_workers, unit)
        self._workers = {rank: _Worker() for rank in range(1, n_workers + 1)}
        self._events: list[tuple[float, int, _Step, Batch, _Report]] = []
        self._n_events = 0
        self._n_read = 0
        self._free_at = 0.0  # rank 0
        self.runs = [0] * len(durations)
        self.n_batches = 0

    def run(self) -> float:
        """Return when the last report was handled."""
        self._deal()
        while self._events:
            now, _, step, batch, report = heapq.heappop(self._events)
            worker = self._workers[batch.worker]
            if step is _Step.ARRIVES:
                worker.waiting.append(batch)
                self._start(worker, now)
            elif step is _Step.ENDS:
                worker.is_running = False
                worker.idle_since = now
                self._push(now + self._latency_s, _Step.IS_REPORTED, batch, report)
                self._start(worker, now)
            else:
                self._free_at = max(self._free_at, now) + self._handling_s
                self._dealer.on_done(batch.number, report.n_done, report.seconds, report.gap_s, late=report.late)
                self._deal()
        return self._free_at

    def _push(self, when: float, step: _Step, batch: Batch, report: _Report) -> None:
        self._n_events += 1
        heapq.heappush(self._events, (when, self._n_events, step, batch, report))

    def _deal(self) -> None:
        n = min(len(self._durations) - self._n_read, self._dealer.look_ahead(_JOB) - self._dealer.n_waiting(_JOB))
        if n > 0:
            self._n_read += n
            self._dealer.on_items(_JOB, n)
        for batch in self._dealer.deal():
            self.n_batches += 1
            self._free_at += self._handling_s
            self._push(self._free_at + self._latency_s, _Step.ARRIVES, batch, _Report())

    def _start(self, worker: _Worker, now: float) -> None:
        if worker.is_running or not worker.waiting:
            return
        batch = worker.waiting.popleft()
        worker.is_running = True
        if worker.late and not batch.is_fresh:
            self._push(now, _Step.ENDS, batch, _Report())
            return
        seconds, n_done = 0.0, 0
        while batch.start + n_done < batch.stop and (seconds < self._give_back_s or n_done % self._unit):
            seconds += self._durations[batch.start + n_done]
            self.runs[batch.start + n_done] += 1
            n_done += 1
        worker.late = seconds >= self._give_back_s and not batch.is_long
        self._push(now + seconds, _Step.ENDS, batch, _Report(n_done, seconds, now - worker.idle_since, worker.late))


def simulate(
    durations: Sequence[float],
    n_workers: int,
    *,
    latency_s: float = 20e-6,
    handling_s: float = 10e-6,
    unit: int = 1,
) -> Report:
    """Run one map over items that take `durations` seconds each.

    Parameters
    ----------
    durations : sequence of float
        Seconds per item.
    n_workers : int
        Number of workers.
    latency_s : float
        Seconds that a message takes, one way.
    handling_s : float
        Seconds for which rank 0 is busy with one message.
    unit : int, optional
        Items that stay together.
    """
    farm = _Farm(durations, n_workers, latency_s, handling_s, unit)
    makespan_s = farm.run()
    return Report(makespan_s, farm.n_batches, farm.runs)
