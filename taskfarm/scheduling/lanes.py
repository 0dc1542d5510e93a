"""What the dealer knows of one worker and of one job, and the numbers that it goes by."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Job", "Lane", "give_back_s", "target_s"]

# Seconds. A message costs some 20 us of rank 0 and of the worker, which is 1 % of this.
TARGET_S = 2e-3
HANDLING_S = 50e-6  # of rank 0 per batch and worker, with room to spare: more than 40 workers get longer batches
GIVE_BACK = 5  # a batch that has taken so many times the target was dealt on a wrong guess
LONG_S = 50e-3  # a batch from here on loses less than 1 % by the way to rank 0 and back, even if that is busy
LOOK_AHEAD_S = 0.1  # work per worker to have ready, since whoever supplies the items may be busy with something else
UNKNOWN_S = 1e3  # taken for a batch of which nothing is known: nothing is sent behind it
MAX_WAY_S = 0.1  # longer than rank 0 is ever busy without looking, unless in C code that holds the interpreter
STARVED = 0.02  # part of a batch's time for which a worker may have waited for it
MAX_DEPTH = 64  # batches at once; of the shortest tasks (2 us with their message) some 0.1 ms
CALMING = 0.995  # per batch: a way that was long once is forgotten after some hundred batches
GROWTH = 8  # a batch is at most so many times as large as the largest that was measured
SHARES = 2  # a batch is at most 1 / SHARES of a worker's share of what is waiting
FORGET = 0.8  # weight of the past, per batch
MAX_LOOK_AHEAD = 1 << 17  # items per worker: a list of so many small integers takes 5 MB
MIN_LOOK_AHEAD = 4  # batches per worker
BATCH_BYTES = 4 << 20  # of a batch, where an item is not larger: its message takes longer than the target anyhow
LOOK_AHEAD_BYTES = 64 << 20  # of a job
SMALL_BYTES = 16 << 10  # a batch that is not larger says nothing about the size of the next one
BYTES_CALMING = 0.9  # per batch: how fast large items are forgotten
SHORTEST_S = 1e-8  # nothing in Python takes less


def target_s(n_workers: int) -> float:
    """Return how many seconds a batch should take where there are `n_workers` workers."""
    return max(TARGET_S, n_workers * HANDLING_S)


def give_back_s(n_workers: int) -> float:
    """Return after how many seconds a worker gives back what it has not begun of a batch."""
    return GIVE_BACK * target_s(n_workers)


class Lane:
    """What is known of one worker."""

    __slots__ = ("dealt", "first", "flying_s", "index", "least", "n_flying", "rested", "until", "way_s", "worker")

    def __init__(self, worker: int, index: int) -> None:
        self.worker = worker
        self.index = index
        self.least = 1  # batches that may be under way however long they take
        self.n_flying = 0
        self.flying_s = 0.0  # how long these should take
        self.rested = True  # there was nothing for it to do
        self.first = 0  # number of the batch that ended that
        self.way_s = 0.0  # from the end of a batch until one that is dealt then can begin
        self.dealt = 0.0  # when the last batch was dealt
        self.until = math.inf  # held: only what should end by then is dealt to it, one batch at a time

    @property
    def has_room(self) -> bool:
        """Whether one more batch should be on its way."""
        return self.n_flying < self.least or (self.flying_s < self.way_s and self.n_flying < MAX_DEPTH)


class Job:
    """What is known of one job."""

    __slots__ = (
        "item_bytes", "largest", "n_flying", "n_items", "n_waiting", "n_workers", "number", "seconds", "unit",
        "waiting", "weight",
    )  # fmt: skip

    def __init__(self, number: int, n_workers: int, unit: int) -> None:
        self.number = number
        self.n_workers = n_workers
        self.unit = unit
        self.item_bytes = 1.0
        self.n_items = 0
        self.n_waiting = 0
        self.n_flying = 0
        self.waiting: deque[tuple[int, int]] = deque()
        self.seconds = 0.0
        self.weight = 0.0
        self.largest = 1

    def task_s(self) -> float | None:
        """Return the seconds that an item takes, None while that is not known."""
        return max(self.seconds / self.weight, SHORTEST_S) if self.weight else None

    def expected_s(self, n: int) -> float:
        """Return how long a batch of `n` items should keep a worker busy, for deciding whether to send another one."""
        task_s = self.task_s()
        return UNKNOWN_S if task_s is None else max(n * task_s, HANDLING_S)

    def is_small(self) -> bool:
        """Tell whether all that waits is not worth a message to a worker that has something to do."""
        return bool(self.weight) and self.n_waiting * self.seconds < HANDLING_S * self.weight

    def batch_size(self) -> int:
        """Return the number of items that the next batch should have."""
        task_s = self.task_s()
        if task_s is None:
            return self.unit
        wanted = min(int(target_s(self.n_workers) / task_s), GROWTH * self.largest, int(BATCH_BYTES / self.item_bytes))
        share = -(-self.n_waiting // (SHARES * self.n_workers))
        size = min(wanted, max(share, int(HANDLING_S / task_s)))
        return max(size // self.unit, 1) * self.unit  # one item may be larger than a batch

    def take(self, size: int) -> tuple[int, int]:
        """Remove up to `size` consecutive items from those that wait, and return where they start and stop."""
        start, stop = self.waiting.popleft()
        if stop - start > size:
            self.waiting.appendleft((start + size, stop))
            stop = start + size
        self.n_waiting -= stop - start
        return start, stop
