"""A pool with the methods of `multiprocessing.pool.Pool` and of schwimmbad's pools."""

from __future__ import annotations

import concurrent.futures as std
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from taskfarm.futures._combine import collect
from taskfarm.futures._executor import Executor

__all__ = ["AsyncResult", "Pool"]

T = TypeVar("T")


class AsyncResult(Generic[T]):
    """What the ``_async`` methods return; see `multiprocessing.pool.AsyncResult`."""

    def __init__(
        self,
        future: std.Future[T],
        callback: Callable[[T], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        self._future = future

        def on_done(done: std.Future[T]) -> None:
            if done.cancelled():
                return
            error = done.exception()
            if error is None:
                if callback is not None:
                    callback(done.result())
            elif error_callback is not None:
                error_callback(error)

        future.add_done_callback(on_done)

    def get(self, timeout: float | None = None) -> T:
        """Return the result or raise the failure; `TimeoutError` if it is not there in time."""
        return self._future.result(timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Return when the result is there, or after `timeout` seconds."""
        std.wait([self._future], timeout)

    def ready(self) -> bool:
        """Tell whether the call has ended."""
        return self._future.done()

    def successful(self) -> bool:
        """Tell whether the call returned; `ValueError` if it has not ended."""
        if not self._future.done():
            raise ValueError(f"{self!r} not ready")
        return not self._future.cancelled() and self._future.exception() is None


class Pool:
    """A pool of workers: `multiprocessing.Pool`'s methods on MPI ranks.

    Made like an `Executor`, in the same place of the program; also ``with Pool() as pool:
    emcee.EnsembleSampler(..., pool=pool)``.

    Parameters
    ----------
    processes : int, optional
        Number of workers; by default all.
    initializer, initargs
        See `Executor`.

    Attributes
    ----------
    size : int
        Number of workers.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        self._executor = Executor(processes, initializer=initializer, initargs=tuple(initargs))
        self.size = self._executor.num_workers

    # Calls

    def apply(self, func: Callable[..., T], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}) -> T:
        """Return ``func(*args, **kwds)``, run on a worker."""
        return self._executor.submit(func, *args, **kwds).result()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """As `apply`, but return at once."""
        return AsyncResult(self._executor.submit(func, *args, **kwds), callback, error_callback)

    # Maps

    def map(
        self,
        func: Callable[..., T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[T], object] | None = None,
    ) -> list[T]:
        """Return ``[func(item) for item in iterable]``, run on the workers.

        Parameters
        ----------
        chunksize : int, optional
            See `Executor.map`.
        callback : callable, optional
            Called here with each result, in order.
        """
        results = self._executor.map(func, iterable, chunksize=chunksize)
        if callback is None:
            return list(results)
        kept = []
        for result in results:
            callback(result)
            kept.append(result)
        return kept

    def starmap(
        self, func: Callable[..., T], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[T]:
        """Return ``[func(*item) for item in iterable]``, run on the workers."""
        return list(self._executor.starmap(func, iterable, chunksize=chunksize))

    def imap(self, func: Callable[..., T], iterable: Iterable[Any], chunksize: int | None = None) -> Iterator[T]:
        """Yield the results of `map` in order, as they come."""
        return self._executor.map(func, iterable, chunksize=chunksize)

    def imap_unordered(
        self, func: Callable[..., T], iterable: Iterable[Any], chunksize: int | None = None
    ) -> Iterator[T]:
        """Yield the results of `map` in the order in which they arrive."""
        return self._executor.map_unordered(func, iterable, chunksize=chunksize)

    def map_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """As `map`, but return at once; the iterable is read first."""
        return self._map_async(func, [(item,) for item in iterable], chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """As `starmap`, but return at once; the iterable is read first."""
        return self._map_async(func, [tuple(item) for item in iterable], chunksize, callback, error_callback)

    def _map_async(
        self,
        func: Callable[..., T],
        items: list[tuple[Any, ...]],
        chunksize: int | None,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> AsyncResult[list[T]]:
        size = chunksize or max(1, -(-len(items) // (4 * self.size)))
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        futures = [self._executor.submit(_apply, func, part) for part in parts]
        whole: std.Future[list[T]] = std.Future()
        collect(futures).add_done_callback(partial(_join, whole))
        return AsyncResult(whole, callback, error_callback)

    # The end

    def close(self) -> None:
        """Take no more work."""
        self._executor.shutdown(wait=False)

    def join(self) -> None:
        """Wait until all work has ended; after `close` or `terminate`."""
        self._executor.shutdown(wait=True)

    def terminate(self) -> None:
        """Take no more work, and drop what has not begun."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.__exit__(kind, exc, traceback)

    # What programs for schwimmbad ask; its workers come back to the program

    def is_master(self) -> bool:
        """Return True: workers never come back from where the pool is made."""
        return True

    def is_worker(self) -> bool:
        """Return False: workers never come back from where the pool is made."""
        return False

    def wait(self, callback: Callable[[], object] | None = None) -> None:
        """Return: only workers wait, and they do where the pool is made."""


def _apply(func: Callable[..., T], items: Iterable[tuple[Any, ...]]) -> list[T]:
    return [func(*item) for item in items]


def _join(whole: std.Future[list[Any]], parts: std.Future[list[list[Any]]]) -> None:
    error = parts.exception()
    if error is not None:
        whole.set_exception(error)
    else:
        whole.set_result([result for part in parts.result() for result in part])
