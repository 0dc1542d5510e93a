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

A worker may be *lost*. Whatever it had may have been begun, so that is an attempt of each of these items, and one of
them may have been the cause. They are in *doubt*: each is dealt again alone, to a worker that has nothing else and gets
nothing else meanwhile, so the next loss blames exactly one item. An item that has used up its retries has failed.
While an item in doubt waits, workers get one batch at a time, so that one of them becomes free soon.

Workers that somebody else needs are *held* (see `taskfarm.scheduling.lanes`): they get nothing more, or only what
should end in time.

Nothing here knows the time; it comes in as an argument, as does what took how long.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from taskfarm.errors import ProtocolError
from taskfarm.scheduling.lanes import Lane, Lanes
from taskfarm.scheduling.pacing import LONG_PART, MIN_LOOK_AHEAD, RETRIES, UNKNOWN_S, JobPace, Loss, give_back_s

__all__ = ["Batch", "Dealer", "LostBatch"]


class Batch(NamedTuple):
    """Items `start` up to, not including, `stop` of job `job`, for `worker`.

    Attributes
    ----------
    is_long : bool
        Whether it is expected to take long.
    is_fresh : bool
        Whether it is the first one since it is known that the worker was late.
    """

    number: int
    job: int
    worker: int
    start: int
    stop: int
    is_long: bool = False
    is_fresh: bool = False


class LostBatch(NamedTuple):
    """A batch that was lost with its worker, and the lost attempts of those items that are not tried again."""

    batch: Batch
    failed: dict[int, tuple[Loss, ...]]


class Dealer:
    """Deals the items of jobs to workers.

    Parameters
    ----------
    workers : iterable of int
        Their ranks.

    Attributes
    ----------
    lanes : Lanes
        The workers. Who needs some for something else holds them there.
    flying : dict of int to Batch
        Batches that were dealt and have not come back, by number.
    """

    def __init__(self, workers: Iterable[int]) -> None:
        self.lanes = Lanes(workers)
        self._jobs: dict[int, JobPace] = {}
        self._turn: OrderedDict[int, JobPace] = OrderedDict()  # jobs with waiting items, whose turn comes next first
        self._n_dealt = 0
        self._n_doubtful = 0  # items of all jobs that are in doubt and wait
        self._plans: dict[int, tuple[float, float]] = {}  # seconds expected for a batch, and for those before it
        self.flying: dict[int, Batch] = {}

    # Events

    def on_job(self, number: int, n_workers: int, unit: int = 1, retries: int = RETRIES) -> None:
        """Note a new job.

        Parameters
        ----------
        number : int
            Its number.
        n_workers : int
            How many of the workers it may use.
        unit : int, optional
            Items that stay together: a batch has a multiple of it.
        retries : int
            How often an item is tried again whose worker was lost.
        """
        self._jobs[number] = JobPace(number, max(1, min(n_workers, len(self.lanes))), unit, retries)

    def limit_retries(self, number: int, item: int, retries: int) -> None:
        """Have another number of retries than the job's hold for one item, which has not ended."""
        if number in self._jobs:
            self._jobs[number].limits[item] = retries

    def on_items(self, number: int, n: int, *, apart: bool = False) -> None:
        """Note that `n` more items of job `number` are available; if `apart`, no batch holds others with them."""
        job = self._jobs[number]
        if n <= 0:
            return
        start = job.n_items
        job.n_items += n
        job.n_waiting += n
        if job.waiting and job.waiting[-1][1] == start and not apart:
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
        self.lanes[batch.worker].was_late |= late
        if n_done and (job := self._jobs.get(batch.job)) is not None:
            job.on_results(n_done, size_bytes)
        self._learn(batch, n_done, seconds, gap_s, ahead_s, batch.start + n_done)
        return batch

    def on_item_lost(
        self, number: int, position: int | None, cause: str, *, may_retry: bool = True
    ) -> tuple[Batch, tuple[Loss, ...]]:
        """Take in that all of a batch was lost, but not its worker: its task child died, and there is another one.

        The item at `position` is charged, all are dealt again like any other item. If the position is not known (None),
        and there are several items, they are dealt one by one, and none is charged.

        Returns
        -------
        tuple of Batch and tuple of Loss
            The batch, and the lost attempts of the item if it is not tried again, else nothing.

        Raises
        ------
        ProtocolError
            If there is no such batch, or no such item in it.
        """
        flying = self.flying.get(number)
        if position is None and flying is not None and flying.stop - flying.start == 1:
            position = 0
        batch, _ = self._landed(number, position or 0, n_lost=1)
        job = self._jobs.get(batch.job)
        story: tuple[Loss, ...] = ()
        if job is not None and position is None:
            self._doubt(job, range(batch.start, batch.stop))
        elif job is not None:
            item = batch.start + (position or 0)
            story = job.charge(item, Loss(batch.worker, cause), may_retry)
            again = [(batch.start, item), (item, item if story else item + 1), (item + 1, batch.stop)]
            self._put_back(job, [(start, stop) for start, stop in again if start < stop])
        self._place(self.lanes[batch.worker])
        return batch, story

    def on_worker_lost(self, worker: int, cause: str) -> list[LostBatch]:
        """Take in that a worker is gone: what it had is dealt again, but never to it. May be repeated.

        Returns
        -------
        list of LostBatch
            What it had, in the order in which it was dealt.
        """
        if worker not in self.lanes:
            return []
        lost = []
        loss = Loss(worker, cause)
        for batch in [batch for batch in self.flying.values() if batch.worker == worker]:
            self._landed(batch.number, 0)
            job = self._jobs.get(batch.job)
            failed = {}
            if job is not None:
                stories = {item: job.charge(item, loss) for item in range(batch.start, batch.stop)}
                failed = {item: story for item, story in stories.items() if story}
            lost.append(LostBatch(batch, failed))
        for batch, failed in reversed(lost):
            job = self._jobs.get(batch.job)
            if job is not None:
                self._doubt(job, [item for item in range(batch.start, batch.stop) if item not in failed])
        self.lanes.lose(worker)
        for job in self._jobs.values():
            job.n_workers = max(1, min(job.n_workers, len(self.lanes)))
        return lost

    def on_packed(self, number: int, size_bytes: int) -> None:
        """Note that a batch that was dealt takes so many bytes."""
        batch = self.flying[number]
        self._jobs[batch.job].on_packed(batch.stop - batch.start, size_bytes)

    def on_unsent(self, number: int) -> Batch:
        """Take back a batch that could not be sent as a whole; its items are dealt one by one."""
        batch, _ = self._landed(number, 0)
        job = self._jobs.get(batch.job)
        if job is not None:
            if batch.stop - batch.start > 1:
                self._put_back(job, [(item, item + 1) for item in range(batch.start, batch.stop)])
            else:
                job.forget(batch.start, batch.stop)
        self._replace(batch)
        return batch

    def on_void(self, number: int) -> Batch:
        """Take in that there is nothing to do about the items of a batch, or nothing more."""
        batch, _ = self._landed(number, 0)
        job = self._jobs.get(batch.job)
        if job is not None:
            job.forget(batch.start, batch.stop)
        self._replace(batch)
        return batch

    def drop_waiting(self, number: int) -> list[tuple[int, int]]:
        """Forget the items of a job that wait to be dealt; return where they start and stop."""
        job = self._jobs.get(number)
        if job is None:
            return []
        dropped = [(item, item + 1) for item in job.doubtful] + list(job.waiting)
        self._n_doubtful -= len(job.doubtful)
        job.doubtful.clear()
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
        while self._turn and passed < len(self._turn) and self.lanes.has_room:
            number, job = self._turn.popitem(last=False)
            self._turn[number] = job
            lane = self.lanes.pick(job, now, only_idle=self._n_doubtful > 0)
            if lane is None or (lane.n_flying and job.is_small()):
                passed += 1
                continue
            passed = 0
            lane.is_reserved = bool(job.doubtful)
            self._n_doubtful -= lane.is_reserved
            start, stop = job.take(job.batch_size())
            if not job.n_waiting:
                del self._turn[number]
            self._n_dealt += 1
            expected_s = job.expected_s(stop - start)
            is_long = LONG_PART * give_back_s(len(self.lanes)) < expected_s < UNKNOWN_S
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
        return MIN_LOOK_AHEAD if job is None else job.look_ahead()  # None: not announced yet

    @property
    def has_waiting(self) -> bool:
        """Whether items of any job are available and not dealt."""
        return bool(self._turn)

    def n_waiting(self, number: int) -> int:
        """Return how many items of a job are available and not dealt."""
        job = self._jobs.get(number)
        return 0 if job is None else job.n_waiting

    def losses(self, number: int, item: int) -> Sequence[Loss]:
        """Return the attempts of an item that were lost; empty once it has ended."""
        job = self._jobs.get(number)
        return () if job is None else tuple(job.losses.get(item, ()))

    def n_busy(self) -> int:
        """Return the number of workers that have something to do, or are held for something."""
        return len(self.lanes) - len(self.lanes.idle)

    def task_s(self, number: int) -> float | None:
        """Return the measured seconds per item of a job, None while there is no measurement."""
        return self._jobs[number].task_s()

    def check_invariants(self) -> None:
        """Assert what must hold between two events."""
        self.lanes.check_invariants()
        for worker in self.lanes.workers:
            flying = sum(batch.worker == worker for batch in self.flying.values())
            assert flying == self.lanes[worker].n_flying
        assert all(batch.worker in self.lanes for batch in self.flying.values())
        assert self._n_doubtful == sum(len(job.doubtful) for job in self._jobs.values())
        for number, job in self._jobs.items():
            assert job.n_waiting == sum(stop - start for start, stop in job.waiting) + len(job.doubtful)
            assert (number in self._turn) == (job.n_waiting > 0)

    # Details

    def _landed(self, number: int, n_done: int, n_lost: int = 0) -> tuple[Batch, float]:
        batch = self.flying.get(number)
        if batch is None or not 0 <= n_done <= batch.stop - batch.start - n_lost:
            raise ProtocolError(f"batch {number} with {n_done} items done is not one that was dealt")
        del self.flying[number]
        expected_s, ahead_s = self._plans.pop(number)
        lane = self.lanes[batch.worker]
        lane.n_flying -= 1
        lane.is_reserved = False
        lane.flying_s = lane.flying_s - expected_s if lane.n_flying else 0.0
        job = self._jobs.get(batch.job)
        if job is not None:
            job.n_flying -= 1
        return batch, ahead_s

    def _learn(self, batch: Batch, n_done: int, seconds: float, gap_s: float, ahead_s: float, undone: int) -> None:
        """Take in what a report says; the items from `undone` on are dealt anew."""
        job = self._jobs.get(batch.job)
        if job is not None:
            job.learn(batch.start, n_done, seconds)
            if undone < batch.stop:
                self._put_back(job, [(undone, batch.stop)])
            if not job.n_flying and not job.n_waiting:
                job.forget_pace()
        lane = self.lanes[batch.worker]
        if n_done:
            lane.adapt(seconds, 0.0 if batch.number == lane.first else gap_s, ahead_s)
        self._place(lane)

    def _put_back(self, job: JobPace, ranges: Sequence[tuple[int, int]]) -> None:
        job.put_back(ranges)
        if ranges:
            self._turn.setdefault(job.number, job)

    def _doubt(self, job: JobPace, items: Sequence[int]) -> None:
        if items:
            job.doubtful.extendleft(reversed(items))
            job.n_waiting += len(items)
            self._n_doubtful += len(items)
            self._turn.setdefault(job.number, job)

    def _replace(self, batch: Batch) -> None:
        """Place the worker of a batch that was perhaps never sent: if it was to be the fresh one, the next one is."""
        lane = self.lanes[batch.worker]
        lane.was_late |= batch.is_fresh
        self._place(lane)

    def _place(self, lane: Lane) -> None:
        self.lanes.place(lane, has_waiting=bool(self._turn))
