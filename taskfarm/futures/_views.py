"""Views of an executor whose tasks have options."""

from __future__ import annotations

import concurrent.futures as std
import dataclasses
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from taskfarm.errors import UsageError
from taskfarm.futures._arguments import check_sizes, joined
from taskfarm.futures._options import OptionChanges, TaskOptions

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Unpack  # in typing since Python 3.11


__all__ = ["ExecutorView", "HasOptions", "OptionTaker"]

T = TypeVar("T")

AHEAD = 2  # items of a map per worker that are submitted before their turn


class HasOptions:
    """What has tasks with options: an executor, and each view of it."""

    submit: Callable[..., std.Future[Any]]

    def asubmit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> asyncio.Future[T]:
        """As `submit`, but return a future that can be awaited; in a running event loop."""
        import asyncio  # 20 ms, which every rank of every job would pay

        return asyncio.wrap_future(self.submit(fn, *args, **kwargs))

    def with_options(self, **options: Unpack[OptionChanges]) -> ExecutorView:
        """Return a view of this executor, whose tasks have these options.

        A view has the methods that submit, and nothing else: it needs no shutdown, and there may be any number.

        Parameters
        ----------
        ranks : int
            How many workers run a task together, each of them the same function with the same arguments; they find
            each other by `taskfarm.task_comm`. 1 by default.
        results : "first" or "all"
            Whether a future's result is what the task's rank 0 returned (the default), or the list of what all its
            ranks returned.
        hosts : str or iterable of str
            Only on these hosts.
        ranks_in : int or iterable of int
            Only on these ranks of the job.
        tags : str or iterable of str
            Only on ranks that were given all of these tags: by ``taskfarm run --tag``, or ``TASKFARM_TAGS``.
        timeout_s : float
            Seconds after which a running task is killed, and its future raises `taskfarm.TaskTimeoutError`; needs an
            executor that isolates tasks.
        retries : int
            How often a task is tried again whose attempt was lost with the process that ran it; 3 by default.
        retry_on : exception class or iterable of them
            Failures that are tried again, too: at once and on the same worker; those of a task of several ranks on all
            of them. The exception has to be one that can be pickled. With `taskfarm.TaskTimeoutError`, so are
            tasks that were killed because of `timeout_s`. None by default.

        Returns
        -------
        ExecutorView
            Options that were not given are those of `self`.

        Raises
        ------
        UsageError
            If a value cannot be. That no worker can ever serve such a task is raised by `submit`.
        """
        executor, now = self._base()
        if unknown := sorted(set(options) - {field.name for field in dataclasses.fields(TaskOptions)}):
            raise UsageError(f"with_options has no option {', '.join(unknown)}")
        return ExecutorView(executor, dataclasses.replace(now, **options))  # type: ignore[arg-type]

    def _base(self) -> tuple[OptionTaker, TaskOptions]:
        raise NotImplementedError


class OptionTaker(HasOptions):
    """An executor, as far as its views know it."""

    @property
    def num_workers(self) -> int:
        """Number of workers."""
        raise NotImplementedError

    def _base(self) -> tuple[OptionTaker, TaskOptions]:
        return self, TaskOptions()

    def _submit_with(
        self, options: TaskOptions | None, fn: Callable[..., T], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> std.Future[T]:
        raise NotImplementedError

    def _map(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        star: bool,
        timeout: float | None,
        chunksize: int | None,
        buffersize: int | None,
        *,
        in_order: bool,
        options: TaskOptions | None = None,
        journal: str | os.PathLike[str] | None = None,
        key: Callable[..., Any] | None = None,
    ) -> Iterator[Any]:
        raise NotImplementedError


class ExecutorView(HasOptions):
    """A view of an executor whose tasks have options; made by `Executor.with_options`.

    Attributes
    ----------
    options : TaskOptions
        They.
    """

    def __init__(self, executor: OptionTaker, options: TaskOptions) -> None:
        self._executor = executor
        self.options = options

    def _base(self) -> tuple[OptionTaker, TaskOptions]:
        return self._executor, self.options

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> std.Future[T]:
        """As `Executor.submit`."""
        return self._executor._submit_with(self.options, fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        journal: str | os.PathLike[str] | None = None,
        key: Callable[..., Any] | None = None,
    ) -> Iterator[T]:
        """As `Executor.map`; where the options ask for a place, each item is a task of its own, and leaves alone."""
        items, star = joined(iterables)  # known to a journal as they are to that of `Executor.map`
        return self._map(fn, items, star, timeout, chunksize, buffersize, in_order=True, journal=journal, key=key)

    def map_unordered(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """As `map`, but yield each result as it arrives."""
        return self._map(fn, zip(*iterables, strict=False), True, timeout, chunksize, buffersize, in_order=False)

    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """As `map`, for items that are the positional arguments of one call each: ``fn(*item)``."""
        return self._map(fn, iterable, True, timeout, chunksize, buffersize, in_order=True)

    async def amap(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> AsyncIterator[T]:
        """As `map`, for ``async for``; the event loop runs while results are waited for."""
        _check_sizes(chunksize, buffersize)
        items = zip(*iterables, strict=False)
        waiting = deque(self.asubmit(fn, *item) for item in islice(items, self._n_ahead(buffersize)))
        try:
            while waiting:
                result = await waiting[0]
                waiting.popleft()
                waiting.extend(self.asubmit(fn, *item) for item in islice(items, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()

    # Details

    def _map(
        self,
        fn: Callable[..., T],
        items: Iterable[Any],
        star: bool,
        timeout: float | None,
        chunksize: int | None,
        buffersize: int | None,
        *,
        in_order: bool,
        journal: str | os.PathLike[str] | None = None,
        key: Callable[..., Any] | None = None,
    ) -> Iterator[T]:
        options = self.options
        if not options.is_placed:  # the items leave in batches
            return self._executor._map(
                fn,
                items,
                star,
                timeout,
                chunksize,
                buffersize,
                in_order=in_order,
                options=options,
                journal=journal,
                key=key,
            )
        if journal is not None or key is not None:
            raise UsageError(
                f"journal={journal!r}: results of tasks with ranks, hosts or tags are not kept; leave it out"
            )
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        _check_sizes(chunksize, buffersize)
        source = iter(items if star else zip(items, strict=False))
        waiting = deque(self.submit(fn, *item) for item in islice(source, self._n_ahead(buffersize)))

        def results() -> Iterator[T]:
            try:
                while waiting:
                    future = waiting[0] if in_order else _first_done(waiting, deadline)
                    result = future.result(_left(deadline))
                    waiting.remove(future)
                    waiting.extend(self.submit(fn, *item) for item in islice(source, 1))
                    yield result
            finally:
                for future in waiting:
                    future.cancel()

        return results()

    def _n_ahead(self, buffersize: int | None) -> int:
        return buffersize or AHEAD * max(1, self._executor.num_workers)


def _check_sizes(chunksize: int | None, buffersize: int | None) -> None:
    check_sizes(chunksize, buffersize)
    if chunksize not in (None, 1):
        raise UsageError(f"chunksize={chunksize}: each item of a map with a place is a task of its own; leave it out")


def _left(deadline: float) -> float | None:
    return None if deadline == math.inf else max(0.0, deadline - time.monotonic())


def _first_done(waiting: Iterable[std.Future[T]], deadline: float) -> std.Future[T]:
    done = std.wait(waiting, _left(deadline), std.FIRST_COMPLETED).done
    if not done:
        raise std.TimeoutError
    return next(future for future in waiting if future in done)
