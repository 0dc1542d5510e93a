"""Looking at what an executor is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from taskfarm.runtime.work import pack_work
from taskfarm.wire.codec import Packed, empty_buffer, pack
from taskfarm.wire.frames import Buffer

__all__ = ["check_sizes", "copied", "copy_of", "fail_unpicklable", "joined", "pack_function"]


def check_sizes(chunksize: int | None, buffersize: int | None) -> None:
    """Raise what the standard library raises for sizes that cannot be."""
    if chunksize is not None and chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


def joined(iterables: tuple[Iterable[Any], ...]) -> tuple[Iterable[Any], bool]:
    """Return the items of a map, and whether each is the positional arguments of a call."""
    if len(iterables) == 1:
        return iterables[0], False
    return zip(*iterables, strict=False), True


def pack_function(fn: Callable[..., Any]) -> Packed:
    """Return the function of a map as bytes; `UsageError` says why that cannot be."""
    pack_work("map", fn, (), {})  # names what cannot be pickled
    return pack(fn)


def fail_unpicklable(future: Future[Any], fn: Any, args: Any, kwargs: Any) -> None:
    """Give `future` the reason why its task cannot be pickled."""
    future.set_running_or_notify_cancel()
    try:
        pack_work("submit", fn, args, kwargs)
    except Exception as exc:  # noqa: BLE001
        future.set_exception(exc.__cause__ or exc)


def copied(packed: Packed) -> Packed:
    """Return `packed` with buffers of its own, so that the caller may change the arrays that they were taken from."""
    return Packed(packed.body, [copy_of(buffer) for buffer in packed.buffers]) if packed.buffers else packed


def copy_of(buffer: Buffer) -> memoryview:
    """Return the content of `buffer` in memory of its own."""
    copy = empty_buffer(len(buffer))
    copy[:] = buffer
    return copy
