"""Managed objects of one rank, and the handles that own them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from taskfarm.errors import UsageError
from taskfarm.ids import ObjectId

__all__ = ["Rank0ObjectId", "Registry"]


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

    def manage(self, obj: Any, *, owner: bool) -> ObjectId:
        """Keep `obj` under the next id; with `owner`, the returned handle owns it."""
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
            self.discard([number for number in self.objects if number >= counter])
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
