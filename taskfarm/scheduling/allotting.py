"""The upper one of two levels: which group of workers gets how many items, where one controller cannot feed all.

Theory of operation. Each group has a controller of its own, with a `Dealer` over its workers. Rank 0 deals *portions*,
runs of consecutive items, to groups; a group reports from time to time how many of its items have ended. It should have
in hand what its workers run, and a *reserve* for the time until more can be here: that of some reports, but not less
than a part of what its workers run, or another batch for each where batches are short. It gets more when half of the
reserve is used up, so messages are few. Near the end portions get smaller, as batches do.

So rank 0 handles a few messages per group and report, however many items there are.

Nothing here knows the time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from taskfarm.errors import ProtocolError
from taskfarm.scheduling.pacing import LONG_S, SHARES, SHORTEST_S, target_s

__all__ = ["Allotter", "Portion", "report_s"]

FORGET = 0.98  # weight of the past, per report: a hundred groups report where one worker did
PART = 4  # of what the workers of a group run is the least reserve; with 8 workers, two items
REPORTS = 3  # between an item's end and the arrival of another one: the wait for a report, its way, rank 0's other work


def report_s(n_groups: int) -> float:
    """Return how many seconds should be between two reports of a group, if there are `n_groups`."""
    return 2 * target_s(n_groups)


class Portion(NamedTuple):
    """Items `start` up to, not including, `stop`, for group `group`."""

    group: int
    start: int
    stop: int


class Allotter:
    """Decides which group gets which items of one job.

    Parameters
    ----------
    sizes : sequence of int
        Number of workers of each group.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)
        self._in_hand = [0] * len(sizes)
        self._report_s = report_s(len(sizes))
        self._hungry = OrderedDict.fromkeys(range(len(sizes)))  # groups that may have room, in turn
        self._waiting: deque[tuple[int, int]] = deque()
        self._n_items = 0
        self._n_waiting = 0
        self._seconds = 0.0
        self._weight = 0.0

    @property
    def n_waiting(self) -> int:
        """Number of items that are available and not dealt."""
        return self._n_waiting

    @property
    def n_in_hand(self) -> int:
        """Number of items that groups have."""
        return sum(self._in_hand)

    def task_s(self) -> float | None:
        """Return the seconds that an item takes a worker, None while that is not known."""
        return max(self._seconds / self._weight, SHORTEST_S) if self._weight else None

    def on_items(self, n: int) -> None:
        """Note that `n` more items are available."""
        if n > 0:
            self._waiting.append((self._n_items, self._n_items + n))
            self._n_items += n
            self._n_waiting += n

    def on_report(self, group: int, n_done: int, seconds: float) -> None:
        """Take in that `n_done` more items of a group have ended, which took its workers so many seconds together.

        Raises
        ------
        ProtocolError
            If the group does not have so many items.
        """
        if not 0 <= n_done <= self._in_hand[group]:
            raise ProtocolError(f"group {group} reports {n_done} items and has {self._in_hand[group]}")
        self._in_hand[group] -= n_done
        self._seconds = self._seconds * FORGET + seconds
        self._weight = self._weight * FORGET + n_done
        self._hungry.setdefault(group)

    def on_lost(self, group: int, items: Sequence[tuple[int, int]]) -> None:
        """Take back the items of a group that is gone; nothing more is dealt to it."""
        self._in_hand[group] = 0
        self._hungry.pop(group, None)
        self._waiting.extendleft(reversed(items))
        self._n_waiting += sum(stop - start for start, stop in items)

    def wanted(self, group: int) -> tuple[int, int]:
        """Return how many items a group should have in hand, and how many of them are its reserve."""
        n_workers, task_s = self._sizes[group], self.task_s()
        if task_s is None:
            return n_workers, 0
        batch_s = max(task_s, target_s(n_workers))
        reserve_s = max(REPORTS * self._report_s, batch_s / PART if batch_s > LONG_S else batch_s)
        reserve = max(1, int(n_workers * reserve_s / task_s))
        return int(n_workers * batch_s / task_s) + reserve, reserve

    def deal(self) -> Iterator[Portion]:
        """Yield the portions that should leave now."""
        while self._n_waiting and self._hungry:
            group, _ = self._hungry.popitem(last=False)
            wanted, reserve = self.wanted(group)
            share = max(-(-self._n_waiting // (SHARES * len(self._sizes))), 1)
            room = wanted - self._in_hand[group]
            if room < max(min(reserve // 2, share), 1):
                continue
            n = min(room, share) if self._in_hand[group] >= self._sizes[group] else min(room, self._n_waiting)
            self._in_hand[group] += n
            yield from self._take(group, n)
            self._hungry[group] = None  # at the end: the groups take turns

    def _take(self, group: int, n: int) -> Iterator[Portion]:
        self._n_waiting -= n
        while n:
            start, stop = self._waiting.popleft()
            if stop - start > n:
                self._waiting.appendleft((start + n, stop))
                stop = start + n
            n -= stop - start
            yield Portion(group, start, stop)

    def check_invariants(self) -> None:
        """Assert what must hold between two events."""
        assert self._n_waiting == sum(stop - start for start, stop in self._waiting)
        assert all(n >= 0 for n in self._in_hand)
