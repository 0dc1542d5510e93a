"""Memory that a rank and its task child share: buffers cross without a copy, or with one.

Theory of operation. A *segment* is a file in memory (``memfd_create``), mapped by the process that made it (its owner)
and by the one at the other end of a link. Its descriptor crosses the link's socket once (``SCM_RIGHTS``); a segment has
no name, so nothing is left behind however a process ends. A buffer that lies in a segment is sent as a *reference*
(segment, offset); any other one is copied into a segment first.

Who refers to a segment is counted by its owner: every lease in its own process, and every reference at the other end,
which tells when it has let go. When nobody does, the segment is free and is used again: memory that is touched for the
first time costs a page fault per 4 kB, more than copying does.

A buffer may also be *given away*: it is copied into a segment that belongs to the receiver from then on, so that the
sender's memory stays as it is whatever the receiver does.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from typing import Any

import numpy as np

from taskfarm.transport.pages import HUGE_BYTES, Mapping, take_huge_pages
from taskfarm.wire.frames import Buffer

__all__ = ["Arena", "Mapped", "adopt", "can_share", "give_away"]

MIN_SEGMENT_BYTES = 1 << 17  # smaller buffers are copied together into one segment
MAX_SEGMENTS = 128  # of one process: each has a file descriptor
MAX_FREE_BYTES = 160 << 20  # kept for nothing: two arrays of 64 MB, one that is worked on and one that comes
_PAGE = mmap.PAGESIZE
_STEPS = 8  # sizes per power of two: at most an eighth of a segment is wasted

_Bytes = np.ndarray[Any, Any]


def _address_of(buffer: Buffer) -> int:
    address: int = np.frombuffer(buffer, dtype=np.uint8).__array_interface__["data"][0]
    return address


def can_share() -> bool:
    """Tell whether this system has memory without a name that processes can share."""
    return hasattr(os, "memfd_create")


class _Lease(np.ndarray[Any, Any]):
    """A view of a segment that tells when nobody refers to it any more; views of it do not."""

    _ended: deque[int] | None = None
    _number: int

    def __del__(self) -> None:
        if self._ended is not None:  # may run at any time, in any thread: it only appends
            self._ended.append(self._number)


def _lease(memory: _Bytes, number: int, ended: deque[int], offset: int, size_bytes: int) -> memoryview:
    lease = memory.view(_Lease)
    lease._number = number
    lease._ended = ended
    return lease.data[offset : offset + size_bytes]


class _Segment:
    """Memory of this process that another one may map."""

    def __init__(self, number: int, capacity: int, wants_huge: bool) -> None:
        self.number = number
        self.capacity = capacity
        self.descriptor = os.memfd_create("taskfarm", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.descriptor, capacity)
            self.has_huge_pages = False
            if capacity < HUGE_BYTES:
                self.memory: _Bytes = np.frombuffer(mmap.mmap(self.descriptor, capacity), dtype=np.uint8)
            else:
                mapping = Mapping(self.descriptor, capacity, writable=True)
                self.memory = np.frombuffer(mapping.memory, dtype=np.uint8)
                self.has_huge_pages = wants_huge and take_huge_pages(self.descriptor, mapping, capacity)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.address = _address_of(self.memory.data)
        self.n_users = 0

    def close(self) -> None:
        os.close(self.descriptor)


class Arena:
    """The segments that belong to this process. One thread uses it; leases end in any."""

    def __init__(self) -> None:
        self._segments: dict[int, _Segment] = {}
        self._free: list[_Segment] = []  # the last one was used last
        self._ended: deque[int] = deque()
        self._n_made = 0
        self._has_huge_pages = True  # until the kernel has none, or takes long to make some: then nobody asks again
        self.dropped: deque[int] = deque()  # numbers of segments that are no more, for the other end to unmap

    def take(self, size_bytes: int) -> memoryview:
        """Return writable memory with any content: a segment if that pays, else memory of this process only."""
        if size_bytes < MIN_SEGMENT_BYTES:
            return np.empty(size_bytes, dtype=np.uint8).data
        segment = self._take(size_bytes)
        if segment is None:
            return np.empty(size_bytes, dtype=np.uint8).data
        segment.n_users += 1
        return _lease(segment.memory, segment.number, self._ended, 0, size_bytes)

    def _take(self, size_bytes: int, *, at_any_rate: bool = False) -> _Segment | None:
        self.collect()
        capacity = _round_up(size_bytes)
        for index in range(len(self._free) - 1, -1, -1):
            if self._free[index].capacity == capacity:
                return self._free.pop(index)
        if len(self._segments) >= MAX_SEGMENTS and not at_any_rate:
            return None
        self._n_made += 1
        segment = self._segments[self._n_made] = _Segment(self._n_made, capacity, self._has_huge_pages)
        if capacity >= HUGE_BYTES:
            self._has_huge_pages = segment.has_huge_pages
        return segment

    def collect(self) -> None:
        """Take note of the leases that have ended."""
        while self._ended:
            self.release(self._ended.popleft())

    def release(self, number: int) -> None:
        """Note that one user of a segment has let go."""
        segment = self._segments[number]
        segment.n_users -= 1
        if segment.n_users:
            return
        self._free.append(segment)
        while sum(free.capacity for free in self._free) > MAX_FREE_BYTES:
            oldest = self._free.pop(0)
            del self._segments[oldest.number]
            self.dropped.append(oldest.number)
            oldest.close()

    def find(self, buffer: Buffer) -> tuple[int, int] | None:
        """Return the segment and the offset of memory that lies in one, else None."""
        if not self._segments:
            return None
        address = _address_of(buffer)
        for segment in self._segments.values():
            if segment.address <= address and address + len(buffer) <= segment.address + segment.capacity:
                return segment.number, address - segment.address
        return None

    def lend(self, number: int) -> None:
        """Note one more user of a segment."""
        self._segments[number].n_users += 1

    def store(self, buffers: list[Buffer]) -> tuple[int, list[int]]:
        """Copy `buffers` into one segment, which has one user then; return it and where each of them begins."""
        offsets = []
        size = 0
        for buffer in buffers:
            offsets.append(size)
            size += -(-len(buffer) // _PAGE) * _PAGE
        segment = self._take(max(size, 1), at_any_rate=True)
        assert segment is not None
        for buffer, offset in zip(buffers, offsets, strict=True):
            segment.memory[offset : offset + len(buffer)] = np.frombuffer(buffer, dtype=np.uint8)
        segment.n_users += 1
        return segment.number, offsets

    def descriptor(self, number: int) -> int:
        """Return the descriptor of a segment's file."""
        return self._segments[number].descriptor

    def capacity(self, number: int) -> int:
        """Return the size of a segment."""
        return self._segments[number].capacity

    def view(self, number: int, offset: int, size_bytes: int) -> memoryview:
        """Return memory of a segment, which has one more user while anything refers to it."""
        segment = self._segments[number]
        segment.n_users += 1
        return _lease(segment.memory, number, self._ended, offset, size_bytes)


class Mapped:
    """Segments of the other end that this process has mapped."""

    def __init__(self) -> None:
        self._memory: dict[int, _Bytes] = {}
        self.ended: deque[int] = deque()  # of leases: for the owner to know

    def add(self, number: int, descriptor: int, capacity: int) -> None:
        """Map a segment; the descriptor is closed."""
        try:
            huge = capacity >= HUGE_BYTES
            memory = Mapping(descriptor, capacity, writable=True).memory if huge else mmap.mmap(descriptor, capacity)
            self._memory[number] = np.frombuffer(memory, dtype=np.uint8)
        finally:
            os.close(descriptor)

    def drop(self, number: int) -> None:
        """Unmap a segment that nobody uses any more."""
        self._memory.pop(number, None)

    def view(self, number: int, offset: int, size_bytes: int) -> memoryview:
        """Return memory of a segment; `ended` tells when nothing refers to it any more."""
        return _lease(self._memory[number], number, self.ended, offset, size_bytes)

    def find(self, buffer: Buffer) -> tuple[int, int] | None:
        """Return the segment and the offset of memory that lies in one, else None."""
        if not self._memory:
            return None
        address = _address_of(buffer)
        for number, memory in self._memory.items():
            first = memory.__array_interface__["data"][0]
            if first <= address and address + len(buffer) <= first + memory.nbytes:
                return number, address - first
        return None


def give_away(buffer: Buffer) -> int:
    """Return the descriptor of a file in memory that holds a copy of `buffer`."""
    descriptor = os.memfd_create("taskfarm", os.MFD_CLOEXEC)
    try:
        rest = memoryview(buffer)
        while len(rest):
            rest = rest[os.write(descriptor, rest) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def adopt(descriptor: int, size_bytes: int) -> memoryview:
    """Return the memory that was given away; the descriptor is closed."""
    try:
        return memoryview(mmap.mmap(descriptor, size_bytes))
    finally:
        os.close(descriptor)


def _round_up(size_bytes: int) -> int:
    step = max(1 << max(size_bytes.bit_length() - 1 - (_STEPS - 1).bit_length(), 0), _PAGE)
    return -(-size_bytes // step) * step
