"""Giving up a rank that died: MPI never completes what is under way to it or from it, and nobody may wait for that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from mpi4py import MPI

from taskfarm.transport.base import Incoming
from taskfarm.transport.clearance import Clearance
from taskfarm.wire.frames import Frame, Kind

__all__ = ["Losing", "Send"]

Send = tuple[MPI.Request, object, int]  # the memory that it keeps alive, and for whom


class Losing:
    """The part of the MPI transport that knows of lost ranks.

    Attributes
    ----------
    lost : set of int
        Ranks that were given up.
    """

    lost: set[int]
    _news: Sequence[int]
    _take_losses: Callable[[], Sequence[tuple[int, str]]]
    _abandoned: list[object]
    _sends: deque[Send]
    _borrowed: deque[Send]
    _arriving: dict[int, Any]
    _clearance: Clearance
    _ready: deque[Incoming]

    def watch_losses(self, news: Sequence[int], take_losses: Callable[[], Sequence[tuple[int, str]]]) -> None:
        """Have ``take_losses() -> [(rank, how it died)]`` called whenever ``news[0]`` has changed."""
        self._news, self._take_losses = news, take_losses

    def lose(self, rank: int, how: str) -> None:
        """Give rank `rank` up: nothing is sent to it or taken from it any more, and nobody waits for it.

        What it sent before, as far as it is here, is delivered; then a LOST frame.
        """
        if rank in self.lost:
            return
        self.lost.add(rank)
        for sends in (self._sends, self._borrowed):
            self._abandoned += [send for send in sends if send[2] == rank]
            alive = [send for send in sends if send[2] != rank]
            sends.clear()
            sends.extend(alive)
        self._abandoned.append(self._arriving.pop(rank, None))
        self._clearance.promised.pop(rank, None)
        self._ready.append((rank, Frame(Kind.LOST, rank, body=how.encode())))
