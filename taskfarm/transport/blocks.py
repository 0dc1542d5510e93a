"""Blocks of memory that the processes of a host share: written once, opened by whoever is told of them.

A block has no name in any file system: it is a ``memfd``, or, where a sandbox forbids these, a file of ``/dev/shm``
that was unlinked at once. So the kernel takes it back when the last process that holds it has ended, however it ended;
``kill -9`` of all of them leaves nothing. Others open it through ``/proc/<pid>/fd/<n>`` of a process that holds it,
which takes no help of that process: it may compute for hours meanwhile. The kernel allows that to processes of the
same user in the same user namespace; `memory_key` says who they are.

Blocks are filled by ``pwrite``, which takes no page faults, and get huge pages (`taskfarm.transport.pages`).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from taskfarm.transport.pages import HUGE_BYTES, Mapping, take_huge_pages
from taskfarm.wire.frames import Buffer

__all__ = ["Block", "memory_key", "open_block"]

_CHUNK_BYTES = 1 << 26  # of one pwrite, which cannot be interrupted: 30 ms
_SEALS = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


def memory_key() -> str:
    """Return a text that is equal on processes that can open each other's blocks."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    for name in ("pid", "user"):
        with contextlib.suppress(OSError):
            parts.append(str(os.stat(f"/proc/self/ns/{name}").st_ino))
    return "/".join([*(parts or [socket.gethostname()]), str(os.getuid())])


class Block:
    """A block that this process holds, and others can open while it does.

    Parameters
    ----------
    number : int
        By which those who open it know that it is the right one; hard to guess.
    size_bytes : int
        Its size; it is filled with zeros.

    Raises
    ------
    OSError
        If the system has no such memory.
    """

    def __init__(self, number: int, size_bytes: int) -> None:
        self.descriptor = -1
        self.number = number
        self.size_bytes = size_bytes
        self.descriptor = _new_file(_name(number))
        os.ftruncate(self.descriptor, size_bytes)
        if size_bytes >= HUGE_BYTES:
            take_huge_pages(self.descriptor, Mapping(self.descriptor, size_bytes), size_bytes)

    def write(self, offset: int, data: Buffer) -> None:
        """Copy `data` to `offset`; `OSError` if there is no memory for it."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _CHUNK_BYTES):
            part = view[start : start + _CHUNK_BYTES]
            while part:
                n = os.pwrite(self.descriptor, part, offset + start)
                start, part = start + n, part[n:]

    def allocate(self) -> None:
        """Take the memory now; without it, pages are taken when they are first written to, and may be missing then."""
        os.posix_fallocate(self.descriptor, 0, self.size_bytes)

    def seal(self, *, writable: bool) -> None:
        """Have the kernel refuse changes of the size, and of the content unless it is to stay `writable`."""
        seals = [getattr(fcntl, name, 0) for name in (*_SEALS, *(() if writable else ("F_SEAL_WRITE",)))]
        with contextlib.suppress(OSError, AttributeError):  # not a memfd
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, sum(seals))

    def map(self, *, writable: bool = False) -> memoryview:
        """Return the block's memory, which stays for as long as anything refers to it, also after `close`."""
        return open_block(self.number, os.getpid(), self.descriptor, writable=writable)

    def __del__(self) -> None:
        self.close()

    _close_file = staticmethod(os.close)  # modules may have gone before the last block

    def close(self) -> None:
        """Hold it no longer: nobody can open it any more, who has mapped it keeps it."""
        if self.descriptor >= 0:
            self._close_file(self.descriptor)
            self.descriptor = -1


def open_block(number: int, pid: int, descriptor: int | None = None, *, writable: bool = False) -> memoryview:
    """Return the memory of a block that process `pid` holds.

    Parameters
    ----------
    number : int
        The block's number.
    pid : int
        The process, of the same `memory_key`.
    descriptor : int, optional
        Its descriptor there, which is looked for if it is not given.
    writable : bool
        Whether to map it for writing.

    Raises
    ------
    OSError
        If there is no such block, or not any more.
    """
    folder = f"/proc/{pid}/fd"
    for name in (str(descriptor),) if descriptor is not None else _find(folder, number):
        ours = os.open(f"{folder}/{name}", os.O_CLOEXEC | (os.O_RDWR if writable else os.O_RDONLY))
        try:
            if _name(number) in os.readlink(f"/proc/self/fd/{ours}"):  # the process number may be another one's by now
                if not writable and (size := os.fstat(ours).st_size) >= HUGE_BYTES:
                    return Mapping(ours, size).memory
                return memoryview(mmap.mmap(ours, 0, mmap.MAP_SHARED, mmap.PROT_READ | (writable and mmap.PROT_WRITE)))
        finally:
            os.close(ours)
    raise FileNotFoundError(f"process {pid} holds no block {number:x}")


def _name(number: int) -> str:
    return f"taskfarm-{number:x}-"


def _new_file(name: str) -> int:
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    descriptor, path = tempfile.mkstemp(prefix=name, dir="/dev/shm")
    os.unlink(path)
    return descriptor


def _find(folder: str, number: int) -> Iterator[str]:
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            if _name(number) in os.readlink(f"{folder}/{name}"):
                yield name
