"""Functions that travel by value, sent once: which of them can be known again.

A function of ``__main__`` is pickled by value, some 100 us each time. `submit` is called with the same one over and
over; so its pickle is kept, and sent once to each worker, as long as pickling it anew would give the same. That can be
told of functions that refer to nothing that may change without notice: their globals and closure hold numbers,
strings, modules, things that travel by reference, and functions of the same kind. They are compared at each use.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from taskfarm.wire.codec import Packed, pack

__all__ = ["FunctionBook", "KnownFunction"]

_FIXED = (type(None), bool, int, float, complex, str, bytes, type(...), BuiltinFunctionType, ModuleType)
_MISSING = object()
_MAX_DEPTH = 8  # functions that call functions


# A dictionary or cell, the name in it, and what was there.
_Check = tuple[Any, str, Any]


class KnownFunction:
    """A function that workers are sent once.

    Attributes
    ----------
    number : int
        By which its tasks name it.
    packed : Packed
        The function.
    """

    __slots__ = ("_checks", "_dying", "number", "packed")

    def __init__(self, number: int, packed: Packed, checks: Sequence[_Check], dying: deque[int]) -> None:
        self.number = number
        self.packed = packed
        self._checks = checks
        self._dying = dying

    def __del__(self) -> None:
        self._dying.append(self.number)

    def is_current(self) -> bool:
        """Tell whether all that the function refers to is what it was."""
        for place, name, value in self._checks:
            now = place.get(name, _MISSING) if type(place) is dict else _cell_value(place)
            if now is not value:
                return False
        return True


class FunctionBook:
    """The functions of one crew that are known.

    Parameters
    ----------
    new_number : callable
        Gives a number that was never used.

    Attributes
    ----------
    dying : deque of int
        Numbers of functions that are gone here, for the workers to drop.
    """

    def __init__(self, new_number: Callable[[], int]) -> None:
        self.dying: deque[int] = deque()
        self._new_number = new_number
        self._known: weakref.WeakKeyDictionary[FunctionType, KnownFunction | None] = weakref.WeakKeyDictionary()
        self._seen: weakref.WeakSet[FunctionType] = weakref.WeakSet()

    def find(self, fn: object) -> KnownFunction | None:
        """Return `fn` as a known function, None if it travels by reference or cannot be known again."""
        if type(fn) is not FunctionType or fn.__module__ != "__main__":
            return None
        known = self._known.get(fn, _MISSING)
        if known is None:
            return None
        if isinstance(known, KnownFunction):
            return known if known.is_current() else self._learn(fn)
        if fn in self._seen:  # most functions that are made on the way are used once
            return self._learn(fn)
        self._seen.add(fn)
        return None

    def _learn(self, fn: FunctionType) -> KnownFunction | None:
        checks: list[_Check] = []
        known = None
        if _collect(fn, checks, set(), 0):
            packed = pack(fn)
            if not packed.buffers:
                known = KnownFunction(self._new_number(), packed, checks, self.dying)
        self._known[fn] = known
        return known


def _collect(fn: FunctionType, checks: list[_Check], seen: set[int], depth: int) -> bool:
    """Append where the function's surroundings are and what is there; False if any of it may change unseen."""
    if id(fn) in seen:
        return True
    seen.add(id(fn))
    if depth > _MAX_DEPTH or fn.__dict__ or not _is_fixed_all(fn.__defaults__ or ()):
        return False
    if not _is_fixed_all((fn.__kwdefaults__ or {}).values()):
        return False
    found: list[Any] = []
    for cell in fn.__closure__ or ():
        value = _cell_value(cell)
        checks.append((cell, "", value))
        found.append(value)
    for name in _names(fn.__code__):
        value = fn.__globals__.get(name, _MISSING)
        checks.append((fn.__globals__, name, value))
        if value is not _MISSING:
            found.append(value)
    return all(_is_fixed(value) or _is_known_function(value, checks, seen, depth) for value in found)


def _is_known_function(value: Any, checks: list[_Check], seen: set[int], depth: int) -> bool:
    if type(value) is not FunctionType:
        return False
    return value.__module__ != "__main__" or _collect(value, checks, seen, depth + 1)


def _is_fixed(value: Any) -> bool:
    if type(value) in _FIXED:
        return True
    if type(value) is tuple:
        return _is_fixed_all(value)
    return isinstance(value, type) and value.__module__ != "__main__"


def _is_fixed_all(values: Any) -> bool:
    return all(_is_fixed(value) for value in values)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _cell_value(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return _MISSING
