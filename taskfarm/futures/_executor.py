"""The executor."""

from __future__ import annotations

import concurrent.futures as std
import logging
import math
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from taskfarm.errors import UsageError
from taskfarm.futures._arguments import check_sizes, copied, fail_unpicklable, pack_function
from taskfarm.futures._awaiting import AsyncMethods
from taskfarm.futures._ending import end_work, finish, note_broken
from taskfarm.futures._future import Future, broken_type
from taskfarm.futures._journaled import JournaledMap, KeyFunction, Shelf, no_journal_here
from taskfarm.futures._maps import MapJob
from taskfarm.futures._nested import NestedExecutor
from taskfarm.futures._options import TaskOptions
from taskfarm.futures._progress import Progress, items_in, shown
from taskfarm.futures._retry import with_retries
from taskfarm.futures._tasks import Task, TaskJob
from taskfarm.futures._threads import initialize_worker, threads_per_worker
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.crews import Hall, hall_of, part_ranks
from taskfarm.runtime.executor.functions import KnownFunction
from taskfarm.runtime.executor.jobs import Initializer
from taskfarm.runtime.isolation.asking import isolate as isolate_tasks
from taskfarm.runtime.session import Session, current
from taskfarm.runtime.sharing.handles import hold_until_done, sharing_of
from taskfarm.runtime.sides import record
from taskfarm.wire.codec import Packed, pack
from taskfarm.wire.work import pack_work as pack_task

__all__ = ["Executor"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Executor(AsyncMethods, std.Executor):
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
    isolate : bool, optional
        Run tasks in a process of their own per worker: one that dies costs the attempt of the task that it ran, and
        nothing else. To be asked for before MPI starts. By default as ``taskfarm run --isolate`` and
        ``TASKFARM_ISOLATE`` say, else no. It holds for all tasks of the job.
    journal : path, optional
        Keep the results of all tasks in this file, and do not run again what it has. By default as
        ``taskfarm run --journal`` and ``TASKFARM_JOURNAL`` say, else none.
    trace : str, optional
        File into which a trace of all ranks is written when the session ends; see `taskfarm trace`.

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
        isolate: bool | None = None,
        journal: str | os.PathLike[str] | None = None,
        trace: str | None = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if isolate and current().worker is None:
            isolate_tasks(current())
        if trace is not None and current().worker is None:
            record(current(), trace)
        self._part()
        self._broken: BaseException | None = None
        self._shutdown = False
        self._has_left = False
        self._nested: NestedExecutor | None = None
        self._n_workers = 1
        session = current()
        if session.worker is not None:
            if journal is not None:
                raise no_journal_here(journal)
            self._nested = NestedExecutor(initializer, initargs, partial(note_broken, weakref.ref(self)))
            return
        self._shelf = Shelf(journal or session.config.journal or None)
        self._hall: Hall = self._find_hall(session, max_workers)
        self._hall.enter()
        self._sharing = sharing_of(session)
        self._crew: Crew = self._hall.crew
        self._n_workers = min(max_workers or len(self._crew.workers), len(self._crew.workers))
        if max_workers is not None and max_workers > self._n_workers:
            logger.info("max_workers=%d, but there are %d workers", max_workers, self._n_workers)
        n_threads = threads_per_worker(session) if blas_threads is None else blas_threads
        work = pack((initialize_worker, (n_threads, initializer, initargs)))
        self._initializer = Initializer(self._crew.new_number(), copied(work), self._sharing.take_pickled())
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
            If the initializer has failed, or no worker is left.
        """
        return self._submit_with(None, fn, args, kwargs)

    def _submit_with(
        self, options: TaskOptions | None, fn: Callable[..., T], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> std.Future[T]:
        """Submit a task, perhaps for a view."""
        self._check_open()
        if options is not None:
            if options.is_placed:
                return self._submit_placed(options, fn, args, kwargs)
            self._check_limit(options.timeout_s)
        if self._nested is not None:
            return self._nested.submit(_repeated(fn, options), *args, **kwargs)
        future: Future[T] = Future(self._crew, self._kill if self._hall.isolated else None)
        if not callable(fn):
            future.set_exception(TypeError(f"{type(fn).__qualname__!r} object is not callable"))
            return future
        if self._shelf.holds_all and self._shelf.settle(future, fn, args, kwargs):
            return future
        fn = _repeated(fn, options)
        try:
            known = self._crew.functions.find(fn)
            packed = pack_task(fn if known is None else known.number, args, kwargs)
        except Exception:  # noqa: BLE001 - any __reduce__ may raise anything
            fail_unpicklable(future, fn, args, kwargs)
            return future
        if self._sharing.pickled:
            hold_until_done(future, self._sharing.take_pickled())
        if packed.buffers:
            self._submit_large(future, packed, known, options)
        else:
            self._crew.post(partial(self._tasks.add, future, packed, known, options))
        return future

    def _submit_large(
        self, future: Future[Any], packed: Packed, known: KnownFunction | None, options: TaskOptions | None
    ) -> None:
        """Send a task with raw buffers from their own memory if a worker is free, else copy them."""
        added: list[Task] = []
        request = lambda: added.append(self._tasks.add(future, packed, known, options))  # noqa: E731
        may_come_back = self._hall.isolated or self._crew.controller.may_lose
        if not self._crew.post_now(request, lambda: added[0].own_buffers(may_come_back)):
            self._crew.post(partial(self._tasks.add, future, copied(packed), known, options))

    def _submit_placed(
        self, options: TaskOptions, fn: Callable[..., T], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> std.Future[T]:
        """Submit a task that needs several workers, or particular ones."""
        if self._nested is not None:
            raise UsageError(
                "a task with ranks, hosts or tags needs workers: inside a task, and with threads, are none"
            )
        future = self._tasks.placed_tasks(self._n_workers).submit(options, fn, args, kwargs)
        if self._sharing.pickled:
            hold_until_done(future, self._sharing.take_pickled())
        return future

    def _kill(self, future: Future[Any]) -> None:
        self._crew.post(partial(self._tasks.kill, future))

    def _check_limit(self, timeout_s: float | None) -> None:
        if timeout_s is not None and (self._nested is not None or not self._hall.isolated):
            raise UsageError(
                f"timeout_s={timeout_s}: only a task in a process of its own can be killed; make the executor with "
                "Executor(isolate=True), or run the program by `taskfarm run --isolate`"
            )

    def _check_open(self) -> None:
        if self._broken is not None:
            raise broken_type()(str(self._broken)) from self._broken
        if self._shutdown:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._nested is None and self._hall.closing:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    # Maps

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
        options: TaskOptions | None = None,
        journal: str | os.PathLike[str] | None = None,
        key: KeyFunction | None = None,
    ) -> Iterator[Any]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        check_sizes(chunksize, buffersize)
        self._check_open()
        part = self._part_of_journal(fn, items, star, journal, key)
        if self._nested is not None:
            self._check_limit(None if options is None else options.timeout_s)
            return self._nested.map_items(_repeated(fn, options), items, star, deadline, buffersize)
        job = self._new_map(fn, part.missing() if part else items, star, chunksize, buffersize, options, part)
        results = job.results(deadline) if in_order else job.results_as_they_come(deadline)
        if part is not None:
            return part.merged(results) if in_order else part.merged_unordered(results)
        job.read_ahead()
        return results

    def _part_of_journal(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        star: bool,
        journal: str | os.PathLike[str] | None,
        key: KeyFunction | None,
    ) -> JournaledMap | None:
        """Return what a map has to do with a journal, None if nothing."""
        if self._nested is None:
            return self._shelf.map(fn, items, key, star, journal)
        if journal is not None or key is not None:
            raise no_journal_here(journal)
        return None

    def _new_map(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        star: bool,
        chunksize: int | None,
        buffersize: int | None,
        options: TaskOptions | None = None,
        journal: JournaledMap | None = None,
    ) -> MapJob:
        crew = self._crew
        if options is None:
            options = TaskOptions()
        self._check_limit(options.timeout_s)
        job = MapJob(
            crew,
            crew.new_number(),
            copied(pack_function(_repeated(fn, options))),
            items,
            star=star,
            initializer=self._initializer,
            unit=chunksize or 1,
            buffersize=buffersize,
            on_broken=partial(note_broken, weakref.ref(self)),
            options=options,
            journal=journal,
        )
        job.shared = self._sharing.take_pickled()
        self._maps.add(job)
        crew.post(lambda: crew.add_job(job, self._n_workers, job.unit))
        return job

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
            self._shelf.close()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: Any) -> bool | None:
        """Shut down and wait; after ^C and ``sys.exit``, cancel what has not begun and do not wait for ever."""
        if kind is not None and not issubclass(kind, Exception):
            self._end_within(current().config.leave_s, True, True)
        else:
            self.shutdown(wait=True)
        return None


def _repeated(fn: Callable[..., T], options: TaskOptions | None) -> Callable[..., T]:
    """Return `fn`, as one that is tried again if the options say so."""
    return fn if options is None else with_retries(fn, options.retries, options.retry_on)
