"""What the dealer knows of its jobs: pace, losses, and the size of a batch that follows from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "BATCH_BYTES",
    "HANDLING_S",
    "LOOK_AHEAD_BYTES",
    "LOOK_AHEAD_S",
    "MAX_DEPTH",
    "RETRIES",
    "TARGET_S",
    "JobPace",
    "Loss",
    "give_back_s",
    "target_s",
]

# Seconds. A message costs some 20 us of rank 0 and of the worker, which is 1 % of this.
TARGET_S = 2e-3
HANDLING_S = 50e-6  # of rank 0 per batch and worker, with room to spare: more than 40 workers get longer batches
GIVE_BACK = 5  # a batch that has taken so many times the target was dealt on a wrong guess
LONG_PART = 0.25  # of that time: a batch that is expected to take as much may well take all of it
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
RETRIES = 3  # attempts after the first one, if that was lost with its worker


def target_s(n_workers: int) -> float:
    """Return how many seconds a batch should take where there are `n_workers` workers."""
    return max(TARGET_S, n_workers * HANDLING_S)


def give_back_s(n_workers: int) -> float:
    """Return after how many seconds a worker gives back what it has not begun of a batch."""
    return GIVE_BACK * target_s(n_workers)


class Loss(NamedTuple):
    """An attempt that was lost: the worker's rank, and what happened to it."""

    worker: int
    cause: str


class JobPace:
    """What is known of one job.

    Attributes
    ----------
    waiting : deque of tuple of int
        Where runs of items that wait to be dealt start and stop.
    doubtful : deque of int
        Items that wait, too, but may have ended the worker that had them.
    losses : dict of int to list of Loss
        Attempts that were lost, of items that have not ended.
    retries : int
        How many lost attempts an item may have and be tried again.
    limits : dict of int to int
        The same for single items.
    """

    __slots__ = (
        "doubtful", "item_bytes", "largest", "limits", "losses", "n_flying", "n_items", "n_waiting", "n_workers",
        "number", "retries", "seconds", "unit", "waiting", "weight",
    )  # fmt: skip

    def __init__(self, number: int, n_workers: int, unit: int, retries: int) -> None:
        self.number = number
        self.n_workers = n_workers
        self.unit = unit
        self.retries = retries
        self.item_bytes = 1.0
        self.n_items = 0
        self.n_waiting = 0
        self.n_flying = 0
        self.waiting: deque[tuple[int, int]] = deque()
        self.doubtful: deque[int] = deque()
        self.losses: dict[int, list[Loss]] = {}
        self.limits: dict[int, int] = {}
        self.seconds = 0.0
        self.weight = 0.0
        self.largest = 1

    def learn(self, start: int, n_done: int, seconds: float) -> None:
        """Take in that the `n_done` items from `start` on were run in so many seconds."""
        if n_done:
            self.seconds = self.seconds * FORGET + seconds
            self.weight = self.weight * FORGET + n_done
            self.largest = max(self.largest, n_done)
            self.forget(start, start + n_done)

    def forget_pace(self) -> None:
        """Begin anew: what comes next may be of another kind."""
        self.seconds = self.weight = 0.0
        self.largest = 1

    def charge(self, item: int, loss: Loss, may_retry: bool = True) -> tuple[Loss, ...]:
        """Note a lost attempt; return all of them if there may not be another one, else nothing."""
        losses = self.losses.setdefault(item, [])
        losses.append(loss)
        if may_retry and len(losses) <= self.limits.get(item, self.retries):
            return ()
        self.forget(item, item + 1)
        return tuple(losses)

    def forget(self, start: int, stop: int) -> None:
        """Forget the attempts of items that have ended."""
        if self.losses or self.limits:
            for item in range(start, stop):
                self.losses.pop(item, None)
                self.limits.pop(item, None)

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

    def look_ahead(self) -> int:
        """Return how many items should be available."""
        task_s = self.task_s()
        least = MIN_LOOK_AHEAD * self.unit
        ahead = least if task_s is None else int(min(max(LOOK_AHEAD_S / task_s, least), max(MAX_LOOK_AHEAD, least)))
        return max(min(ahead * self.n_workers, int(LOOK_AHEAD_BYTES / self.item_bytes)), least * self.n_workers)

    def on_packed(self, n: int, size_bytes: int) -> None:
        """Note that `n` items take so many bytes."""
        if size_bytes > SMALL_BYTES:
            self.item_bytes = max(self.item_bytes, size_bytes / n)

    def on_results(self, n: int, size_bytes: int) -> None:
        """Note that the results of `n` items took so many bytes."""
        self.item_bytes = max(1.0, BYTES_CALMING * self.item_bytes, size_bytes / n)

    def put_back(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Have items dealt again, before those that wait."""
        self.waiting.extendleft(reversed(ranges))
        self.n_waiting += sum(stop - start for start, stop in ranges)

    def take(self, size: int) -> tuple[int, int]:
        """Remove up to `size` consecutive items from those that wait, and return where they start and stop.

        A doubtful item comes first, and alone.
        """
        if self.doubtful:
            item = self.doubtful.popleft()
            self.n_waiting -= 1
            return item, item + 1
        start, stop = self.waiting.popleft()
        if stop - start > size:
            self.waiting.appendleft((start + size, stop))
            stop = start + size
        self.n_waiting -= stop - start
        return start, stop
