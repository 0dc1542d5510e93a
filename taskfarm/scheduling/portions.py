"""What an `Allotter` knows of groups and jobs."""

from __future__ import annotations

from collections import deque

from taskfarm.scheduling.pacing import HANDLING_S, SHORTEST_S

__all__ = ["Group", "Job"]


class Group:
    """What is known of one group."""

    __slots__ = ("before", "in_hand", "jobs", "recalled", "relay", "size", "units")

    def __init__(self, relay: int, size: int) -> None:
        self.relay = relay
        self.size = size
        self.before = 0  # workers of the groups before it
        self.in_hand = 0
        self.jobs: dict[int, int] = {}  # items in hand, by job
        self.units: dict[int, int] = {}  # how many of them stay together
        self.recalled = False  # and nothing was dealt to it, nor has come back, since

    def add(self, number: int, n: int, unit: int) -> None:
        """Note that it has `n` more items of a job in hand, or less if `n` is negative."""
        self.in_hand += n
        left = self.jobs[number] = self.jobs.get(number, 0) + n
        self.units[number] = unit
        if not left:
            del self.jobs[number], self.units[number]

    def n_chunks(self) -> int:
        """Return how many workers could have something to do."""
        return sum(-(-n // self.units[number]) for number, n in self.jobs.items())


class Job:
    """What is known of one job."""

    __slots__ = (
        "item_bytes", "largest", "n_dealt", "n_flying", "n_items", "n_waiting", "n_workers", "number", "returned",
        "seconds", "unit", "weight",
    )  # fmt: skip

    def __init__(self, number: int, n_workers: int, unit: int) -> None:
        self.number = number
        self.n_workers = n_workers
        self.unit = unit
        self.n_items = 0
        self.n_dealt = 0  # items from here on were never dealt
        self.n_waiting = 0
        self.n_flying = 0
        self.returned: deque[tuple[int, int]] = deque()
        self.seconds = 0.0
        self.weight = 0.0
        self.largest = 1
        self.item_bytes = 1.0

    def task_s(self) -> float | None:
        """Return the seconds that an item takes a worker, None while that is not known."""
        return max(self.seconds / self.weight, SHORTEST_S) if self.weight else None

    def land(self, n: int) -> None:
        """Note that `n` items are not under way any more; what comes after the last ones may be of another kind."""
        self.n_flying -= n
        if not self.n_flying and not self.n_waiting:
            self.seconds = self.weight = 0.0
            self.largest = 1

    def is_small(self) -> bool:
        """Tell whether all that waits is not worth a message to a group that has something to do."""
        return bool(self.weight) and self.n_waiting * self.seconds < HANDLING_S * self.weight

    def limit(self, group: Group) -> int:
        """Return how many workers of a group it may use."""
        return min(max(self.n_workers - group.before, 0), group.size)

    def take(self, size: int) -> tuple[int, int]:
        """Remove up to `size` consecutive items from those that wait, and return where they start and stop."""
        if self.returned:
            start, stop = self.returned.popleft()
            if stop - start > size:
                self.returned.appendleft((start + size, stop))
                stop = start + size
        else:
            start, stop = self.n_dealt, min(self.n_dealt + size, self.n_items)
            self.n_dealt = stop
        self.n_waiting -= stop - start
        self.n_flying += stop - start
        return start, stop

    def ranges(self) -> list[tuple[int, int]]:
        """Return where the items that wait start and stop."""
        return [*self.returned, *([(self.n_dealt, self.n_items)] if self.n_dealt < self.n_items else [])]
