"""The workers as the dealer sees them: who has nothing to do, who has room for more, who is held for something else."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable

from taskfarm.scheduling.pacing import CALMING, LONG_S, MAX_DEPTH, MAX_WAY_S, STARVED, UNKNOWN_S, JobPace

__all__ = ["Lane", "Lanes"]


class Lane:
    """What is known of one worker."""

    __slots__ = (
        "dealt", "first", "flying_s", "index", "is_reserved", "least", "n_flying", "rested", "until", "was_late",
        "way_s", "worker",
    )  # fmt: skip

    def __init__(self, worker: int, index: int) -> None:
        self.worker = worker
        self.index = index
        self.least = 1  # batches that may be under way however long they take
        self.n_flying = 0
        self.flying_s = 0.0  # how long these should take
        self.rested = True  # there was nothing for it to do
        self.first = 0  # number of the batch that ended that
        self.was_late = False  # and has been dealt nothing since
        self.way_s = 0.0  # from the end of a batch until one that is dealt then can begin
        self.dealt = 0.0  # when the last batch was dealt
        self.is_reserved = False  # for the one item that it has, which may cost it its life
        self.until = math.inf  # held: only what should end by then is dealt to it, one batch at a time

    @property
    def has_room(self) -> bool:
        """Whether one more batch should be on its way."""
        if self.is_reserved:
            return False
        return self.n_flying < self.least or (self.flying_s < self.way_s and self.n_flying < MAX_DEPTH)

    @property
    def is_held(self) -> bool:
        """Whether somebody else needs the worker."""
        return self.until < math.inf

    def rest(self) -> None:
        """Note that there is nothing to do for the worker; what comes next may be of another kind."""
        self.rested = True
        self.least = 1

    def adapt(self, seconds: float, gap_s: float, ahead_s: float) -> None:
        """Learn from what the worker tells of a batch, which was dealt when it had work for `ahead_s` seconds."""
        if gap_s > STARVED * seconds:
            self.way_s = max(self.way_s, min(gap_s + ahead_s, MAX_WAY_S))
        self.way_s *= CALMING
        is_long = seconds >= LONG_S and self.way_s <= STARVED * seconds
        self.least = 1 if is_long else 2


class Lanes:
    """All workers.

    Parameters
    ----------
    workers : iterable of int
        Their ranks.

    Attributes
    ----------
    newly_idle : list of int
        Held workers that have nothing to do any more, for whoever holds them.
    """

    def __init__(self, workers: Iterable[int]) -> None:
        self._lanes = {worker: Lane(worker, index) for index, worker in enumerate(workers)}
        self._idle: OrderedDict[int, Lane] = OrderedDict((lane.worker, lane) for lane in self._lanes.values())
        self._roomy: OrderedDict[int, Lane] = OrderedDict()  # busy, with room for one more batch
        self._holes: OrderedDict[int, Lane] = OrderedDict()  # held and idle, and may be dealt what ends soon
        self.newly_idle: list[int] = []

    def __len__(self) -> int:
        return len(self._lanes)

    def __contains__(self, worker: int) -> bool:
        return worker in self._lanes

    def __getitem__(self, worker: int) -> Lane:
        return self._lanes[worker]

    @property
    def workers(self) -> list[int]:
        """The workers that are not lost."""
        return list(self._lanes)

    @property
    def has_room(self) -> bool:
        """Whether anything can be dealt to anybody."""
        return bool(self._idle or self._roomy or self._holes)

    @property
    def idle(self) -> Collection[int]:
        """The workers that have nothing to do and are not held; live."""
        return self._idle

    # Whom to deal to

    def pick(self, job: JobPace, now: float, *, only_idle: bool) -> Lane | None:
        """Return a worker for a batch of `job` that leaves `now`, or None."""
        for lanes in (self._idle,) if only_idle else (self._idle, self._roomy):
            for lane in lanes.values():
                if lane.index < job.n_workers:
                    return lane
        return self._pick_hole(job, now) if self._holes else None

    def _pick_hole(self, job: JobPace, now: float) -> Lane | None:
        """Return a held worker that would be through with a batch of `job` in time."""
        if job.task_s() is not None and not job.doubtful:
            end = now + job.expected_s(min(job.batch_size(), job.n_waiting))
            for lane in self._holes.values():
                if lane.index < job.n_workers and end <= lane.until:
                    return lane
        return None

    def place(self, lane: Lane, *, has_waiting: bool) -> None:
        """Take in that what a worker has to do has changed; `has_waiting` tells whether there is anything for it."""
        self._roomy.pop(lane.worker, None)
        if lane.is_held:
            self._place_held(lane)
        elif lane.n_flying:
            self._idle.pop(lane.worker, None)
            self._holes.pop(lane.worker, None)
            if lane.has_room:
                self._roomy[lane.worker] = lane  # at the end: the workers take turns
        else:
            self._holes.pop(lane.worker, None)
            self._idle.setdefault(lane.worker, lane)
            if not has_waiting:
                lane.rest()

    def _place_held(self, lane: Lane) -> None:
        self._idle.pop(lane.worker, None)
        if not lane.n_flying:
            lane.rest()
            self.newly_idle.append(lane.worker)
        if lane.n_flying or lane.until == -math.inf:
            self._holes.pop(lane.worker, None)
        else:
            self._holes.setdefault(lane.worker, lane)

    def lose(self, worker: int) -> None:
        """Forget a worker, which has nothing to do any more."""
        del self._lanes[worker]
        for lanes in (self._idle, self._roomy, self._holes):
            lanes.pop(worker, None)
        for index, lane in enumerate(self._lanes.values()):
            lane.index = index

    # Workers that somebody else needs

    def hold(self, worker: int, until: float = -math.inf) -> None:
        """Deal nothing more to `worker`, but for single batches that should end by `until` (seconds)."""
        lane = self._lanes[worker]
        lane.until = until
        self.place(lane, has_waiting=True)

    def release(self, worker: int, *, has_waiting: bool) -> None:
        """Deal to `worker` again; see `place`."""
        lane = self._lanes[worker]
        lane.until = math.inf
        self.place(lane, has_waiting=has_waiting)

    def is_held(self, worker: int) -> bool:
        """Tell whether `worker` is held."""
        return self._lanes[worker].is_held

    def is_idle(self, worker: int) -> bool:
        """Tell whether nothing is under way to `worker`."""
        return not self._lanes[worker].n_flying

    def ready_at(self, worker: int, now: float) -> float:
        """Return when (seconds) `worker` should have done what is under way to it; infinite if nobody knows."""
        lane = self._lanes[worker]
        if lane.flying_s >= UNKNOWN_S:
            return math.inf
        return max(now, lane.dealt + lane.flying_s) if lane.n_flying else now

    def check_invariants(self) -> None:
        """Assert what must hold between two events."""
        assert [lane.index for lane in self._lanes.values()] == list(range(len(self._lanes)))
        for lane in self._lanes.values():
            is_held = lane.is_held
            assert (lane.worker in self._idle) == (not lane.n_flying and not is_held)
            assert (lane.worker in self._roomy) == (lane.n_flying > 0 and lane.has_room and not is_held)
            assert (lane.worker in self._holes) == (not lane.n_flying and -math.inf < lane.until < math.inf)
            assert 1 <= lane.least <= 2
            assert lane.n_flying <= MAX_DEPTH
            assert not lane.is_reserved or lane.n_flying == 1
        for lanes in (self._idle, self._roomy, self._holes):
            assert lanes.keys() <= self._lanes.keys()
