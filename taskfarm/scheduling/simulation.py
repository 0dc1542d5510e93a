"""A farm with a virtual clock, to see what the dealer makes of given task times: a hundred thousand workers in minutes.

A message takes `latency_s` from rank 0 to a worker and as long back. Rank 0 handles one message at a time, each of
which takes it `handling_s`. With two levels it sends items to the controllers of groups, which are like it. A worker
runs its batches in the order in which they arrive, and gives back what it has not begun of one that takes too long, as
the real one does.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from taskfarm.scheduling.allotting import Allotter, report_s
from taskfarm.scheduling.dealing import Batch, Dealer
from taskfarm.scheduling.pacing import give_back_s

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
    busy : float
        The part of the time, up to its last item, for which a worker ran items; over all workers.
    """

    makespan_s: float
    n_batches: int
    runs: list[int]
    busy: float


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
    IS_REPORTED = "to its controller"
    IS_ALLOTTED = "items are at a group"
    IS_DUE = "a group reports what has ended"
    IS_SUMMED_UP = "that report is at rank 0"
    IS_RECALLED = "a group is asked to give back items"


class _Report(NamedTuple):
    """How far a batch got: items that were run, seconds that they took, seconds that the worker had waited."""

    n_done: int = 0
    seconds: float = 0.0
    gap_s: float = 0.0
    late: bool = False


class _Site:
    """A controller with its workers: rank 0, or one of the lower level; see `simulate` for the parameters."""

    def __init__(self, clock: _Clock, n_workers: int, unit: int) -> None:
        self._clock = clock
        self._give_back_s = give_back_s(n_workers)
        self._unit = unit
        self._dealer = Dealer(range(1, n_workers + 1))
        self._dealer.on_job(_JOB, n_workers, unit)
        self._workers = {rank: _Worker() for rank in range(1, n_workers + 1)}
        self._items: list[int] = []  # which item of all is the dealer's n-th
        self._portions: list[int] = []  # and of which portion it is
        self.free_at = 0.0
        self.n_batches = 0
        self.ended: Counter[int] = Counter()  # items by portion, since the last report to rank 0
        self.seconds = 0.0  # that they took

    @property
    def n_wanted(self) -> int:
        """How many more items should be here."""
        return self._dealer.look_ahead(_JOB) - self._dealer.n_waiting(_JOB)

    def take(self, items: range, portion: int = 0) -> None:
        """Take items, and deal what can be dealt."""
        self._items.extend(items)
        self._portions.extend([portion] * len(items))
        self._dealer.on_items(_JOB, len(items))
        for batch in self._dealer.deal():
            self.n_batches += 1
            self.free_at += self._clock.handling_s
            self._clock.push(self.free_at + self._clock.latency_s, _Step.ARRIVES, self, batch)

    def give_back(self, n: int) -> list[tuple[int, int]]:
        """Return up to `n` of the items that no worker was given, the last ones, each with its portion."""
        ranges = self._dealer.drop_waiting(_JOB)
        waiting = [(self._items[at], self._portions[at]) for start, stop in ranges for at in range(start, stop)]
        n_kept = max(len(waiting) - n, 0)
        for item, portion in waiting[:n_kept]:
            self._items.append(item)
            self._portions.append(portion)
        self._dealer.on_items(_JOB, n_kept)
        return waiting[n_kept:]

    def on_arrival(self, now: float, batch: Batch) -> None:
        """Let a worker have a batch."""
        self._workers[batch.worker].waiting.append(batch)
        self._start(self._workers[batch.worker], now)

    def on_end(self, now: float, batch: Batch, report: _Report) -> None:
        """Let a worker send its report, and go on."""
        worker = self._workers[batch.worker]
        worker.is_running = False
        worker.idle_since = now
        self._clock.push(now + self._clock.latency_s, _Step.IS_REPORTED, self, batch, report)
        self._start(worker, now)

    def on_report(self, now: float, batch: Batch, report: _Report) -> None:
        """Handle a worker's report."""
        self.free_at = max(self.free_at, now) + self._clock.handling_s
        self._dealer.on_done(batch.number, report.n_done, report.seconds, report.gap_s, late=report.late)
        self.ended.update(self._portions[batch.start : batch.start + report.n_done])
        self.seconds += report.seconds

    def sum_up(self) -> tuple[Counter[int], float]:
        """Return how many items of which portion have ended since the last time, and how long they took together."""
        news = self.ended, self.seconds
        self.ended, self.seconds = Counter(), 0.0
        return news

    def _start(self, worker: _Worker, now: float) -> None:
        if worker.is_running or not worker.waiting:
            return
        batch = worker.waiting.popleft()
        worker.is_running = True
        if worker.late and not batch.is_fresh:
            self._clock.push(now, _Step.ENDS, self, batch, _Report())
            return
        gap_s = now - worker.idle_since
        seconds, n_done = 0.0, 0
        while batch.start + n_done < batch.stop and (seconds < self._give_back_s or n_done % self._unit):
            seconds += self._clock.run(self._items[batch.start + n_done])
            n_done += 1
        self._clock.busy_s += seconds
        self._clock.waited_s += gap_s
        worker.late = seconds >= self._give_back_s and not batch.is_long
        self._clock.push(now + seconds, _Step.ENDS, self, batch, _Report(n_done, seconds, gap_s, worker.late))


class _Clock:
    """Virtual time: what happens when, and which item takes how long."""

    def __init__(self, durations: Sequence[float], latency_s: float, handling_s: float) -> None:
        self._durations = durations
        self._events: list[tuple[float, int, _Step, _Site, Any, _Report]] = []
        self._n_events = 0
        self.latency_s = latency_s
        self.handling_s = handling_s
        self.runs = [0] * len(durations)
        self.busy_s = 0.0
        self.waited_s = 0.0

    def run(self, item: int) -> float:
        """Note that an item is run; return how long it takes."""
        self.runs[item] += 1
        return self._durations[item]

    def push(self, when: float, step: _Step, site: _Site, what: Any, report: _Report = _Report()) -> None:  # noqa: B008
        """Have something happen."""
        self._n_events += 1
        heapq.heappush(self._events, (when, self._n_events, step, site, what, report))

    def steps(self) -> Iterator[tuple[float, _Step, _Site, Any]]:
        """Go through what happens, and yield what is not the business of a worker."""
        while self._events:
            now, _, step, site, what, report = heapq.heappop(self._events)
            if step is _Step.ARRIVES:
                site.on_arrival(now, what)
            elif step is _Step.ENDS:
                site.on_end(now, what, report)
            else:
                if step is _Step.IS_REPORTED:
                    site.on_report(now, what, report)
                yield now, step, site, what


def _run_flat(clock: _Clock, n_items: int, n_workers: int, unit: int) -> tuple[float, int]:
    """Let one controller feed all workers; return when it handled the last report, and how many batches it dealt."""
    site = _Site(clock, n_workers, unit)
    n_read = min(n_items, max(site.n_wanted, 0))
    site.take(range(n_read))
    for _ in clock.steps():
        n = min(n_items - n_read, max(site.n_wanted, 0))
        site.take(range(n_read, n_read + n))
        n_read += n
    return site.free_at, site.n_batches


def _run_groups(clock: _Clock, n_items: int, sizes: Sequence[int], unit: int, item_s: float) -> tuple[float, int]:
    """Let a controller feed the controllers of groups; return as `_run_flat`."""
    sites = {group: _Site(clock, size, unit) for group, size in enumerate(sizes)}
    numbers = {site: group for group, site in sites.items()}
    allotter = Allotter(dict(enumerate(sizes)))
    allotter.on_job(_JOB, sum(sizes), unit)
    allotter.on_items(_JOB, n_items)
    pause_s = report_s(len(sizes))
    free_at = 0.0
    due: set[_Site] = set()  # that are going to report

    def deal() -> None:
        nonlocal free_at
        for portion in allotter.deal():
            free_at += clock.handling_s + item_s * (portion.stop - portion.start) / 2
            clock.push(free_at + clock.latency_s, _Step.IS_ALLOTTED, sites[portion.worker], portion)
        asked = allotter.recall()
        if asked is not None:
            free_at += clock.handling_s
            clock.push(free_at + clock.latency_s, _Step.IS_RECALLED, sites[asked[0]], asked[2])

    deal()
    for now, step, site, what in clock.steps():
        if step is _Step.IS_ALLOTTED:
            site.free_at = max(site.free_at, now) + clock.handling_s
            site.take(range(what.start, what.stop), what.number)
        elif step is _Step.IS_REPORTED:
            site.take(range(0))
            if site not in due:
                due.add(site)
                clock.push(now + pause_s, _Step.IS_DUE, site, None)
        elif step is _Step.IS_DUE:
            due.discard(site)
            site.free_at = max(site.free_at, now) + clock.handling_s
            clock.push(site.free_at + clock.latency_s, _Step.IS_SUMMED_UP, site, (site.sum_up(), None))
        elif step is _Step.IS_RECALLED:
            site.free_at = max(site.free_at, now) + clock.handling_s
            news = site.sum_up(), site.give_back(what)
            clock.push(site.free_at + clock.latency_s, _Step.IS_SUMMED_UP, site, news)
        else:
            (ended, seconds), back = what
            free_at = max(free_at, now) + clock.handling_s + item_s * ended.total() / 2
            if ended:
                allotter.on_parts(_JOB, ended, seconds)
            if back is not None:
                allotter.on_recalled(numbers[site])
                for item, portion in back:
                    allotter.on_back(portion, item, item + 1)
            deal()
    allotter.check_invariants()
    return free_at, sum(site.n_batches for site in sites.values())


def simulate(
    durations: Sequence[float],
    n_workers: int,
    *,
    latency_s: float = 20e-6,
    handling_s: float = 10e-6,
    unit: int = 1,
    group_size: int | None = None,
    item_s: float = 0.0,
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
    group_size : int, optional
        Workers per controller of a lower level; by default rank 0 feeds all workers itself.
    item_s : float
        Seconds for which rank 0 is busy with an item that goes to a group and comes back, beside the messages.
    """
    clock = _Clock(durations, latency_s, handling_s)
    if group_size is None:
        makespan_s, n_batches = _run_flat(clock, len(durations), n_workers, unit)
    else:
        sizes = [min(group_size, n_workers - first) for first in range(0, n_workers, group_size)]
        makespan_s, n_batches = _run_groups(clock, len(durations), sizes, unit, item_s)
    return Report(makespan_s, n_batches, clock.runs, clock.busy_s / (clock.busy_s + clock.waited_s))
