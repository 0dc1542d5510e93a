"""Time limits of items: how they travel, and when they are over."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from taskfarm.errors import ProtocolError
from taskfarm.runtime.options import LossCause
from taskfarm.wire.frames import Buffer

__all__ = ["Limits", "Sentence", "pack_limits", "read_limits"]


def pack_limits(limits: Sequence[float]) -> bytes:
    """Return the body of a LIMIT frame."""
    return array("d", limits).tobytes()


def read_limits(body: Buffer) -> Sequence[float]:
    """Return what `pack_limits` made bytes of; raise `ProtocolError` if these are others."""
    limits = array("d")
    if not len(body) or len(body) % limits.itemsize:
        raise ProtocolError(f"a LIMIT body has {len(body)} bytes")
    limits.frombytes(body)
    return limits


class Sentence(NamedTuple):
    """Why a task child is killed."""

    cause: LossCause
    text: str


class Limits:
    """What a rank knows of batches that it has: how long their items may take, and which of them nobody wants."""

    def __init__(self) -> None:
        self._seconds: dict[int, Sequence[float]] = {}  # by batch
        self._cancelled: dict[int, set[int]] = {}  # positions, by batch

    def set(self, batch: int, seconds: Sequence[float]) -> None:
        """Note how long each item of a batch may take, or all of them if there is one number."""
        self._seconds[batch] = seconds

    def cancel(self, batch: int, position: int) -> None:
        """Note that nobody wants an item."""
        self._cancelled.setdefault(batch, set()).add(position)

    def forget(self, batch: int) -> None:
        """Forget a batch."""
        self._seconds.pop(batch, None)
        self._cancelled.pop(batch, None)

    def are_for(self, batch: int) -> bool:
        """Tell whether anything is known of a batch."""
        return batch in self._seconds or batch in self._cancelled

    def judge(self, batch: int, position: int, since: float, now: float) -> Sentence | None:
        """Say why the item at `position`, which has run since then (seconds), is not to go on, if so."""
        if position < 0:  # none of them
            return None
        seconds = self._seconds.get(batch, (math.inf,))
        limit_s = seconds[min(position, len(seconds) - 1)]
        if position in self._cancelled.get(batch, ()):
            return Sentence(LossCause.CANCELLED, "it was cancelled")
        if now - since > limit_s:
            return Sentence(LossCause.TIMEOUT, f"it had not ended after timeout_s={limit_s:g} s")
        return None
