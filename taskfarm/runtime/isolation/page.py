"""What a task child tells of itself without being asked, and what it is told before it can ask."""

from __future__ import annotations

import mmap
import os
import pickle
from typing import NamedTuple

from taskfarm.runtime.executor.batches import NOTHING_RUN

__all__ = ["Identity", "Page"]


class Identity(NamedTuple):
    """What a task child has to know of its rank."""

    rank: int
    size: int
    host: str
    peers: list[tuple[str, int, str]]  #: host, process and memory key, by rank; empty where only the executor uses it
    path: list[str]
    argv: list[str]
    directory: str
    environment: dict[str, str]
    debug: int


class Page:
    """Memory by which a child tells what it is at, since it cannot be asked any more when it is dead.

    The first 64 bytes are three numbers: the batch, the position of the item in it, and since when (monotonic clock).
    Behind them stands what the child has to know from the start, pickled.
    """

    SIZE_BYTES = 64

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._memory = mmap.mmap(descriptor, size_bytes)
        view = memoryview(self._memory)
        self._numbers = view[:16].cast("q")
        self._times = view[16:24].cast("d")

    @staticmethod
    def create(content: object) -> tuple[Page, int]:
        """Return a new page and the descriptor of its file."""
        data = pickle.dumps(content)
        descriptor = os.memfd_create("taskfarm-page", os.MFD_CLOEXEC)
        size = Page.SIZE_BYTES + len(data)
        os.ftruncate(descriptor, size)
        page = Page(descriptor, size)
        page._memory[Page.SIZE_BYTES :] = data
        return page, descriptor

    def content(self) -> object:
        """Return what the child has to know."""
        return pickle.loads(self._memory[Page.SIZE_BYTES :])

    def begin(self, batch: int) -> None:
        """Note that a batch has begun."""
        self._numbers[1] = NOTHING_RUN
        self._numbers[0] = batch

    def mark(self, position: int, now: float) -> None:
        """Note that the item at `position` begins."""
        self._times[0] = now
        self._numbers[1] = position

    def read(self) -> tuple[int, int, float]:
        """Return batch, position and time; while the child writes, they may not belong together."""
        return self._numbers[0], self._numbers[1], self._times[0]
