"""Futures made of futures, as `mpi4py.futures` has them."""

from __future__ import annotations

import concurrent.futures as std
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = ["collect", "compose"]

T = TypeVar("T")


def collect(fs: Iterable[std.Future[T]]) -> std.Future[list[T]]:
    """Return a future of the list of all results; it fails with the first failure, and cancels all if it is cancelled.

    Parameters
    ----------
    fs : iterable of Future
        May hold a future more than once.
    """
    futures = list(fs)
    gathered: std.Future[Any] = type(futures[0])() if futures else std.Future()
    lock = threading.Lock()
    missing = set(futures)

    def on_done(future: std.Future[T]) -> None:
        with lock:
            missing.discard(future)
            over = gathered.done()
            complete = not missing
        if over:
            return
        if future.cancelled():
            gathered.cancel()
        elif future.exception() is not None:
            if gathered.set_running_or_notify_cancel():
                gathered.set_exception(future.exception())
        elif complete and gathered.set_running_or_notify_cancel():
            gathered.set_result([one.result() for one in futures])

    def on_end(_: std.Future[list[T]]) -> None:
        for future in set(futures):
            future.cancel()
        if gathered.cancelled():
            gathered.set_running_or_notify_cancel()

    if not futures:
        gathered.set_result([])
        return gathered
    gathered.add_done_callback(on_end)
    for future in set(futures):
        future.add_done_callback(on_done)
    return gathered


def compose(
    future: std.Future[Any],
    resulthook: Callable[[Any], Any] | None = None,
    excepthook: Callable[[BaseException], Any] | None = None,
) -> std.Future[Any]:
    """Return a future of what `resulthook` makes of the result of `future`, or `excepthook` of its exception.

    Parameters
    ----------
    future : Future
        Is cancelled when the new one is.
    resulthook, excepthook : callable, optional
        Without one, the result or the exception is passed on. An exception that `excepthook` returns is raised.
    """
    new: std.Future[Any] = type(future)()

    def on_new(_: std.Future[Any]) -> None:
        if new.cancelled():
            new.set_running_or_notify_cancel()
            future.cancel()

    def on_old(_: std.Future[Any]) -> None:
        if future.cancelled():
            new.cancel()
            return
        try:
            reason = future.exception()
            if reason is not None:
                outcome = excepthook(reason) if excepthook is not None else reason
                if isinstance(outcome, BaseException):
                    new.set_exception(outcome)
                    return
            else:
                outcome = future.result() if resulthook is None else resulthook(future.result())
            new.set_result(outcome)
        except std.InvalidStateError:  # cancelled meanwhile
            pass
        except Exception as exc:  # noqa: BLE001 - whatever the hook raises is the outcome
            new.set_exception(exc)

    new.add_done_callback(on_new)
    future.add_done_callback(on_old)
    return new
