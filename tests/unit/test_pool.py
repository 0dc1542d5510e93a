"""Landing memory that is used again."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskfarm.transport import pool as module
from taskfarm.transport.pool import BufferPool
from taskfarm.wire.codec import pack, unpack

SIZE = 1_000_003


def address(buffer: memoryview) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def free_addresses(pool: BufferPool) -> set[int]:
    return {block.ctypes.data for block in pool._free}


@pytest.fixture
def pool() -> BufferPool:
    return BufferPool()


@pytest.mark.parametrize("size", [0, 1, module.MIN_BYTES - 1, module.MIN_BYTES, SIZE, module.MAX_BYTES + 1])
def test_buffers_are_writable_bytes_of_the_size(pool: BufferPool, size: int) -> None:
    """Whatever its size, a buffer is what MPI and pickle want: flat, writable bytes."""
    buffer = pool.take(size)
    assert (len(buffer), buffer.format, buffer.readonly, buffer.c_contiguous) == (size, "B", False, True)


def test_memory_comes_back_when_nobody_refers_to_it(pool: BufferPool) -> None:
    """The next buffer of the size uses the same memory, but not before the last one is gone."""
    first = pool.take(SIZE)
    where = address(first)
    second = pool.take(SIZE)
    assert address(second) != where
    del first
    assert address(pool.take(SIZE)) == where


def test_the_warmest_memory_comes_first(pool: BufferPool) -> None:
    """Of several free blocks the one that was given back last is used again: it may still be in a cache."""
    first, second = pool.take(SIZE), pool.take(SIZE)
    where = address(first)
    del second
    del first
    assert address(pool.take(SIZE)) == where


def test_arrays_keep_their_memory(pool: BufferPool) -> None:
    """An array that was unpickled into a buffer, and every view of it, keeps it from being used again."""
    sent = np.arange(SIZE // 8, dtype=np.float64)
    body, (raw,) = pack(sent)
    buffer = pool.take(len(raw))
    buffer[:] = raw
    where = address(buffer)
    array = unpack(body, [buffer])
    del buffer
    assert array.ctypes.data == where and array.flags.writeable
    tail = array[-10:].reshape(2, 5)
    del array
    gc.collect()
    pool.take(len(raw))[:] = bytes(len(raw))
    assert np.array_equal(tail.ravel(), sent[-10:])
    del tail
    gc.collect()
    assert where in free_addresses(pool)


def test_views_do_not_give_memory_back(pool: BufferPool) -> None:
    """A view that dies while the buffer lives returns nothing, and no block is returned twice."""
    buffer = pool.take(SIZE)
    whole = np.asarray(buffer.obj)
    for _ in range(5):
        del whole
        whole = np.asarray(buffer.obj)[10:20]
    assert not pool._free
    del whole, buffer
    gc.collect()
    assert len(pool._free) == 1


def test_only_so_much_is_kept(pool: BufferPool) -> None:
    """When many arrays go at once, most of the memory goes, too."""
    buffers = [pool.take(8 << 20) for _ in range(10)]
    buffers.clear()
    assert sum(block.nbytes for block in pool._free) <= module.MAX_FREE_BYTES
    buffers = [pool.take(module.MIN_BYTES) for _ in range(100)]
    buffers.clear()
    assert len(pool._free) <= module.MAX_FREE


def test_sizes_that_are_not_used_any_more_make_room(pool: BufferPool) -> None:
    """Blocks that no message fits into do not fill the pool for ever."""
    for size in range(module.MIN_BYTES, 2 * module.MIN_BYTES, module.MIN_BYTES // 40):
        old = [pool.take(size) for _ in range(4)]
        old.clear()
    for _ in range(module.MAX_FREE):
        held = [pool.take(SIZE), pool.take(SIZE)]
        held.clear()
    known = free_addresses(pool)
    assert address(pool.take(SIZE)) in known


def test_leases_end_in_other_threads(pool: BufferPool) -> None:
    """The last reference may die anywhere, also while the owner takes a buffer."""
    stop = threading.Event()
    handed: list[memoryview] = []

    def drop() -> None:
        while not stop.is_set():
            handed.clear()

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        for index in range(2000):
            buffer = pool.take(module.MIN_BYTES * (1 + index % 3))
            buffer[0] = 1
            handed.append(buffer)
            del buffer
    finally:
        stop.set()
        thread.join()
    assert len({id(block) for block in pool._free}) == len(pool._free)


@given(st.integers(module.MIN_BYTES, module.MAX_BYTES))
def test_little_is_wasted(size: int) -> None:
    """A block is at most an eighth larger than what it is for, so that peaks of memory stay what they are."""
    assert size <= module._round_up(size) <= size * 1.125 + 1
