"""What the simulated workers run. It goes through pickle like any work, so it is plain functions and classes."""

from __future__ import annotations

from contextvars import ContextVar
from enum import Enum
from typing import Any, NamedTuple, Protocol

__all__ = ["STAGE", "Item", "Kind", "Stage", "expected", "work"]


class Kind(Enum):
    """What a task does."""

    GOOD = "returns"
    RAISES = "raises"
    POISON = "kills its worker"
    BAD_RESULT = "returns what cannot be pickled"
    UNREADABLE_RESULT = "returns what rank 0 cannot unpickle"
    UNREADABLE_ARGUMENT = "has an argument that the worker cannot unpickle"


class Stage(Protocol):
    """The simulated worker that runs a task."""

    def spend(self, seconds: float) -> None:
        """Let time pass."""

    def die(self) -> None:
        """Die now."""


STAGE: ContextVar[Stage | None] = ContextVar("STAGE", default=None)


class Item(NamedTuple):
    """One task.

    Attributes
    ----------
    n_workers : int
        How many workers run it together; 0 if it asks for none in particular.
    """

    number: int
    kind: Kind
    seconds: float
    load: Any = None
    n_workers: int = 0


class Unpicklable:
    """Fails when it is pickled."""

    def __reduce__(self) -> Any:
        raise ValueError("cannot be pickled")


class Unreadable:
    """Fails when it is unpickled on a worker (`there`), or on rank 0."""

    def __init__(self, there: bool) -> None:
        self.there = there

    def __reduce__(self) -> Any:
        return _read, (self.there,)


def _read(there: bool) -> Unreadable:
    if there == (STAGE.get() is not None):
        raise ValueError("cannot be unpickled")
    return Unreadable(there)


def work(item: Item) -> Any:
    """Run a task on the worker of this moment."""
    stage = STAGE.get()
    if stage is None:
        raise RuntimeError("a simulated task outside of a simulation")
    stage.spend(item.seconds)
    if item.kind is Kind.POISON:
        stage.die()
    if item.kind is Kind.RAISES:
        raise ValueError(item.number)
    if item.kind is Kind.BAD_RESULT:
        return Unpicklable()
    if item.kind is Kind.UNREADABLE_RESULT:
        return Unreadable(there=False)
    return expected(item)


def expected(item: Item) -> int:
    """Return what a good task returns."""
    return 2 * item.number + 1
