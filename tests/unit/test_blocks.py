"""Blocks of shared memory: opened by number only, sealed, gone with the last process that holds them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from taskfarm.transport import blocks
from taskfarm.transport.blocks import Block, memory_key, open_block
from taskfarm.transport.pages import Mapping

NUMBER = 0x4000000000ABCDEF

HOLD = """
import sys, time
from taskfarm.transport.blocks import Block
block = Block(int(sys.argv[1]), 100000)
block.write(50000, b"from the child")
print(block.descriptor, flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["memfd", "file"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of memory: as it is, and where a sandbox forbids the first one."""
    if request.param == "file":

        def refuse(*args: object) -> int:
            raise PermissionError

        monkeypatch.setattr(os, "memfd_create", refuse)
    return str(request.param)


def test_what_is_written_is_read(kind: str) -> None:
    """Data at any offset is seen by whoever opens the block, also after it was closed by the one who made it."""
    block = Block(NUMBER, 200_000_000)
    data = os.urandom(100_000)
    block.write(199_900_000, data)
    block.seal(writable=False)
    memory = open_block(NUMBER, os.getpid())
    descriptor = block.descriptor
    block.close()
    block.close()
    assert memory[199_900_000:] == data
    assert memory[:100] == bytes(100)
    with pytest.raises(TypeError):
        memory[0] = 1
    with pytest.raises(FileNotFoundError):
        open_block(NUMBER, os.getpid(), descriptor)


def test_large_block_begins_where_huge_pages_can() -> None:
    """Every size from a huge page on is mapped aligned, holds what was written at both ends, and goes when unused."""
    for size in (1 << 21, (1 << 21) + 1, 300_000_001):
        block = Block(NUMBER, size)
        block.write(size - 5, b"12345")
        block.write(0, b"6")
        block.seal(writable=False)
        memory = block.map()
        assert np.frombuffer(memory, np.uint8).ctypes.data % (1 << 21) == 0
        assert (len(memory), bytes(memory[:2]), bytes(memory[-6:])) == (size, b"6\0", b"\00012345")
        assert f"taskfarm-{NUMBER:x}" in Path("/proc/self/maps").read_text()
        del memory
        block.close()
        assert f"taskfarm-{NUMBER:x}" not in Path("/proc/self/maps").read_text()


def test_huge_pages_are_used_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that does not collapse is asked once and has small pages; one that is slow at it is not asked again."""
    asked: list[tuple[int, int]] = []

    def collapse(self: object, start: int, size: int) -> bool:
        asked.append((start, size))
        return False

    monkeypatch.setattr(Mapping, "collapse", collapse)
    Block(NUMBER, 300_000_000).close()
    assert asked == [(0, 1 << 26)]
    assert os.fstat(Block(NUMBER, 300_000_000).descriptor).st_blocks * 512 < 1_000_000


def test_nothing_has_a_name(kind: str) -> None:
    """While a block lives, no file system shows it: nothing can be left behind."""
    block = Block(NUMBER, 1000)
    assert not [path for path in Path("/dev/shm").iterdir() if "taskfarm-" in path.name and "abcdef" in path.name]
    block.close()


def test_sealed_block_cannot_change() -> None:
    """Not even the one who made it can change content or size."""
    block = Block(NUMBER, 1000)
    block.seal(writable=False)
    with pytest.raises(PermissionError):
        block.write(0, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(block.descriptor, 10)
    with pytest.raises(PermissionError):
        block.map(writable=True)


def test_writable_block_is_shared(kind: str) -> None:
    """What is written through one mapping is seen through another one."""
    block = Block(NUMBER, 5000)
    block.allocate()
    block.seal(writable=True)
    one, other = block.map(writable=True), open_block(NUMBER, os.getpid(), block.descriptor)
    one[4999] = 7
    assert other[4999] == 7


def test_wrong_number_is_not_opened() -> None:
    """A process number or descriptor that belongs to something else by now is noticed."""
    block = Block(NUMBER, 1000)
    with open(__file__, "rb") as file, pytest.raises(FileNotFoundError):
        open_block(NUMBER, os.getpid(), file.fileno())
    with pytest.raises(FileNotFoundError):
        open_block(NUMBER + 1, os.getpid(), block.descriptor)
    with pytest.raises(FileNotFoundError):
        open_block(NUMBER, 1 << 22, 3)


def test_block_of_another_process_is_gone_with_it() -> None:
    """A block can be opened while a process holds it, stays where it is mapped, and is gone after ``kill -9``."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(NUMBER)], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            descriptor = int(child.stdout.readline())
            memory = open_block(NUMBER, child.pid, descriptor)
            assert open_block(NUMBER, child.pid)[50000:50014] == b"from the child"
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert memory[50000:50014] == b"from the child"
        deadline = time.monotonic() + 5
        with pytest.raises(FileNotFoundError):
            while time.monotonic() < deadline:
                open_block(NUMBER, child.pid, descriptor)


def test_key_is_that_of_this_host_and_user() -> None:
    """It names who may open blocks: the running system, the namespaces of processes and users, and the user."""
    assert memory_key() == blocks.memory_key()
    assert memory_key().endswith(f"/{os.getuid()}")
    assert str(os.stat("/proc/self/ns/user").st_ino) in memory_key()
