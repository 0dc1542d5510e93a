"""Executors without workers, above all those inside of tasks: what is submitted runs in threads of this process.

A task that waits for one that it has submitted must not wait for a worker to become free: there may be only one, and
it is the one that waits. So `result` runs a task that has not begun in the waiting thread itself; for `wait`,
`as_completed` and callbacks there are threads, one more whenever all are taken, up to `MAX_THREADS`.
"""

from __future__ import annotations

import concurrent.futures as std
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from taskfarm.futures._future import broken
from taskfarm.runtime.runner import run

__all__ = ["NestedExecutor"]

MAX_THREADS = 64  # deeper chains of tasks that wait in `wait` or `as_completed` than anybody writes
IDLE_S = 1.0  # before a thread without work ends
MAP_AHEAD = 64  # items of a map

T = TypeVar("T")


class _NestedFuture(std.Future[T]):
    """A future whose task the waiting thread runs itself if nobody has begun it."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__()
        self._work: Callable[[], T] | None = work
        self._claim = threading.Lock()

    def begin(self) -> bool:
        """Run the task in this thread, unless another one does; return whether this one did."""
        if not self._claim.acquire(False):
            return False
        work, self._work = self._work, None
        if work is None or not self.set_running_or_notify_cancel():
            return False
        outcome = run(work)
        if outcome.exception is not None:
            self.set_exception(outcome.exception)
        else:
            self.set_result(outcome.value)
        return True

    def result(self, timeout: float | None = None) -> T:
        if timeout is None and not self.done():
            self.begin()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if timeout is None and not self.done():
            self.begin()
        return super().exception(timeout)


class NestedExecutor:
    """Runs tasks in threads of this process.

    Parameters
    ----------
    initializer : callable or None
        Run once, before the first task.
    initargs : tuple
        Its arguments.
    on_broken : callable
        Is told of the error if the initializer fails.
    n_threads : int
        How many threads there may be.
    """

    def __init__(
        self,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        on_broken: Callable[[BaseException], None],
        n_threads: int = MAX_THREADS,
    ) -> None:
        self._initializer = initializer
        self._initargs = initargs
        self._initializing = threading.Lock()
        self._on_broken = on_broken
        self._max_threads = n_threads
        self._error: BaseException | None = None
        self._waiting: deque[_NestedFuture[Any]] = deque()
        self._changed = threading.Condition()
        self._n_threads = 0
        self._n_idle = 0
        self._n_open = 0
        self._closed = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> std.Future[T]:
        """Have ``fn(*args, **kwargs)`` run; see `Executor.submit`."""
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

        def work() -> T:
            self._initialize()
            return fn(*args, **kwargs)

        future: _NestedFuture[T] = _NestedFuture(work)
        with self._changed:
            self._n_open += 1
            self._waiting.append(future)
            if self._n_idle:
                self._changed.notify()
            elif self._n_threads < self._max_threads:
                self._n_threads += 1
                threading.Thread(target=self._run, name="taskfarm nested task", daemon=True).start()
        future.add_done_callback(self._on_done)
        return future

    def _initialize(self) -> None:
        with self._initializing:
            initializer, self._initializer = self._initializer, None
            if initializer is not None:
                outcome = run(initializer, self._initargs)
                if outcome.exception is not None:
                    self._error = broken(outcome.exception, "the initializer failed")
                    self._on_broken(self._error)
            if self._error is not None:
                raise self._error

    def _on_done(self, future: std.Future[Any]) -> None:
        with self._changed:
            self._n_open -= 1
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._n_idle += 1
                limit = time.monotonic() + IDLE_S
                while not self._waiting and time.monotonic() < limit:
                    self._changed.wait(max(0.0, limit - time.monotonic()))
                self._n_idle -= 1
                if not self._waiting:
                    self._n_threads -= 1
                    return
                future = self._waiting.popleft()
            future.begin()
            del future

    def map_items(
        self, fn: Callable[..., Any], items: Iterable[Any], star: bool, deadline: float, buffersize: int | None
    ) -> Iterator[Any]:
        """Apply `fn` to `items`; see `Executor.map`."""
        source = iter(items)
        futures: deque[std.Future[Any]] = deque()

        def read(n: int) -> None:
            for item in islice(source, n):
                futures.append(self.submit(fn, *item) if star else self.submit(fn, item))

        def results() -> Iterator[Any]:
            try:
                while futures:
                    left = deadline - time.monotonic()
                    yield futures.popleft().result(None if left == float("inf") else max(0.0, left))
                    read(1)
            finally:
                for future in futures:
                    future.cancel()

        read(buffersize or MAP_AHEAD)
        return results()

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        """End; see `Executor.shutdown`."""
        self._closed = True
        if cancel_futures:
            for future in list(self._waiting):
                future.cancel()
        if wait:
            while self._waiting:
                try:
                    self._waiting.popleft().begin()
                except IndexError:
                    break
            with self._changed:
                while self._n_open:
                    self._changed.wait()
