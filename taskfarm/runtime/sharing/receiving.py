"""A worker's part in bringing a block of shared memory to every host: take it in, pass it on, say so.

The block comes in pieces, along a binomial tree over the holders, one rank per host. A piece is passed on from the
block itself, as soon as it is there: so a holder needs no memory but the block, and all hosts are filled at the
same time.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

from taskfarm.errors import ProtocolError
from taskfarm.runtime.launching.surroundings import free_memory_bytes
from taskfarm.scheduling.tree import children
from taskfarm.transport.base import Transport
from taskfarm.transport.blocks import Block
from taskfarm.wire.frames import Buffer, Frame, Kind

__all__ = ["BlockReceiver", "ShareOption", "new_block"]


class ShareOption(IntEnum):
    """What a SHARE frame carries."""

    BEGIN = 0  #: the ranks of the holders, int64, rank 0 first; `b` is the size of the block
    PIECE = 1  #: a part of the block; `b` is its offset


def new_block(number: int, size_bytes: int) -> Block:
    """Return a new block; `OSError` if this host, or this process's control group, has not so much memory left."""
    free = free_memory_bytes()
    if free is not None and size_bytes > free:
        raise OSError(errno.ENOMEM, f"{size_bytes / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are left")
    return Block(number, size_bytes)


class _Incoming:
    """A block that is on its way to this rank; `block` is None where there is no memory for it."""

    def __init__(self, number: int, size_bytes: int, children: list[int]) -> None:
        self.children = children
        self.size_bytes = self.n_missing = size_bytes
        self.failure = b""
        self.block: Block | None = None
        self.memory: Any = None
        try:
            self.block = new_block(number, size_bytes)
            self.memory = memoryview(self.block.map())
        except OSError as exc:
            self._fail(exc)

    def take(self, offset: int, piece: Buffer) -> Buffer:
        """Put a piece into the block; return its memory there, or the piece itself where there is none."""
        if not 0 <= offset <= offset + len(piece) <= self.size_bytes or len(piece) > self.n_missing:
            raise ProtocolError(f"a piece of {len(piece)} bytes at {offset} of a block of {self.size_bytes}")
        self.n_missing -= len(piece)
        if self.block is not None:
            try:
                self.block.write(offset, piece)
                view: memoryview = self.memory[offset : offset + len(piece)]
                return view
            except OSError as exc:
                self._fail(exc)
        return piece

    def _fail(self, exc: OSError) -> None:
        self.failure = str(exc).encode()
        self.block = None


class BlockReceiver:
    """Takes in blocks.

    Parameters
    ----------
    transport : Transport
        Where they come from, and are passed on.
    keep : callable
        ``keep(number, block)`` keeps a block until rank 0 does not need it any more.
    """

    def __init__(self, transport: Transport, keep: Callable[[int, object], None]) -> None:
        self._transport = transport
        self._keep = keep
        self._incoming: dict[int, _Incoming] = {}

    def on_frame(self, source: int, frame: Frame) -> None:
        """React to the beginning of a block, or to a part of one."""
        if frame.option == ShareOption.BEGIN:
            self._begin(frame)
            return
        incoming = self._incoming.get(frame.a)
        if incoming is None or frame.option != ShareOption.PIECE or len(frame.buffers) != 1:
            raise ProtocolError(f"a piece of block {frame.a:x}, which is not on its way here")
        self._take(incoming, frame)

    def _begin(self, frame: Frame) -> None:
        ours = self._children(frame)
        self._transport.send_to(ours, frame)
        self._incoming[frame.a] = _Incoming(frame.a, frame.b, ours)

    def _children(self, frame: Frame) -> list[int]:
        """Return the ranks that get the block from here."""
        if len(frame.body) % 8 or frame.b < 1:
            raise ProtocolError(f"a block of {frame.b} bytes, for holders in {len(frame.body)} bytes")
        holders = np.frombuffer(frame.body, np.int64).tolist()
        me, size = self._transport.rank, self._transport.size
        if me not in holders[1:] or len(set(holders)) < len(holders) or not all(0 <= rank < size for rank in holders):
            raise ProtocolError(f"a block for rank {me} among the holders {holders}")
        return [holders[place] for place in children(holders.index(me), len(holders))]

    def _take(self, incoming: _Incoming, frame: Frame) -> None:
        piece = incoming.take(frame.b, frame.buffers[0])
        self._transport.send_to(incoming.children, frame._replace(buffers=[piece]))
        if incoming.n_missing:
            return
        del self._incoming[frame.a]
        if incoming.block is not None:
            incoming.block.seal(writable=False)
            self._keep(frame.a, incoming.block)
        self._transport.send(0, Frame(Kind.SHARED, frame.a, body=incoming.failure))
