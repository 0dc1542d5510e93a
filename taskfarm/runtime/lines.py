"""Lines on a socket."""

from __future__ import annotations

__all__ = ["Lines"]

_MAX_LINE_BYTES = 1 << 20


class Lines:
    """Splits what a socket brings into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes; `ValueError` if one does not end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            raise ValueError("line too long")
        return lines
