"""Time limits of items, as they travel."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from taskfarm.errors import ProtocolError
from taskfarm.wire.frames import Buffer

__all__ = ["pack_limits", "read_limits"]


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
