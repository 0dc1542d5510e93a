"""The executor."""

from __future__ import annotations

import asyncio
import concurrent.futures as std
import logging
import math
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from taskfarm.futures._arguments import check_sizes, fail_unpicklable, pack_function
from taskfarm.futures._ending import end_work, finish, note_broken
from taskfarm.futures._future import Future, broken_type
from taskfarm.futures._maps import MapJob
from taskfarm.futures._nested import NestedExecutor
from taskfarm.futures._progress import Progress, items_in, shown
from taskfarm.futures._tasks import Task, TaskJob, copied
from taskfarm.futures._threads import initialize_worker, threads_per_worker
from taskfarm.runtime.crew import Crew
from taskfarm.runtime.crews import Hall, hall_of, part_ranks
from taskfarm.runtime.functions import KnownFunction
from taskfarm.runtime.jobs import Initializer
from taskfarm.runtime.session import Session, current
from taskfarm.wire.codec import Packed, pack
from taskfarm.wire.work import pack_work as pack_task

__all__ = ["Executor"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Executor(std.Executor):
    """A `concurrent.futures.Executor` whose workers are the ranks of the MPI job, or processes of its own.

    Under ``taskfarm run``, ``mpiexec`` or ``srun`` the ranks part here, where the script makes its first executor:
    rank 0 goes on, every other rank serves, and exits when rank 0 does. Without a launcher, worker processes are
    started on this host. Inside a task, what is submitted runs in threads of the same worker.

    Parameters
    ----------
    max_workers : int, optional
        How many workers to use; by default all ranks but rank 0, or a process per usable core.
    initializer : callable, optional
        Run once on every worker before its first task.
    initargs : tuple
        Its arguments.
    blas_threads : int, optional
        Threads that numerical libraries may use in a task; by default the worker's share of its host's cores. 0 leaves
        them alone.

    Raises
    ------
    SystemExit
        On ranks above 0, when they are told to exit.
    UsageError
        If the session has ended, or MPI was started without support for threads.

    Notes
    -----
    Arguments of `submit` have been pickled when it returns. Entering `taskfarm.objects` or `taskfarm.vm` first waits
    until all tasks have ended.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        blas_threads: int | None = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._part()
        self._broken: BaseException | None = None
        self._shutdown = False
        self._has_left = False
        self._nested: NestedExecutor | None = None
        self._n_workers = 1
        session = current()
        if session.worker is not None:
            self._nested = NestedExecutor(initializer, initargs, partial(note_broken, weakref.ref(self)))
            return
        self._hall: Hall = self._find_hall(session, max_workers)
        self._hall.enter()
        self._crew: Crew = self._hall.crew
        self._n_workers = min(max_workers or len(self._crew.workers), len(self._crew.workers))
        if max_workers is not None and max_workers > self._n_workers:
            logger.info("max_workers=%d, but there are %d workers", max_workers, self._n_workers)
        n_threads = threads_per_worker(session) if blas_threads is None else blas_threads
        work = pack((initialize_worker, (n_threads, initializer, initargs)))
        self._initializer = Initializer(self._crew.new_number(), copied(work))
        on_broken = partial(note_broken, weakref.ref(self))
        self._tasks = TaskJob(self._crew, self._crew.new_number(), self._initializer, on_broken)
        self._maps: weakref.WeakSet[MapJob] = weakref.WeakSet()
        self._crew.post(lambda: self._crew.add_job(self._tasks, self._n_workers))
        self._take_back = self._hall.before_the_end(partial(end_work, self._tasks, self._maps, self._crew))

    def _part(self) -> None:
        part_ranks()

    def _find_hall(self, session: Session, wanted: int | None) -> Hall:
        return hall_of(session, wanted)

    def __reduce__(self) -> tuple[Callable[[], Executor], tuple[()]]:
        return Executor, ()  # in a task that refers to it: an executor of that worker

    @property
    def num_workers(self) -> int:
        """Number of workers that this executor uses."""
        return self._n_workers

    @property
    def _max_workers(self) -> int:
        return self.num_workers  # dask and others look at this attribute of the standard executors

    # Tasks

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> std.Future[T]:
        """Have ``fn(*args, **kwargs)`` run on a worker; from any thread, from a callback and inside a task.

        Parameters
        ----------
        fn : callable
            By reference where importable, else by value (lambdas, closures, ``__main__``).
        *args, **kwargs
            Its arguments. They may be changed when this has returned.

        Returns
        -------
        concurrent.futures.Future
            Raises what `fn` raises, with the remote traceback as its ``__cause__``; `taskfarm.RemoteError` for
            exceptions that do not travel; what pickling raises, for arguments that do not.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        ExecutorBrokenError
            If the initializer has failed, or a worker process is gone.
        """
        self._check_open()
        if self._nested is not None:
            return self._nested.submit(fn, *args, **kwargs)
        future: Future[T] = Future(self._crew)
        if not callable(fn):
            future.set_exception(TypeError(f"{type(fn).__qualname__!r} object is not callable"))
            return future
        try:
            known = self._crew.functions.find(fn)
            packed = pack_task(fn if known is None else known.number, args, kwargs)
        except Exception:  # noqa: BLE001 - any __reduce__ may raise anything
            fail_unpicklable(future, fn, args, kwargs)
            return future
        if packed.buffers:
            self._submit_large(future, packed, known)
        else:
            self._crew.post(partial(self._tasks.add, future, packed, known))
        return future

    def _submit_large(self, future: Future[Any], packed: Packed, known: KnownFunction | None) -> None:
        """Send a task with raw buffers from their own memory if a worker is free, else copy them."""
        added: list[Task] = []
        request = lambda: added.append(self._tasks.add(future, packed, known))  # noqa: E731
        if not self._crew.post_now(request, lambda: added[0].own_buffers()):
            self._crew.post(partial(self._tasks.add, future, copied(packed), known))

    def _check_open(self) -> None:
        if self._broken is not None:
            raise broken_type()(str(self._broken)) from self._broken
        if self._shutdown:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._nested is None and self._hall.closing:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    # Maps

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: Progress = False,
    ) -> Iterator[T]:
        """Apply `fn` to the items of `iterables`, as the built-in `map` does, and yield the results in order.

        The iterables are read as the results are taken, as far ahead as the workers need. Batches are sized so that
        each takes some 2 ms.

        Parameters
        ----------
        fn : callable
            Sent once to each worker, with whatever it holds: ``functools.partial(f, big)`` sends `big` once.
        *iterables : iterable
            Its arguments; the shortest ends the map. They are read in the calling thread.
        timeout : float, optional
            Seconds from now, after which a result that is not there raises `TimeoutError`.
        chunksize : int, optional
            Items that are run one after another by the same worker; short chunks travel together.
        buffersize : int, optional
            How many items may be read before their results are taken.
        progress : bool or "always"
            Whether to show a progress bar (tqdm); True shows it only where standard error is a terminal.

        Returns
        -------
        iterator
            The first failure is raised in its place, and what was not run is dropped, as it is when the iterator is
            closed. `shutdown` waits for what it has not yielded, and keeps the results for it.
        """
        items, star = _joined(iterables)
        results = self._map(fn, items, star, timeout, chunksize, buffersize, in_order=True)
        return self._shown(results, progress, iterables)

    def map_unordered(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: Progress = False,
    ) -> Iterator[T]:
        """As `map`, but yield each result as it arrives."""
        items, star = _joined(iterables)
        results = self._map(fn, items, star, timeout, chunksize, buffersize, in_order=False)
        return self._shown(results, progress, iterables)

    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: Progress = False,
    ) -> Iterator[T]:
        """As `map`, for items that are the positional arguments of one call each: ``fn(*item)``."""
        results = self._map(fn, iterable, True, timeout, chunksize, buffersize, in_order=True)
        return self._shown(results, progress, (iterable,))

    def _shown(self, results: Iterator[T], progress: Progress, iterables: Iterable[Any]) -> Iterator[T]:
        if not progress or self._nested is not None:
            return results
        return shown(results, progress, items_in(iterables), self._crew.dealer.n_busy, self._n_workers)

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
    ) -> Iterator[Any]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        check_sizes(chunksize, buffersize)
        self._check_open()
        if self._nested is not None:
            return self._nested.map_items(fn, items, star, deadline, buffersize)
        job = self._new_map(fn, items, star, chunksize, buffersize)
        results = job.results(deadline) if in_order else job.results_as_they_come(deadline)
        job.read_ahead()
        return results

    def _new_map(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        star: bool,
        chunksize: int | None,
        buffersize: int | None,
    ) -> MapJob:
        crew = self._crew
        job = MapJob(
            crew,
            crew.new_number(),
            copied(pack_function(fn)),
            items,
            star=star,
            initializer=self._initializer,
            unit=chunksize or 1,
            buffersize=buffersize,
            on_broken=partial(note_broken, weakref.ref(self)),
        )
        self._maps.add(job)
        crew.post(lambda: crew.add_job(job, self._n_workers, job.unit))
        return job

    # asyncio

    def asubmit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> asyncio.Future[T]:
        """As `submit`, but return a future that can be awaited; in a running event loop."""
        return asyncio.wrap_future(self.submit(fn, *args, **kwargs))

    async def amap(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> AsyncIterator[T]:
        """As `map`, for ``async for``; the event loop runs while results are waited for."""
        self._check_open()
        if self._nested is not None:
            for item in zip(*iterables, strict=False):
                yield await self.asubmit(fn, *item)
            return
        items, star = _joined(iterables)
        check_sizes(chunksize, buffersize)
        job = self._new_map(fn, items, star, chunksize, buffersize)
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        job.on_arrival = lambda: _set_soon(loop, arrived)
        try:
            while True:
                arrived.clear()
                results = job.take_results(job.in_order)
                if results is not None:
                    for result in results:
                        yield result
                    job.on_consumed(len(results))
                elif job.has_ended():
                    return
                else:
                    await arrived.wait()
        finally:
            job.end()

    # The end

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; see `concurrent.futures.Executor.shutdown`.

        Parameters
        ----------
        wait : bool
            Return when all futures have ended, and all items of maps were run.
        cancel_futures : bool
            Cancel what no worker has been given yet.
        """
        self._end_within(math.inf, wait, cancel_futures)

    def _end_within(self, limit_s: float, wait: bool, cancel_futures: bool) -> None:
        self._shutdown = True
        if self._nested is not None:
            self._nested.shutdown(wait, cancel_futures)
            return
        if self._crew.home.is_left:  # a forked child leaves the block
            return
        if cancel_futures:
            self._crew.post(self._tasks.cancel_waiting)
            for job in list(self._maps):
                job.cancel()
        if wait:
            finish(self._tasks, self._maps, self._crew, time.monotonic() + limit_s)
            self._take_back()
            if self._tasks.is_idle:
                self._crew.post(partial(self._crew.end_job, self._tasks))
                self._crew.post(partial(self._crew.forget, self._initializer.number))
        if wait and not self._has_left:
            self._has_left = True
            self._hall.leave()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: Any) -> bool | None:
        """Shut down and wait; after ^C and ``sys.exit``, cancel what has not begun and do not wait for ever."""
        if kind is not None and not issubclass(kind, Exception):
            self._end_within(current().config.leave_s, True, True)
        else:
            self.shutdown(wait=True)
        return None


def _joined(iterables: tuple[Iterable[Any], ...]) -> tuple[Iterable[Any], bool]:
    """Return the items of a map, and whether each is the positional arguments of a call."""
    if len(iterables) == 1:
        return iterables[0], False
    return zip(*iterables, strict=False), True


def _set_soon(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)
