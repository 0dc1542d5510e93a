"""The link between a rank and its task child: frames, buffers in shared memory, and what becomes of that memory."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest

from taskfarm.errors import WorkerLostError
from taskfarm.transport.base import Incoming
from taskfarm.transport.pages import Mapping
from taskfarm.transport.relay import ChildTransport, SharedLink
from taskfarm.transport.shared import MAX_FREE_BYTES, Arena, Mapped
from taskfarm.wire.codec import pack, unpack
from taskfarm.wire.frames import Frame, Kind

LIMIT_S = 10.0


class End:
    """One end of the link, with its arena."""

    def __init__(self, sock: socket.socket) -> None:
        self.arena = Arena()
        self.link = SharedLink(sock, self.arena)
        self.found: deque[Incoming] = deque()

    def next(self) -> Incoming:
        deadline = time.monotonic() + LIMIT_S
        while not self.found:
            self.link.pull(self.found)
            assert self.link.is_open and time.monotonic() < deadline
        return self.found.popleft()

    def put_array(self, array: np.ndarray, **options: bool) -> None:
        body, buffers = pack(array)
        self.link.put(5, Frame(Kind.BATCH, 1, 2, 3, body, buffers), **options)

    def next_array(self) -> np.ndarray:
        _, frame = self.next()
        array = unpack(frame.body, frame.buffers)
        assert isinstance(array, np.ndarray)
        return array

    @property
    def n_segments(self) -> int:
        self.arena.collect()
        return len(self.arena._segments)

    @property
    def n_used(self) -> int:
        self.arena.collect()
        return len(self.arena._segments) - len(self.arena._free)


def open_files() -> set[str]:
    """Return the sockets and the shared memory that this process has open, by their inodes."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            link = f"/proc/self/fd/{name}"
            found.add(f"{os.readlink(link)} {os.stat(link).st_ino}")
    return {name for name in found if name.startswith(("socket:", "/memfd:"))}


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    before = open_files()
    pair = socket.socketpair()
    ends = End(pair[0]), End(pair[1])
    yield ends
    for end in ends:
        end.link.close()
        end.arena.collect()
        assert end.n_used == 0
        [segment.close() for segment in end.arena._free]
        end.arena._segments.clear()
        end.arena._free.clear()
        end.link._mapped = Mapped()
    gc.collect()
    assert open_files() <= before


def tell(sender: End, receiver: End) -> None:
    """Send an empty frame: with it go the notes about memory."""
    sender.link.put(0, Frame(Kind.BYE))
    receiver.next()


def test_frames_keep_their_rank(ends: tuple[End, End]) -> None:
    """A frame arrives as it was sent, with the rank that it is for, both ways."""
    rank, child = ends
    for frame in (Frame(Kind.SPAWN, 3, 4, 5, b"body"), Frame(Kind.MESSAGE, -1, 2**40, 0, b"x" * 60_000)):
        for here, there in ((rank, child), (child, rank)):
            here.link.put(-7, frame)
            assert there.next() == (-7, frame)


def test_buffers_of_all_sizes(ends: tuple[End, End]) -> None:
    """Buffers, and bodies that are too long for a head, cross whole and are the receiver's own, and writable."""
    rank, child = ends
    for size in (40_000, 130_000, 1 << 20, 5_000_001):
        array = np.arange(size, dtype=np.uint8)
        rank.put_array(array)
        seen = child.next_array()
        assert np.array_equal(seen, array) and seen.flags.writeable
        seen[:] = 0
        assert array[1] == 1
    rank.link.put(0, Frame(Kind.MESSAGE, 0, 0, 0, bytes(range(256)) * 1000))
    assert bytes(child.next()[1].body) == bytes(range(256)) * 1000


def test_more_buffers_than_descriptors_in_a_message(ends: tuple[End, End]) -> None:
    """A frame may have hundreds of buffers, in segments of their own or together in one."""
    rank, child = ends
    leases = [rank.arena.take(1 << 17) for _ in range(100)]
    for index, lease in enumerate(leases):
        lease[:] = bytes([index]) * len(lease)
    small = [memoryview(bytes([index]) * 33_000) for index in range(150)]
    rank.link.put(0, Frame(Kind.BATCH, 0, 0, 0, b"", [*leases, *small]))
    del leases, lease
    _, frame = child.next()
    assert [buffer[0] for buffer in frame.buffers] == [*range(100), *range(150)]
    assert [len(buffer) for buffer in frame.buffers] == [1 << 17] * 100 + [33_000] * 150


def test_memory_is_used_again(ends: tuple[End, End]) -> None:
    """What the receiver has let go is used again; what it keeps is not touched."""
    rank, child = ends
    kept = []
    for i in range(10):
        rank.put_array(np.full(50_000, float(i)))
        array = child.next_array()
        if i % 5 == 0:
            kept.append(array)
        del array
        tell(child, rank)
    assert rank.n_segments == 3 and rank.n_used == 2
    assert [array[7] for array in kept] == [0.0, 5.0]


def test_an_array_that_goes_back_is_not_copied(ends: tuple[End, End]) -> None:
    """What came through shared memory and is sent back goes by reference, whatever was done to it."""
    rank, child = ends
    rank.put_array(np.zeros(50_000))
    array = child.next_array()
    array += 1
    child.put_array(array)
    del array
    back = rank.next_array()
    tell(child, rank)
    assert child.n_segments == 0 and rank.n_used == 1
    assert back.sum() == 50_000
    del back
    assert rank.n_used == 0


def test_memory_that_is_given_away(ends: tuple[End, End]) -> None:
    """With `keep`, what the receiver does to a buffer is not seen by the sender, who may send it again."""
    rank, child = ends
    array = np.zeros(50_000)
    for _ in range(2):
        rank.put_array(array, keep=True)
        seen = child.next_array()
        assert seen.sum() == 0
        seen += 1
    assert array.sum() == 0 and rank.n_segments == 0


def test_huge_pages_are_asked_for_until_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large segments get huge pages; once the kernel has none, the following ones do not ask."""
    asked: list[int] = []
    answers = [True, False]

    def collapse(self: object, start: int, size: int) -> bool:
        asked.append(size)
        return answers.pop(0)

    monkeypatch.setattr(Mapping, "collapse", collapse)
    arena = Arena()
    leases = [arena.take(size) for size in (1 << 20, 1 << 24, 1 << 24, 1 << 24)]
    assert asked == [1 << 24, 1 << 24]
    for number, lease in enumerate(leases):
        lease[:] = bytes([number]) * len(lease)
    assert [lease[-1] for lease in leases] == [0, 1, 2, 3]


def test_memory_is_not_kept_for_ever(ends: tuple[End, End]) -> None:
    """Free memory is bounded: segments that are too much are dropped at both ends."""
    rank, child = ends
    for size in range(10):
        rank.put_array(np.zeros((MAX_FREE_BYTES // 4 + size * (MAX_FREE_BYTES // 16)) // 8))
        child.next_array()
        tell(child, rank)
    tell(rank, child)
    assert sum(free.capacity for free in rank.arena._free) <= MAX_FREE_BYTES
    assert len(child.link._mapped._memory) == rank.n_segments < 4


def test_memory_comes_back_when_the_child_is_gone(ends: tuple[End, End]) -> None:
    """A child that dies gives back what it had."""
    rank, child = ends
    rank.put_array(np.zeros(50_000))
    kept = child.next_array()
    assert rank.n_used == 1
    rank.link.close()
    assert rank.n_used == 0 and kept.sum() == 0


def test_a_slow_receiver_blocks_nobody(ends: tuple[End, End]) -> None:
    """What the socket does not take is kept, and sent in order, descriptors included."""
    rank, child = ends
    for i in range(200):
        rank.link.put(i, Frame(Kind.MESSAGE, i, 0, 0, bytes(10_000)))
        if i % 50 == 0:
            rank.put_array(np.full(50_000, float(i)))
    assert rank.link.unsent
    found: deque[Incoming] = deque()
    deadline = time.monotonic() + LIMIT_S
    while len(found) < 204:
        rank.link.push()
        child.link.pull(found)
        assert time.monotonic() < deadline
    assert [frame.a for _, frame in found if frame.kind is Kind.MESSAGE] == list(range(200))
    arrays = [unpack(frame.body, frame.buffers)[0] for _, frame in found if frame.kind is Kind.BATCH]
    assert arrays == [0.0, 50.0, 100.0, 150.0]


def test_transport_of_a_child() -> None:
    """A child sends to any rank through its own, and learns when that is gone."""
    pair = socket.socketpair()
    rank, transport = End(pair[0]), ChildTransport(3, 8, pair[1])
    transport.send(6, Frame(Kind.MESSAGE, 1))
    transport.send_or_copy(0, Frame(Kind.DONE, 2, 0, 0, *pack(np.ones(10_000))))
    assert rank.next() == (6, Frame(Kind.MESSAGE, 1))
    assert rank.next()[0] == 0
    rank.link.put(4, Frame(Kind.MESSAGE, 9))
    assert transport.receive(time.monotonic() + LIMIT_S) == (4, Frame(Kind.MESSAGE, 9))
    assert transport.complete_sends(0.0, lambda source, frame: None) and transport.flush(time.monotonic())
    rank.link.close()
    with pytest.raises(WorkerLostError):
        transport.receive(time.monotonic() + LIMIT_S)
    transport.close(0.0, lambda source, frame: None)
