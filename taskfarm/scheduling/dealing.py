"""Which worker gets which items of which job, and how many at a time.

Theory of operation. A *job* is a sequence of items, numbered from 0, that become available over time (the calls of
`submit`; what a `map` has read ahead). Items leave as *batches*: a run of consecutive items for one worker. Two things
are learnt from every batch that comes back:

* the **pace** of its job, seconds per item, from which follows how many items make a batch of `TARGET_S`. A batch is
  never more than a share of what is waiting, so the tail is spread over all workers;
* the **way** of its worker, the time to rank 0 and back. A worker says how long it had nothing to do before a batch;
  with the work that it had when the batch was dealt, that makes the way. As much work as the way is long is kept under
  way, and two batches at least, but one if it takes long. So a busy rank 0, a slow network and very short batches are
  all answered by the same rule, and tasks of seconds are not queued behind one another.

What is not known yet is found out carefully: first batches are one item, one batch per worker. What comes in bit by
bit, as the calls of `submit` do, and would take less time than a message, waits for more of it or for an idle worker.
An item that takes much longer than its job's pace said holds up nobody: the worker is *late*; it gives back what it has
not begun of the batch, and all batches that were dealt before rank 0 knew, and they are dealt anew. Where a chunk size
was asked for, that many items stay together in all of this.

Nothing here knows the time; what took how long comes in as an argument.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from taskfarm.errors import ProtocolError
from taskfarm.scheduling.lanes import (
    BYTES_CALMING,
    CALMING,
    FORGET,
    LONG_S,
    LOOK_AHEAD_BYTES,
    LOOK_AHEAD_S,
    MAX_DEPTH,
    MAX_LOOK_AHEAD,
    MAX_WAY_S,
    MIN_LOOK_AHEAD,
    SMALL_BYTES,
    STARVED,
    TARGET_S,
    UNKNOWN_S,
    Job,
    Lane,
    give_back_s,
    target_s,
)

__all__ = ["LOOK_AHEAD_S", "TARGET_S", "Batch", "Dealer", "give_back_s", "target_s"]


class Batch(NamedTuple):
    """Items `start` up to, not including, `stop` of job `job`, for `worker`.

    Attributes
    ----------
    is_long : bool
        Whether it is expected to take so long that the worker need not wonder.
    is_fresh : bool
        Whether it is the first that was dealt to its worker since that has said it was late.
    """

    number: int
    job: int
    worker: int
    start: int
    stop: int


class Dealer:
    """Deals the items of jobs to workers.

    Parameters
    ----------
    workers : iterable of int
        Their ranks.

    Attributes
    ----------
    flying : dict of int to Batch
        Batches that were dealt and have not come back, by number.
    """

    def __init__(self, workers: Iterable[int]) -> None:
        self._lanes = {worker: Lane(worker, index) for index, worker in enumerate(workers)}
        self._idle: OrderedDict[int, Lane] = OrderedDict((lane.worker, lane) for lane in self._lanes.values())
        self._roomy: OrderedDict[int, Lane] = OrderedDict()  # busy, with room for one more batch
        self._jobs: dict[int, Job] = {}
        self._holes: OrderedDict[int, Lane] = OrderedDict()  # held and idle, and may be dealt what ends soon
        self.newly_idle: list[int] = []  # held workers that have nothing to do any more, for whoever holds them
        self._turn: OrderedDict[int, Job] = OrderedDict()  # jobs with waiting items, whose turn comes next first
        self._n_dealt = 0
        self._plans: dict[int, tuple[float, float]] = {}  # seconds expected for a batch, and for those before it
        self.flying: dict[int, Batch] = {}

    # Events

    def on_job(self, number: int, n_workers: int, unit: int = 1) -> None:
        """Note a new job.

        Parameters
        ----------
        number : int
            Its number.
        n_workers : int
            How many of the workers it may use.
        unit : int, optional
            Items that stay together: a batch has a multiple of it.
        """
        self._jobs[number] = Job(number, min(n_workers, len(self._lanes)), unit)

    def on_items(self, number: int, n: int) -> None:
        """Note that `n` more items of job `number` are available."""
        job = self._jobs[number]
        if n <= 0:
            return
        start = job.n_items
        job.n_items += n
        job.n_waiting += n
        if job.waiting and job.waiting[-1][1] == start:
            job.waiting[-1] = (job.waiting[-1][0], start + n)
        else:
            job.waiting.append((start, start + n))
        self._turn.setdefault(number, job)

    def on_done(
        self, number: int, n_done: int, seconds: float, gap_s: float, size_bytes: int = 0, late: bool = False
    ) -> Batch:
        """Take in that the first `n_done` items of a batch were run; the rest is dealt anew.

        Parameters
        ----------
        number : int
            The batch's number.
        n_done : int
            How many of its items were run.
        seconds : float
            How long that took.
        gap_s : float
            How long the worker had nothing to do before.
        size_bytes : int, optional
            Size of their results.
        late : bool, optional
            Whether the worker gives back all batches until a fresh one, as this one took much longer than expected.

        Raises
        ------
        ProtocolError
            If there is no such batch, or it does not have so many items.
        """
        batch, ahead_s = self._landed(number, n_done)
        job = self._jobs.get(batch.job)
        if job is not None:
            if n_done:
                job.seconds = job.seconds * FORGET + seconds
                job.weight = job.weight * FORGET + n_done
                job.largest = max(job.largest, n_done)
                job.item_bytes = max(1.0, BYTES_CALMING * job.item_bytes, size_bytes / n_done)
            if batch.start + n_done < batch.stop:
                self._put_back(job, [(batch.start + n_done, batch.stop)])
            if not job.n_flying and not job.n_waiting:  # what comes next may be of another kind
                job.seconds = job.weight = 0.0
                job.largest = 1
        lane = self._lanes[batch.worker]
        if n_done:
            self._adapt(lane, seconds, 0.0 if batch.number == lane.first else gap_s, ahead_s)
        lane.was_late |= late
        self._place(lane)
        return batch

    def on_packed(self, number: int, size_bytes: int) -> None:
        """Note that a batch that was dealt takes so many bytes."""
        if size_bytes > SMALL_BYTES:
            batch = self.flying[number]
            job = self._jobs[batch.job]
            job.item_bytes = max(job.item_bytes, size_bytes / (batch.stop - batch.start))

    def on_unsent(self, number: int) -> Batch:
        """Take back a batch that could not be sent as a whole; its items are dealt one by one."""
        batch, _ = self._landed(number, 0)
        job = self._jobs.get(batch.job)
        if job is not None and batch.stop - batch.start > 1:
            self._put_back(job, [(item, item + 1) for item in range(batch.start, batch.stop)])
        self._replace(batch)
        return batch

    def on_void(self, number: int) -> Batch:
        """Take in that there is nothing to do about the items of a batch, or nothing more."""
        batch, _ = self._landed(number, 0)
        self._replace(batch)
        return batch

    def drop_waiting(self, number: int) -> list[tuple[int, int]]:
        """Forget the items of a job that wait to be dealt; return where they start and stop."""
        job = self._jobs.get(number)
        if job is None:
            return []
        dropped = list(job.waiting)
        job.waiting.clear()
        job.n_waiting = 0
        self._turn.pop(number, None)
        return dropped

    def drop_job(self, number: int) -> None:
        """Forget a job; batches of it may still be flying."""
        self.drop_waiting(number)
        del self._jobs[number]

    # Decisions

    def deal(self, now: float = 0.0) -> Iterator[Batch]:
        """Yield, one by one, the batches that should leave `now` (seconds; it matters only for held workers)."""
        passed = 0
        while self._turn and passed < len(self._turn) and (self._idle or self._roomy or self._holes):
            number, job = self._turn.popitem(last=False)
            self._turn[number] = job
            lane = self._pick(job) or self._pick_hole(job, now)
            if lane is None or (lane.n_flying and job.is_small()):
                passed += 1
                continue
            passed = 0
            start, stop = job.take(job.batch_size())
            if not job.n_waiting:
                del self._turn[number]
            self._n_dealt += 1
            expected_s = job.expected_s(stop - start)
            is_long = LONG_PART * give_back_s(len(self._lanes)) < expected_s < UNKNOWN_S
            batch = Batch(self._n_dealt, number, lane.worker, start, stop, is_long, lane.was_late)
            lane.was_late = False
            self.flying[batch.number] = batch
            self._plans[batch.number] = expected_s, lane.flying_s
            job.n_flying += 1
            lane.n_flying += 1
            lane.flying_s += expected_s
            lane.dealt = now
            if lane.rested:
                lane.rested = False
                lane.first = batch.number
            self._place(lane)
            yield batch

    def look_ahead(self, number: int) -> int:
        """Return how many items of a job should be available, so that no worker waits for the one who supplies them."""
        job = self._jobs.get(number)
        if job is None:  # not announced yet
            return MIN_LOOK_AHEAD
        task_s = job.task_s()
        least = MIN_LOOK_AHEAD * job.unit
        ahead = least if task_s is None else int(min(max(LOOK_AHEAD_S / task_s, least), max(MAX_LOOK_AHEAD, least)))
        return max(min(ahead * job.n_workers, int(LOOK_AHEAD_BYTES / job.item_bytes)), least * job.n_workers)

    @property
    def has_waiting(self) -> bool:
        """Whether items of any job are available and not dealt."""
        return bool(self._turn)

    def n_waiting(self, number: int) -> int:
        """Return how many items of a job are available and not dealt."""
        job = self._jobs.get(number)
        return 0 if job is None else job.n_waiting

    def n_busy(self) -> int:
        """Return the number of workers that have something to do, or are held for something."""
        return len(self._lanes) - len(self._idle)

    # Workers that somebody else needs

    def hold(self, worker: int, until: float = -math.inf) -> None:
        """Deal nothing more to `worker`, but for single batches that should end by `until` (seconds)."""
        lane = self._lanes[worker]
        lane.until = until
        self._place(lane)

    def release(self, worker: int) -> None:
        """Deal to `worker` again."""
        self.hold(worker, math.inf)

    def is_held(self, worker: int) -> bool:
        """Tell whether `worker` is held."""
        return self._lanes[worker].until < math.inf

    def is_idle(self, worker: int) -> bool:
        """Tell whether nothing is under way to `worker`."""
        return not self._lanes[worker].n_flying

    def idle(self) -> Collection[int]:
        """Return the workers that have nothing to do and are not held; live."""
        return self._idle

    def ready_at(self, worker: int, now: float) -> float:
        """Return when (seconds) `worker` should have done what is under way to it; infinite if nobody knows."""
        lane = self._lanes[worker]
        if lane.flying_s >= UNKNOWN_S:
            return math.inf
        return max(now, lane.dealt + lane.flying_s) if lane.n_flying else now

    def task_s(self, number: int) -> float | None:
        """Return the measured seconds per item of a job, None while there is no measurement."""
        return self._jobs[number].task_s()

    def check_invariants(self) -> None:
        """Assert what must hold between two events."""
        for lane in self._lanes.values():
            flying = sum(batch.worker == lane.worker for batch in self.flying.values())
            assert flying == lane.n_flying
            is_held = lane.until < math.inf
            assert (lane.worker in self._idle) == (not lane.n_flying and not is_held)
            assert (lane.worker in self._roomy) == (lane.n_flying > 0 and lane.has_room and not is_held)
            assert (lane.worker in self._holes) == (not lane.n_flying and -math.inf < lane.until < math.inf)
            assert 1 <= lane.least <= 2
            assert lane.n_flying <= MAX_DEPTH
        for number, job in self._jobs.items():
            assert job.n_waiting == sum(stop - start for start, stop in job.waiting)
            assert (number in self._turn) == (job.n_waiting > 0)

    # Details

    def _landed(self, number: int, n_done: int) -> tuple[Batch, float]:
        batch = self.flying.get(number)
        if batch is None or not 0 <= n_done <= batch.stop - batch.start:
            raise ProtocolError(f"batch {number} with {n_done} items done is not one that was dealt")
        del self.flying[number]
        expected_s, ahead_s = self._plans.pop(number)
        lane = self._lanes[batch.worker]
        lane.n_flying -= 1
        lane.flying_s = lane.flying_s - expected_s if lane.n_flying else 0.0
        job = self._jobs.get(batch.job)
        if job is not None:
            job.n_flying -= 1
        return batch, ahead_s

    def _put_back(self, job: Job, ranges: list[tuple[int, int]]) -> None:
        job.waiting.extendleft(reversed(ranges))
        job.n_waiting += sum(stop - start for start, stop in ranges)
        self._turn.setdefault(job.number, job)

    def _adapt(self, lane: Lane, seconds: float, gap_s: float, ahead_s: float) -> None:
        """Learn from what a worker tells of a batch, which was dealt when it had work for `ahead_s` seconds."""
        if gap_s > STARVED * seconds:
            lane.way_s = max(lane.way_s, min(gap_s + ahead_s, MAX_WAY_S))
        lane.way_s *= CALMING
        is_long = seconds >= LONG_S and lane.way_s <= STARVED * seconds
        lane.least = 1 if is_long else 2

    def _pick(self, job: Job) -> Lane | None:
        for lanes in (self._idle, self._roomy):
            for lane in lanes.values():
                if lane.index < job.n_workers:
                    return lane
        return None

    def _pick_hole(self, job: Job, now: float) -> Lane | None:
        """Return a held worker that would be through with a batch of `job` in time."""
        if self._holes and job.task_s() is not None:
            end = now + job.expected_s(min(job.batch_size(), job.n_waiting))
            for lane in self._holes.values():
                if lane.index < job.n_workers and end <= lane.until:
                    return lane
        return None

    def _place_held(self, lane: Lane) -> None:
        self._idle.pop(lane.worker, None)
        self._roomy.pop(lane.worker, None)
        if lane.n_flying:
            self._holes.pop(lane.worker, None)
            return
        lane.rested = True
        lane.least = 1
        self.newly_idle.append(lane.worker)
        if lane.until > -math.inf:
            self._holes.setdefault(lane.worker, lane)
        else:
            self._holes.pop(lane.worker, None)

    def _place(self, lane: Lane) -> None:
        if lane.until < math.inf:
            self._place_held(lane)
            return
        self._holes.pop(lane.worker, None)
        if lane.n_flying == 0:
            self._roomy.pop(lane.worker, None)
            self._idle.setdefault(lane.worker, lane)
            if not self._turn:
                lane.rested = True
                lane.least = 1  # what comes next may be of another kind
        else:
            self._idle.pop(lane.worker, None)
            self._roomy.pop(lane.worker, None)
            if lane.has_room:
                self._roomy[lane.worker] = lane  # at the end: the workers take turns
