"""A block on its way over several hosts: every rank of the tree has it whole, passes it on, or says why not."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from taskfarm.errors import ProtocolError
from taskfarm.runtime.sharing import receiving
from taskfarm.runtime.sharing.receiving import BlockReceiver, ShareOption
from taskfarm.scheduling.tree import children
from taskfarm.transport.blocks import Block, open_block
from taskfarm.transport.local import LocalHub
from taskfarm.wire.frames import Frame, Kind

NUMBER = 0x4000000000FEDCBA
SIZE, PIECE = 1_000_000, 300_000


def spread(n_hosts: int, no_memory: int | None = None) -> tuple[dict[int, str], dict[int, list[Block]], bytes]:
    """Send a block from rank 0 along the tree; return what the others answered, what they keep, and the data."""
    data = os.urandom(SIZE)
    transports = LocalHub(n_hosts).transports()
    kept: dict[int, list[Block]] = {rank: [] for rank in range(1, n_hosts)}
    stop = threading.Event()

    def serve(rank: int) -> None:
        receiver = BlockReceiver(transports[rank], lambda number, block: kept[rank].append(block))
        while not stop.is_set():
            item = transports[rank].receive(time.monotonic() + 0.01)
            if item is not None:
                receiver.on_frame(*item)

    threads = [threading.Thread(target=serve, args=(rank,)) for rank in range(1, n_hosts)]
    for thread in threads:
        thread.start()
    ours = children(0, n_hosts)
    holders = np.arange(n_hosts).tobytes()
    transports[0].send_to(ours, Frame(Kind.SHARE, NUMBER, SIZE, ShareOption.BEGIN, holders))
    for start in range(0, SIZE, PIECE):
        piece = memoryview(data)[start : start + PIECE]
        transports[0].send_to(ours, Frame(Kind.SHARE, NUMBER, start, ShareOption.PIECE, b"", [piece]))
    answers: dict[int, str] = {}
    deadline = time.monotonic() + 10
    while len(answers) < n_hosts - 1 and time.monotonic() < deadline:
        item = transports[0].receive(deadline)
        if item is not None:
            source, frame = item
            assert (frame.kind, frame.a) == (Kind.SHARED, NUMBER)
            answers[source] = bytes(frame.body).decode()
    stop.set()
    for thread in threads:
        thread.join()
    return answers, kept, data


@pytest.mark.parametrize("n_hosts", [2, 3, 8])
def test_every_holder_has_the_block(n_hosts: int) -> None:
    """Each keeps one block, which holds what was sent and cannot be changed, and says so once."""
    answers, kept, data = spread(n_hosts)
    assert answers == dict.fromkeys(range(1, n_hosts), "")
    for blocks in kept.values():
        (block,) = blocks
        assert open_block(NUMBER, os.getpid(), block.descriptor)[:] == data
        with pytest.raises(PermissionError):
            block.write(0, b"x")


def test_holder_without_memory_still_passes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer says why; those behind it in the tree get the block."""
    refused: list[int] = []

    def refuse_once(number: int, size_bytes: int) -> Block:
        if threading.current_thread().name == victim and not refused:
            refused.append(number)
            raise OSError("no memory here")
        return Block(number, size_bytes)

    victim = "victim"
    monkeypatch.setattr(receiving, "new_block", refuse_once)
    original = threading.Thread.run

    def run(self: threading.Thread) -> None:
        if self._args == (4,):  # type: ignore[attr-defined]
            self.name = victim
        original(self)

    monkeypatch.setattr(threading.Thread, "run", run)
    answers, kept, data = spread(8)
    assert answers == {**dict.fromkeys(range(1, 8), ""), 4: "no memory here"}
    assert [rank for rank, blocks in kept.items() if not blocks] == [4]
    assert all(blocks[0].map()[:] == data for rank, blocks in kept.items() if rank != 4)


def test_stray_piece_changes_nothing() -> None:
    """A piece of a block that is not on its way is refused."""
    receiver = BlockReceiver(LocalHub(1).transports()[0], lambda number, block: None)
    with pytest.raises(ProtocolError, match="not on its way"):
        receiver.on_frame(0, Frame(Kind.SHARE, NUMBER, 0, ShareOption.PIECE, b"", [memoryview(b"x")]))


@pytest.mark.parametrize(
    ("size", "holders"),
    [
        (0, [0, 1]),
        (-1, [0, 1]),
        (10, []),
        (10, [0, 2]),
        (10, [1, 0]),
        (10, [0, 1, 1]),
        (10, [0, 1, 3]),
        (10, [0, 1, -1]),
    ],
)
def test_beginning_that_makes_no_sense_changes_nothing(size: int, holders: list[int]) -> None:
    """A block of no size, or for holders among which this rank is not, or that do not exist, is refused."""
    receiver = BlockReceiver(LocalHub(3).transports()[1], lambda number, block: None)
    with pytest.raises(ProtocolError, match="a block"):
        receiver.on_frame(0, Frame(Kind.SHARE, NUMBER, size, ShareOption.BEGIN, np.array(holders, np.int64).tobytes()))


@pytest.mark.parametrize("offset", [-1, 91, 1 << 40])
def test_piece_beyond_the_block_is_refused(offset: int) -> None:
    """It would make the block larger, or take the place of another piece."""
    kept: list[object] = []
    receiver = BlockReceiver(LocalHub(2).transports()[1], lambda number, block: kept.append(block))
    receiver.on_frame(0, Frame(Kind.SHARE, NUMBER, 100, ShareOption.BEGIN, np.arange(2).tobytes()))
    with pytest.raises(ProtocolError, match="a piece of 10 bytes"):
        receiver.on_frame(0, Frame(Kind.SHARE, NUMBER, offset, ShareOption.PIECE, b"", [memoryview(bytes(10))]))
    receiver.on_frame(0, Frame(Kind.SHARE, NUMBER, 0, ShareOption.PIECE, b"", [memoryview(bytes(100))]))
    assert len(kept) == 1


def test_too_much_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block larger than the memory that is left is not begun."""
    monkeypatch.setattr(receiving, "free_memory_bytes", lambda: 1 << 20)
    with pytest.raises(OSError, match="0.00105 GB are left"):
        receiving.new_block(NUMBER, 1 << 30)
    receiving.new_block(NUMBER, 1000).close()
