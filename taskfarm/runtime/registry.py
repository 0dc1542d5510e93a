"""Managed objects of one rank, and the handles that own them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from taskfarm.errors import UsageError
from taskfarm.ids import ObjectId

__all__ = ["PlacedObjectId", "Rank0ObjectId", "Registry"]

# Numbers of objects that tasks make: 1 << 62, the run's number, and which one it is. Those of calls count up from 0.
_PLACED = 1 << 62
_OF_RUN_BITS = 20


class Rank0ObjectId(ObjectId):
    """Handle on rank 0 that owns: when its last reference dies, the object goes on all ranks.

    A copy, or what arrives when it is pickled, is a plain `ObjectId` of the same value. Its death only queues; the
    next entry into the library sends.
    """

    _dying: deque[int] | None = None

    def __del__(self) -> None:
        if self._dying is not None:
            self._dying.append(int(self))

    def __reduce__(self) -> tuple[type[ObjectId], tuple[int]]:
        return ObjectId, (int(self),)


class PlacedObjectId(ObjectId):
    """Handle of an object that a placed task has made: it lives on the ranks of that task.

    On rank 0 it owns: when the last such handle dies, the object goes, at the next use of an executor. Elsewhere it is
    just a name.

    Attributes
    ----------
    ranks : tuple of int
        Where the object is; for ``with_options(ranks_in=handle.ranks)``.
    """

    ranks: tuple[int, ...] = ()
    _dying: deque[tuple[int, tuple[int, ...]]] | None = None

    def __del__(self) -> None:
        if self._dying is not None:
            self._dying.append((int(self), self.ranks))

    def __reduce__(self) -> tuple[Any, tuple[int, tuple[int, ...]]]:
        return _arrive, (int(self), self.ranks)


def _arrive(number: int, ranks: tuple[int, ...]) -> PlacedObjectId:
    """Return the handle as it is known here."""
    from taskfarm.runtime.session import current  # which imports this module

    session = current()
    handle = PlacedObjectId(number)
    handle.ranks = ranks
    if session.worker is None:
        handle._dying = session.registry.adopt(number)
    return handle


class Registry:
    """The objects that `manage_object` was given on this rank.

    Attributes
    ----------
    objects : dict of int to object
        By id.
    counter : int
        The next id.
    dying : collection of int
        Ids whose owning handle has died; `take_dead` empties it.
    """

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}
        self.counter = 0
        self.dying: deque[int] = deque()
        self.dying_placed: deque[tuple[int, tuple[int, ...]]] = deque()
        self._n_handles: dict[int, int] = {}
        self._run: tuple[int, tuple[int, ...]] | None = None
        self._n_made = 0

    def start_run(self, number: int, ranks: tuple[int, ...]) -> None:
        """Have objects that are managed from now on be those of a placed task on `ranks`."""
        self._run = number, ranks
        self._n_made = 0

    def end_run(self) -> None:
        """Take that back."""
        self._run = None

    def discard_run(self, number: int) -> None:
        """Forget the objects that a placed task has made here."""
        first = _PLACED | number << _OF_RUN_BITS
        self.discard([found for found in self.objects if first <= found < first + (1 << _OF_RUN_BITS)])

    def adopt(self, number: int) -> deque[tuple[int, tuple[int, ...]]]:
        """Note one more owning handle of a placed object; return where its death is to be told."""
        self._n_handles[number] = self._n_handles.get(number, 0) + 1
        return self.dying_placed

    def take_dead_placed(self) -> list[tuple[int, tuple[int, ...]]]:
        """Return, once, the placed objects whose last owning handle has died."""
        dead = []
        while self.dying_placed:
            number, ranks = self.dying_placed.popleft()
            left = self._n_handles.pop(number) - 1
            if left:
                self._n_handles[number] = left
            else:
                dead.append((number, ranks))
        return dead

    def _manage_placed(self, obj: Any, run: int, ranks: tuple[int, ...]) -> PlacedObjectId:
        handle = PlacedObjectId(_PLACED | run << _OF_RUN_BITS | self._n_made)
        handle.ranks = ranks
        self._n_made += 1
        self.objects[handle] = obj
        return handle

    def manage(self, obj: Any, *, owner: bool) -> ObjectId:
        """Keep `obj` under the next id; with `owner`, the returned handle owns it."""
        if self._run is not None:
            return self._manage_placed(obj, *self._run)
        number = self.counter
        handle = Rank0ObjectId(number) if owner else ObjectId(number)
        if isinstance(handle, Rank0ObjectId):
            handle._dying = self.dying
        self.objects[number] = obj
        self.counter += 1
        return handle

    def get(self, obj_id: int) -> Any:
        """Return the object with this id.

        Raises
        ------
        UsageError
            If there is none on this rank; also a `KeyError`, which callers of the original expect.
        """
        try:
            return self.objects[obj_id]
        except KeyError:
            if isinstance(obj_id, PlacedObjectId):
                raise UnknownObjectError(
                    f"this rank has no part of object {int(obj_id)}: it is on ranks {list(obj_id.ranks)}; "
                    "submit by with_options(ranks_in=handle.ranks), and keep the handle"
                ) from None
            raise UnknownObjectError(
                f"no managed object with id {int(obj_id)} on this rank: it was removed, or its creation failed here"
            ) from None

    def remove(self, obj_id: int) -> None:
        """Forget the object with this id; raise like `get` if there is none."""
        self.get(obj_id)
        del self.objects[obj_id]

    def discard(self, obj_ids: Iterable[int]) -> None:
        """Forget the objects with these ids where they exist."""
        for obj_id in obj_ids:
            self.objects.pop(obj_id, None)

    def forget_dead(self) -> None:
        """Forget, on this rank alone, the objects whose owning handle has died."""
        self.discard(self.take_dead())

    def own_part(self, value: Any) -> Any:
        """Return this rank's part if `value` is a handle, else `value`."""
        return self.get(value) if isinstance(value, ObjectId) else value

    def clear(self) -> None:
        """Forget all objects: the session has ended."""
        self.objects.clear()
        self.dying.clear()

    def start_call(self, counter: int) -> None:
        """Fall in step with rank 0's `counter`: forget what a failed call made here and not there."""
        if self.counter > counter:
            self.discard([number for number in self.objects if counter <= number < _PLACED])
        self.counter = counter

    def take_dead(self) -> list[int]:
        """Return, once, the ids whose owning handle has died while the object is still here."""
        dead = []
        while self.dying:
            obj_id = self.dying.popleft()
            if obj_id in self.objects:
                dead.append(obj_id)
        return dead


class UnknownObjectError(UsageError, KeyError):
    """There is no managed object with this id on this rank."""

    def __str__(self) -> str:
        return str(self.args[0])
