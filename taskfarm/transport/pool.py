"""Landing memory that is used again, so that the kernel need not make it anew for every message.

Memory that is touched for the first time costs a page fault per 4 kB, and the C library gives freed blocks of this
size back to the kernel: for arrays of 1 to 16 MB that takes as long as the transfer. So a block goes back to the pool
when the last array in it is gone. What the receiver keeps, it owns as it owns any other memory.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

__all__ = ["BufferPool"]

MIN_BYTES = 128 * 1024  # smaller blocks stay with the C library's heap (M_MMAP_THRESHOLD of glibc)
MAX_BYTES = 16 << 20  # larger ones come rarely, and are too much to keep
MAX_FREE_BYTES = 32 << 20  # of one process, kept for nothing when no more messages come
MAX_FREE = 32  # blocks; they are looked through one by one
_STEPS = 8  # sizes per power of two: at most an eighth of a block is wasted

_Block = np.ndarray[Any, Any]


class _Lease(np.ndarray[Any, Any]):
    """A view of a block that gives it back when nobody refers to it any more; views of it do not."""

    _free: deque[_Block] | None = None
    _block: _Block

    def __del__(self) -> None:
        # May run at any time, in any thread: it only looks, and appends.
        free = self._free
        if free is not None and len(free) < MAX_FREE:
            block = self._block
            if sum(other.nbytes for other in tuple(free)) + block.nbytes <= MAX_FREE_BYTES:
                free.append(block)


class BufferPool:
    """Memory for buffers that are about to arrive; used by one thread, its leases by any."""

    def __init__(self) -> None:
        self._free: deque[_Block] = deque()

    def take(self, size_bytes: int) -> memoryview:
        """Return `size_bytes` bytes of writable memory with any content, which belong to who refers to them."""
        if not MIN_BYTES <= size_bytes <= MAX_BYTES:
            return np.empty(size_bytes, dtype=np.uint8).data
        capacity = _round_up(size_bytes)
        free = self._free
        # The one that was given back last is the most likely to be in a cache. By index from the end on, since a lease
        # may end, and append, at any moment.
        for index in range(len(free) - 1, -1, -1):
            if free[index].nbytes == capacity:
                block = free[index]
                del free[index]
                break
        else:
            if len(free) > MAX_FREE // 2:
                free.popleft()  # sizes that are not asked for any more make room in time
            block = np.empty(capacity, dtype=np.uint8)
        lease = block.view(_Lease)
        lease._block = block
        lease._free = free
        return lease.data[:size_bytes]


def _round_up(size_bytes: int) -> int:
    step = 1 << max(size_bytes.bit_length() - 1 - (_STEPS - 1).bit_length(), 0)
    return -(-size_bytes // step) * step
