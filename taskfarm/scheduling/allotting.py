"""The upper one of two levels: which group of workers gets how many items, where one controller cannot feed all.

Theory of operation. Each group has a controller of its own, with a `Dealer` over its workers. Rank 0 deals *portions*,
runs of consecutive items, to groups; a group reports from time to time which of its items have ended. It should have
in hand what its workers run, and a *reserve* for the time until more can be here: that of some reports, but not less
than a part of what its workers run, or another batch for each where batches are short. It gets more when half of the
reserve is used up, so messages are few. Near the end portions get smaller, as batches do. What several jobs have in
hand is added as parts of what each of them alone should have.

An item is not seen alone in the middle: a portion is made of *pieces*, each of which a worker runs as a whole, or
gives back the rest of. Items that come back are dealt anew. If tasks take longer than was thought, a group may have
too many when others have none left; then some are *recalled*.

So rank 0 handles a few messages per group and report, however many items there are. Nothing here knows the time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from taskfarm.errors import ProtocolError
from taskfarm.scheduling.dealing import Batch
from taskfarm.scheduling.pacing import (
    BATCH_BYTES,
    GROWTH,
    LONG_S,
    LOOK_AHEAD_BYTES,
    LOOK_AHEAD_S,
    MAX_LOOK_AHEAD,
    MIN_LOOK_AHEAD,
    SHARES,
    target_s,
)
from taskfarm.scheduling.portions import Group, Job

__all__ = ["Allotter", "report_s"]

FORGET = 0.98  # weight of the past, per part: a hundred workers report where one did
PART = 4  # of what the workers of a group run is the least reserve; with 8 workers, two items
REPORTS = 3  # between an item's end and the arrival of another one: the wait for a report, its way, rank 0's other work
MIN_PORTION = 8  # a portion is at least such a part of the reserve: near the end, or if the supply is slow
PIECES = 4  # in a batch: so much finer is what a group can share out
RECALL_REPORTS = 2  # what would take a group less than so many reports is not recalled
BYTES_CALMING = 0.99  # per part: how fast large items are forgotten


def report_s(n_groups: int) -> float:
    """Return how many seconds should be between two reports of a group, if there are `n_groups`."""
    return 2 * target_s(n_groups)


class Allotter:
    """Deals the items of jobs to groups; what is not described here is as in `taskfarm.scheduling.dealing.Dealer`.

    Parameters
    ----------
    groups : mapping of int to int
        Rank of each group's controller, and its number of workers.

    Attributes
    ----------
    flying : dict of int to Batch
        Portions of which not all items have come back, by number; their worker is the group's controller.
    """

    def __init__(self, groups: Mapping[int, int]) -> None:
        self._groups = {relay: Group(relay, size) for relay, size in groups.items()}
        self._n_workers = self._count()
        self._largest_group = max(groups.values())
        self._report_s = report_s(len(groups))
        self._idle = OrderedDict(self._groups)  # have workers without an item
        self._roomy: OrderedDict[int, Group] = OrderedDict()  # have not, but may have room
        self._jobs: dict[int, Job] = {}
        self._turn: OrderedDict[int, Job] = OrderedDict()  # jobs with waiting items, whose turn comes next first
        self._n_dealt = 0
        self._left: dict[int, int] = {}  # items of a portion that have not come back
        self._recalling: int | None = None  # the group that has been asked
        self._to_recall = False  # whether a group has run out of work
        self._n_landed = 0  # news since groups were last looked at for a recall
        self.flying: dict[int, Batch] = {}

    # Events

    def on_job(self, number: int, n_workers: int, unit: int = 1, retries: int = 0) -> None:
        """Note a new job; no attempts are lost where there are groups, so `retries` has no meaning."""
        self._jobs[number] = Job(number, min(n_workers, self._n_workers), unit)

    def limit_retries(self, number: int, item: int, retries: int) -> None:
        """Do nothing: see `on_job`."""

    def on_items(self, number: int, n: int) -> None:
        """Note that `n` more items of job `number` are available."""
        job = self._jobs[number]
        if n > 0:
            job.n_items += n
            job.n_waiting += n
            self._turn.setdefault(number, job)

    def on_parts(self, number: int, n_done: Mapping[int, int], seconds: float, size_bytes: int = 0) -> None:
        """Take in that more items of a job have ended at a group.

        Parameters
        ----------
        number : int
            The job's number.
        n_done : mapping of int to int
            How many of them are of which portion; all portions are of that job and with the same group.
        seconds : float
            How long they took the workers.
        size_bytes : int, optional
            Size of their results.

        Raises
        ------
        ProtocolError
            If there is no such portion, or it does not have so many items.
        """
        for portion, n in n_done.items():
            self._check(portion, n)
        relay, n_all = self.flying[next(iter(n_done))].worker, sum(n_done.values())
        for portion, n in n_done.items():
            self._take_off(portion, n)
        self._land(self._groups[relay], number, n_all)
        job = self._jobs.get(number)
        if job is not None and n_all:
            job.seconds = job.seconds * FORGET + seconds
            job.weight = job.weight * FORGET + n_all
            job.largest = max(job.largest, max(n_done.values()))
            job.item_bytes = max(1.0, BYTES_CALMING * job.item_bytes, size_bytes / n_all)
            job.land(n_all)

    def on_back(self, number: int, start: int, stop: int, *, apart: bool = False) -> None:
        """Take back items of a portion, which are dealt anew: each alone if they are to be kept `apart`."""
        portion = self._landed(number, stop - start)
        job = self._jobs.get(portion.job)
        if job is not None and start < stop:
            job.returned.extend([(item, item + 1) for item in range(start, stop)] if apart else [(start, stop)])
            job.n_waiting += stop - start
            job.land(stop - start)
            self._turn.setdefault(job.number, job)

    def on_void(self, number: int, n: int) -> None:
        """Take in that there is nothing more to do about `n` items of a portion."""
        portion = self._landed(number, n)
        job = self._jobs.get(portion.job)
        if job is not None:
            job.land(n)

    def on_packed(self, number: int, size_bytes: int) -> None:
        """Note that a portion that was dealt takes so many bytes."""
        portion = self.flying[number]
        job = self._jobs[portion.job]
        job.item_bytes = max(job.item_bytes, size_bytes / (portion.stop - portion.start))

    def on_lost(self, relay: int, items: Mapping[int, list[tuple[int, int]]]) -> None:
        """Take back the items of a group that is gone, by portion; nothing more is dealt to it."""
        for number, ranges in items.items():
            for start, stop in ranges:
                self.on_back(number, start, stop)
        group = self._groups.pop(relay)
        self._count()
        self._idle.pop(relay, None)
        self._roomy.pop(relay, None)
        if self._recalling == relay:
            self._recalling = None
        if group.in_hand:
            raise ProtocolError(f"group {relay} is lost, and {group.in_hand} of its items are not accounted for")

    def on_recalled(self, relay: int) -> None:
        """Note that a group has given back what it could."""
        if self._recalling == relay:
            self._recalling = None

    def drop_waiting(self, number: int) -> list[tuple[int, int]]:
        """Forget the items of a job that wait to be dealt; return where they start and stop."""
        job = self._jobs.get(number)
        if job is None:
            return []
        dropped = job.ranges()
        job.returned.clear()
        job.n_dealt = job.n_items
        job.n_waiting = 0
        self._turn.pop(number, None)
        return dropped

    def drop_job(self, number: int) -> None:
        """Forget a job; portions of it may still be flying."""
        self.drop_waiting(number)
        del self._jobs[number]

    # Decisions

    def deal(self) -> Iterator[Batch]:
        """Yield, one by one, the portions that should leave now."""
        passed = 0
        while self._turn and passed < len(self._turn) and (self._idle or self._roomy):
            number, job = self._turn.popitem(last=False)
            self._turn[number] = job
            found = self._pick(job)
            if found is None:
                passed += 1
                continue
            passed = 0
            yield self._hand_out(job, *found)

    def recall(self) -> tuple[int, int, int] | None:
        """Return the controller of a group that should give back items, their job and how many; None if none should."""
        is_time = self._to_recall or (self._idle and self._n_landed >= len(self._groups))
        if not is_time or self._turn or self._recalling is not None:
            return None
        self._to_recall = False
        self._n_landed = 0
        found, most_s = None, RECALL_REPORTS * self._report_s
        for group in self._groups.values():
            n_chunks = group.n_chunks()
            if group.recalled or n_chunks <= group.size:
                continue
            for number, n in group.jobs.items():
                job = self._jobs.get(number)
                surplus = min(n, (n_chunks - group.size) * group.units[number])
                surplus_s = surplus * (job.task_s() or 0.0) / group.size if job is not None else 0.0
                if surplus_s > most_s:
                    found, most_s = (group, number, -(-surplus // 2)), surplus_s
        if found is None:
            return None
        found[0].recalled = True
        self._recalling = found[0].relay
        return found[0].relay, found[1], found[2]

    def wanted(self, relay: int, number: int) -> tuple[int, int]:
        """Return how many items of a job alone a group should have in hand, and how many of them are its reserve."""
        return self._wanted(self._groups[relay], self._jobs[number])

    def n_allowed(self, portion: Batch) -> int:
        """Return how many workers of a group may run items of a portion at the same time."""
        return self._jobs[portion.job].limit(self._groups[portion.worker])

    def piece_size(self, number: int) -> int:
        """Return the number of items of a job that a piece should have."""
        job = self._jobs[number]
        task_s = job.task_s()
        if task_s is None:
            return job.unit
        size = min(target_s(self._largest_group) / task_s, GROWTH * job.largest, BATCH_BYTES / job.item_bytes)
        return max(int(size / PIECES) // job.unit, 1) * job.unit

    def look_ahead(self, number: int) -> int:
        """Return how many items of a job should be available, so that no group waits for the one who supplies them."""
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

    @property
    def n_in_hand(self) -> int:
        """Number of items that groups have."""
        return sum(group.in_hand for group in self._groups.values())

    def n_busy(self) -> int:
        """Return the number of workers that have something to do, at most."""
        return sum(map(self.n_busy_in, self._groups))

    def n_busy_in(self, relay: int) -> int:
        """Return the same for one group; from any thread."""
        group = self._groups[relay]
        return min(group.in_hand, group.size)

    def task_s(self, number: int) -> float | None:
        """Return the measured seconds per item of a job, None while there is no measurement."""
        return self._jobs[number].task_s()

    def check_invariants(self) -> None:
        """Assert what must hold between two events."""
        assert self._left.keys() == self.flying.keys()
        for group in self._groups.values():
            flying = [portion for portion in self.flying.values() if portion.worker == group.relay]
            assert group.in_hand == sum(group.jobs.values()) == sum(self._left[one.number] for one in flying)
            assert (group.relay in self._idle) == (group.n_chunks() < group.size)
            assert not (group.relay in self._roomy and group.relay in self._idle)
        for number, job in self._jobs.items():
            assert job.n_waiting == sum(stop - start for start, stop in job.ranges())
            assert (number in self._turn) == (job.n_waiting > 0)
            assert job.n_flying == sum(group.jobs.get(number, 0) for group in self._groups.values())
        assert all(0 < left <= self.flying[n].stop - self.flying[n].start for n, left in self._left.items())

    # Details

    def _count(self) -> int:
        """Count the workers, each group those before it, too; return how many there are."""
        n = 0
        for group in self._groups.values():
            group.before = n
            n += group.size
        return n

    def _check(self, number: int, n: int) -> Batch:
        portion = self.flying.get(number)
        if portion is None or not 0 <= n <= self._left[number]:
            raise ProtocolError(f"portion {number} with {n} more items done is not one that was dealt")
        return portion

    def _take_off(self, number: int, n: int) -> None:
        self._left[number] -= n
        if not self._left[number]:
            del self.flying[number], self._left[number]

    def _land(self, group: Group, job: int, n: int) -> None:
        self._n_landed += 1
        group.recalled = False
        if n:
            group.add(job, -n, group.units[job])
        self._place(group)

    def _landed(self, number: int, n: int) -> Batch:
        portion = self._check(number, n)
        self._take_off(number, n)
        self._land(self._groups[portion.worker], portion.job, n)
        return portion

    def _hand_out(self, job: Job, group: Group, n: int) -> Batch:
        n = min(n, max(1, int(BATCH_BYTES * PIECES / job.item_bytes)))
        start, stop = job.take(max(n // job.unit, 1) * job.unit)
        if not job.n_waiting:
            del self._turn[job.number]
        self._n_dealt += 1
        portion = Batch(self._n_dealt, job.number, group.relay, start, stop)
        self.flying[portion.number] = portion
        self._left[portion.number] = stop - start
        group.add(job.number, stop - start, job.unit)
        group.recalled = False
        self._idle.pop(group.relay, None)  # to the end: the groups take turns
        self._roomy.pop(group.relay, None)
        self._place(group)
        return portion

    def _place(self, group: Group) -> None:
        if group.n_chunks() < group.size:
            self._roomy.pop(group.relay, None)
            if group.relay not in self._idle:
                self._idle[group.relay] = group
                self._to_recall = True
        else:
            self._idle.pop(group.relay, None)
            self._roomy[group.relay] = group

    def _wanted(self, group: Group, job: Job) -> tuple[int, int]:
        n_workers, task_s, unit = job.limit(group), job.task_s(), job.unit
        if task_s is None:
            return n_workers * unit, 0
        chunk_s = task_s * unit
        batch_s = max(chunk_s, target_s(group.size))
        reserve_s = max(REPORTS * self._report_s, batch_s / PART if batch_s > LONG_S else batch_s)
        most = max(int(min(GROWTH * job.largest * n_workers, LOOK_AHEAD_BYTES / job.item_bytes)), n_workers * unit)
        reserve = max(1, int(n_workers * reserve_s / chunk_s)) * unit
        wanted = min(int(n_workers * batch_s / chunk_s) * unit + reserve, most + unit)
        return wanted, min(reserve, max(wanted - n_workers * unit, unit))

    def _pick(self, job: Job) -> tuple[Group, int] | None:
        """Return the group that should get items of a job now, and how many; None if none should."""
        share = max(-(-job.n_waiting // (SHARES * len(self._groups))), job.unit)
        for group in self._idle.values():
            n_chunks = -(-group.jobs.get(job.number, 0) // job.unit)
            n = min(group.size - group.n_chunks(), job.limit(group) - n_chunks) * job.unit
            if n > 0:
                return group, max(n, min(self._room(group, job)[0], share))
        if job.is_small():
            return None
        for group in list(self._roomy.values()):
            if job.limit(group):
                room, reserve = self._room(group, job)
                least = max(share, reserve // MIN_PORTION, job.unit)
                if room >= min(max(reserve // 2, job.unit), least):
                    return group, min(room, least)
                del self._roomy[group.relay]  # until something of it comes back
        return None

    def _room(self, group: Group, job: Job) -> tuple[int, int]:
        """Return how many more items of a job a group should have, and how many it has in reserve when it is full."""
        wanted, reserve = self._wanted(group, job)
        free = 1.0
        for number, n in group.jobs.items():
            other = self._jobs.get(number)
            if other is not None:
                free -= n / max(self._wanted(group, other)[0], 1)
        return int(free * wanted + 1e-6), reserve
