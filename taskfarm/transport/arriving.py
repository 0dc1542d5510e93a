"""A frame that is coming in through MPI, and the pieces in which bulk travels."""

from __future__ import annotations

from collections.abc import Iterator

from mpi4py import MPI

from taskfarm.transport.memory import PIECE_BYTES
from taskfarm.wire.frames import Buffer, Head

__all__ = ["BULK_CHUNK_BYTES", "Arrival", "chunks"]

BULK_CHUNK_BYTES = PIECE_BYTES


class Arrival:
    """A frame that is coming in."""

    __slots__ = ("bulk", "data", "head", "requests")

    def __init__(self, data: Buffer, requests: list[MPI.Request]) -> None:
        self.data = data
        self.requests = requests
        self.head: Head | None = None
        self.bulk: list[Buffer] = []

    @property
    def is_posted(self) -> bool:
        """Whether MPI has the memory for all of its parts."""
        return self.head is not None

    @property
    def is_complete(self) -> bool:
        """Whether all of it is here."""
        return self.head is not None and not self.requests

    @property
    def bulk_bytes(self) -> int:
        """Size of its bulk."""
        return sum(map(len, self.bulk))


def chunks(memory: Buffer) -> Iterator[memoryview]:
    """Yield `memory` as the bulk messages in which it travels."""
    view = memoryview(memory)
    for start in range(0, len(view), BULK_CHUNK_BYTES):
        yield view[start : start + BULK_CHUNK_BYTES]
