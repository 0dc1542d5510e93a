"""Identifiers shared by the faces."""

from __future__ import annotations

__all__ = ["ObjectId"]


class ObjectId(int):
    """Handle of a distributed object: the same integer names, on each rank, that rank's own part.

    Arguments of this type are replaced by the rank's own object where the documentation of a function says so.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self)})"
