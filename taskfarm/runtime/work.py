"""Work as it travels: a function with its arguments, pickled, or a clear word about what does not pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskfarm.errors import UsageError
from taskfarm.runtime.registry import Registry
from taskfarm.runtime.runner import describe
from taskfarm.wire import work as wire
from taskfarm.wire.codec import Packed, pack
from taskfarm.wire.frames import Buffer

__all__ = ["pack_work", "unpack_work"]


def pack_work(what: str, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Packed:
    """Pickle a function and its arguments.

    Raises
    ------
    UsageError
        Names what cannot be pickled; `what` is the function that the user called.
    """
    try:
        return wire.pack_work(fn, args, kwargs)
    except Exception as exc:
        raise UsageError(_why_unpicklable(what, fn, args, kwargs, exc)) from exc


def unpack_work(
    body: Buffer,
    buffers: Sequence[Buffer],
    registry: Registry,
    find_known: Callable[[int], Callable[..., Any]] | None = None,
) -> wire.Work:
    """Return the function and its arguments, with handles of managed objects replaced by this rank's own parts.

    Parameters
    ----------
    body, buffers, find_known
        See `taskfarm.wire.work.unpack_work`.
    registry : Registry
        The rank's managed objects.

    Raises
    ------
    Exception
        Whatever unpickling raises.
    UsageError
        If this rank has no such object.
    """
    fn, args, kwargs = wire.unpack_work(body, buffers, find_known)
    if args:
        args = [registry.own_part(arg) for arg in args]
    if kwargs:
        kwargs = {name: registry.own_part(arg) for name, arg in kwargs.items()}
    return fn, args, kwargs


def _why_unpicklable(
    what: str, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], exc: Exception
) -> str:
    parts: list[tuple[str, Any]] = [("the function", fn)]
    parts += [(f"positional argument {index}", value) for index, value in enumerate(args)]
    parts += [(f"argument {name}", value) for name, value in kwargs.items()]
    reason = f"({type(exc).__name__}: {exc}); nothing was sent"
    for name, value in parts:
        try:
            pack(value)
        except Exception:  # noqa: BLE001
            kind = describe(value) if callable(value) else f"a {type(value).__qualname__}"
            return f"{what}: {name}, {kind}, cannot be pickled {reason}"
    return f"{what}: the arguments cannot be pickled together {reason}"
