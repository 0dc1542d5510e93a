"""Callables as plain data: what can be found by name travels by name."""

from __future__ import annotations

import functools
import importlib
import operator
import sys
import types
from typing import Any, TypeAlias

from taskfarm.errors import UsageError

__all__ = ["Description", "describe", "rebuild"]

Description: TypeAlias = tuple[Any, ...]
# One of
#     ("import", module, qualified name)
#     ("method", description of the owner: an instance or, for a class method, a class; name)
#     ("partial", description of the function, args, kwargs)
#     ("object", the object itself)


def describe(thing: Any) -> Description:
    """Return a description of `thing`, by name as far as possible."""
    named = _find_by_name(thing)
    if named is not None:
        return named
    if isinstance(thing, types.MethodType):
        owner, name = thing.__self__, thing.__func__.__name__
        found = getattr(owner, name, None)
        if isinstance(found, types.MethodType) and found == thing:  # not so for "__private" names, or if shadowed
            return "method", describe(owner), name
    if type(thing) is functools.partial and not thing.__dict__:
        return "partial", describe(thing.func), thing.args, thing.keywords
    return "object", thing


def rebuild(description: Description) -> Any:
    """Return what `describe` described.

    Raises
    ------
    UsageError
        If `description` is not a description.
    """
    match description:
        case ("import", str(module), str(qualified_name)):
            return operator.attrgetter(qualified_name)(importlib.import_module(module))
        case ("method", tuple(owner), str(name)):
            return getattr(rebuild(owner), name)
        case ("partial", tuple(function), tuple(args), dict(kwargs)):
            return functools.partial(rebuild(function), *args, **kwargs)
        case ("object", thing):
            return thing
    raise UsageError(f"{description!r} does not describe a function; pass what func2desc returned")


def _find_by_name(thing: Any) -> Description | None:
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    try:
        found = operator.attrgetter(name)(sys.modules[module])
    except (KeyError, AttributeError):
        return None
    return ("import", module, name) if found is thing else None
