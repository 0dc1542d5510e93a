"""Identifiers of hosts and tasks of the MPI virtual machine.

Both are small immutable values: equal by value, hashable, usable as keys on every rank, and safe to compare with
anything. One task identifier is made per message, hence the slots that are written through their descriptors: that
costs no more than plain assignment, although ``__setattr__`` refuses every change.
"""

from __future__ import annotations

from typing import Any, NoReturn

from taskfarm.vm._messages import HostID, TaskID

__all__ = ["MPIHostID", "MPITaskID"]


class MPIHostID(HostID):
    """A host of the virtual machine, known by its name.

    Parameters
    ----------
    name : str or None
        Name of the host; None makes the identifier invalid.
    """

    __slots__ = ("name",)
    name: str | None

    def __init__(self, name: str | None) -> None:
        _set_name(self, name)

    @staticmethod
    def bad() -> MPIHostID:
        """Return an identifier that names no host."""
        return MPIHostID(None)

    def valid(self) -> bool:
        """Return True if this identifier names a host."""
        return self.name is not None

    def __bool__(self) -> bool:
        return self.name is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MPIHostID) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return "MPI_NOHOST" if self.name is None else self.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __reduce__(self) -> tuple[type[MPIHostID], tuple[str | None]]:
        return type(self), (self.name,)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise _immutable(self, name)

    def __delattr__(self, name: str) -> NoReturn:
        raise _immutable(self, name)


class MPITaskID(TaskID):
    """A task of the virtual machine, known by the rank that runs it and the number that the spawner gave it.

    Parameters
    ----------
    rank : int
        Rank that runs the task; a negative one makes the identifier invalid.
    number : int
        Number of the task; 0 is the main program on the spawner, spawned tasks count from 1.
    """

    __slots__ = ("number", "rank")
    rank: int
    number: int

    def __init__(self, rank: int, number: int) -> None:
        _set_rank(self, rank)
        _set_number(self, number)

    @staticmethod
    def bad() -> MPITaskID:
        """Return an identifier that names no task: rank and number are -1."""
        return MPITaskID(-1, -1)

    def valid(self) -> bool:
        """Return True if this identifier names a task."""
        return self.rank >= 0

    def __bool__(self) -> bool:
        return self.rank >= 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MPITaskID) and self.rank == other.rank and self.number == other.number

    def __hash__(self) -> int:
        return hash((self.rank, self.number))

    def __str__(self) -> str:
        return f"{self.rank}:{self.number}" if self.rank >= 0 else "MPI_NOTASK"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.rank!r}, {self.number!r})"

    def __reduce__(self) -> tuple[type[MPITaskID], tuple[int, int]]:
        return type(self), (self.rank, self.number)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise _immutable(self, name)

    def __delattr__(self, name: str) -> NoReturn:
        raise _immutable(self, name)


_set_name = MPIHostID.__dict__["name"].__set__
_set_rank = MPITaskID.__dict__["rank"].__set__
_set_number = MPITaskID.__dict__["number"].__set__


def _immutable(identifier: HostID | TaskID, name: str) -> AttributeError:
    return AttributeError(f"{identifier!r} cannot be changed ({name!r}); make a new {type(identifier).__name__}")
