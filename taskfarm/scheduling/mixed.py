"""A farm with a virtual clock, in which plain tasks and placed ones share the workers: what waits for what.

Messages take no time here; what that does to plain tasks is the matter of `taskfarm.scheduling.simulation`.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from taskfarm.scheduling.dealing import Batch, Dealer
from taskfarm.scheduling.placing import Placement, Placer

__all__ = ["MixedReport", "WideTask", "simulate_mixed"]


class WideTask(NamedTuple):
    """A placed task: when it is submitted, how many workers it needs, how long it takes, and who may run it."""

    submitted_s: float
    n_workers: int
    seconds: float
    allowed: frozenset[int] | None = None


@dataclass
class MixedReport:
    """What happened.

    Attributes
    ----------
    makespan_s : float
        When the last task ended.
    started : dict of int to float
        When each placed task started, by its position.
    workers : dict of int to tuple of int
        Where each placed task ran.
    n_plain : int
        How many plain tasks were run.
    plain_ends : list of float
        When each of them ended.
    n_backfilled : int
        How many plain tasks ran on reserved workers.
    busy_s : float
        Worker-seconds of all tasks.
    """

    makespan_s: float = 0.0
    started: dict[int, float] = field(default_factory=dict)
    workers: dict[int, tuple[int, ...]] = field(default_factory=dict)
    n_plain: int = 0
    plain_ends: list[float] = field(default_factory=list)
    n_backfilled: int = 0
    busy_s: float = 0.0


class _MixedFarm:
    """The simulated farm; see `simulate_mixed` for the parameters."""

    def __init__(self, plain: Sequence[Sequence[float]], wide: Sequence[WideTask], hosts: Mapping[int, str]) -> None:
        self._plain = plain
        self._wide = wide
        self._dealer = Dealer(hosts)
        self.placer = Placer(self._dealer, hosts)
        self._events: list[tuple[float, int, Batch | Placement | int]] = []
        self._n_events = 0
        self._free_at = dict.fromkeys(hosts, 0.0)  # when a worker is through with what was dealt to it
        self.report = MixedReport()
        for job, durations in enumerate(plain):
            self._dealer.on_job(job, len(hosts))
            self._dealer.on_items(job, len(durations))
        for index, task in enumerate(wide):
            self._push(task.submitted_s, index)

    def _seconds(self, batch: Batch) -> float:
        return sum(self._plain[batch.job][batch.start : batch.stop])

    def _push(self, when: float, event: Batch | Placement | int) -> None:
        self._n_events += 1
        heapq.heappush(self._events, (when, self._n_events, event))

    def run(self) -> MixedReport:
        """Run everything."""
        now = 0.0
        self._decide(now)
        while self._events:
            now, _, event = heapq.heappop(self._events)
            if isinstance(event, int):
                task = self._wide[event]
                self.placer.add(event, task.n_workers, task.allowed)
            elif isinstance(event, Placement):
                self.placer.on_ended(event.number, now)
            else:
                seconds = self._seconds(event)
                self._dealer.on_done(event.number, event.stop - event.start, seconds, 0.0)
                self.placer.on_plain_work(seconds)
                self.report.n_plain += event.stop - event.start
                self.report.plain_ends.append(now)
            self._decide(now)
        self.report.makespan_s = now
        return self.report

    def _decide(self, now: float) -> None:
        report = self.report
        for placement in self.placer.place(now):
            task = self._wide[placement.number]
            assert all(self._free_at[worker] <= now for worker in placement.workers)
            report.started[placement.number] = now
            report.workers[placement.number] = placement.workers
            report.busy_s += task.seconds * task.n_workers
            for worker in placement.workers:
                self._free_at[worker] = now + task.seconds
            self._push(now + task.seconds, placement)
        for batch in self._dealer.deal(now):
            seconds = self._seconds(batch)
            begins = max(now, self._free_at[batch.worker])
            self._free_at[batch.worker] = begins + seconds
            report.busy_s += seconds
            report.n_backfilled += self._dealer.lanes.is_held(batch.worker)
            self._push(begins + seconds, batch)


def simulate_mixed(plain: Sequence[Sequence[float]], wide: Sequence[WideTask], hosts: Mapping[int, str]) -> MixedReport:
    """Run `plain` tasks, there from the beginning, and `wide` ones beside them.

    Parameters
    ----------
    plain : sequence of sequence of float
        Jobs of plain tasks: seconds per task.
    wide : sequence of WideTask
        The placed tasks, in the order in which they are submitted.
    hosts : mapping of int to str
        The workers, each with its host.
    """
    return _MixedFarm(plain, wide, hosts).run()
