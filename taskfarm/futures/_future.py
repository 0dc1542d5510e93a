"""A standard future whose waiting thread moves messages itself, and the exceptions of tasks as futures show them."""

from __future__ import annotations

import concurrent.futures as std
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from taskfarm.errors import RankFailure, TaskfarmError, UsageError
from taskfarm.runtime.runner import exception_of

if TYPE_CHECKING:
    import asyncio

    from taskfarm.runtime.executor.crew import Crew

__all__ = ["AnyFuture", "ExecutorBrokenError", "Future", "broken", "broken_type", "set_soon"]

T = TypeVar("T")

_ENDED = frozenset({"CANCELLED", "CANCELLED_AND_NOTIFIED", "FINISHED"})


class ExecutorBrokenError(TaskfarmError, std.BrokenExecutor):
    """The executor can run nothing any more: its initializer failed, or a process of its own is gone."""


class Future(std.Future[T]):
    """The future of one task: `concurrent.futures.Future`, but waiting for it is faster.

    Parameters
    ----------
    crew : Crew, optional
        Runs the task; without it, this is a plain future.
    kill : callable, optional
        Kills the process that runs the task of a future.
    """

    def __init__(self, crew: Crew | None = None, kill: Callable[[Future[Any]], None] | None = None) -> None:
        super().__init__()
        self._crew = crew
        self._kill = kill

    def cancel(self, *, force: bool = False) -> bool:
        """Cancel the task if it does not run yet; with `force`, also if it does: its process is killed.

        Returns
        -------
        bool
            Whether the task is cancelled. Without `force` this is what `concurrent.futures.Future.cancel` says.

        Raises
        ------
        UsageError
            If a task is to be killed that runs in the worker's own process: that needs ``Executor(isolate=True)``.
        """
        if super().cancel():
            if self._crew is not None:
                self._crew.notify()  # a thread that moves messages may wait for this future
            return True
        if not force or self.done():
            return False
        if self._kill is None:
            raise UsageError("cancel(force=True): a running task can be killed only by Executor(isolate=True)")
        with self._condition:
            if self._state != "RUNNING":
                return self._state != "FINISHED"
            self._state = "CANCELLED_AND_NOTIFIED"
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        self._kill(self)
        if self._crew is not None:
            self._crew.notify()
        self._invoke_callbacks()  # type: ignore[attr-defined]
        return True

    def result(self, timeout: float | None = None) -> T:
        """Return what the task returned, or raise what it raised; see `concurrent.futures.Future.result`."""
        if self._state not in _ENDED and self._lead(timeout):
            timeout = 0.0
        if self._exception is not None:  # before Python 3.14, the base class takes one that is falsy for none
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # the traceback would refer to the future, and back
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised; see `concurrent.futures.Future.exception`."""
        if self._state not in _ENDED and self._lead(timeout):
            timeout = 0.0
        return super().exception(timeout)

    def _lead(self, timeout: float | None) -> bool:
        """Wait while moving messages; True if it is over, one way or the other."""
        if self._crew is None:
            return False
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._crew.wait(self._has_ended, deadline)
        return True

    def _has_ended(self) -> bool:
        return self._state in _ENDED


def broken_type() -> type[ExecutorBrokenError]:
    """Return the type of the errors of broken executors, one that ``except BrokenProcessPool`` catches where it can.

    Only programs that have imported `concurrent.futures.process` know that name; importing it takes 20 ms.
    """
    process = sys.modules.get("concurrent.futures.process")
    base: type[Exception] | None = getattr(process, "BrokenProcessPool", None)
    if base is None:
        return ExecutorBrokenError

    def reduce(error: ExecutorBrokenError) -> tuple[Any, ...]:
        return ExecutorBrokenError, error.args

    members = {"__module__": ExecutorBrokenError.__module__, "__doc__": base.__doc__, "__reduce__": reduce}
    return type(ExecutorBrokenError.__name__, (ExecutorBrokenError, base), members)


def broken(failure: RankFailure | BaseException, why: str) -> ExecutorBrokenError:
    """Return the error of an executor that has become useless."""
    if isinstance(failure, BaseException):
        error = broken_type()(f"{why}: {failure}")
        error.__cause__ = failure
    else:
        error = broken_type()(f"{why}: {failure.headline()}")
        error.__cause__ = exception_of(failure, why)
    return error


AnyFuture = Future[Any]


def set_soon(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set `event` in the thread of `loop`, if that still runs; from any thread."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)
