"""Tasks of an executor that need several workers, or particular ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskfarm.errors import RankFailure, UsageError
from taskfarm.futures._arguments import copied, fail_unpicklable
from taskfarm.futures._future import AnyFuture, Future
from taskfarm.futures._options import TaskOptions
from taskfarm.futures._retry import with_retries
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.functions import KnownFunction
from taskfarm.runtime.executor.jobs import Supplied
from taskfarm.runtime.executor.teams import NO_MPI
from taskfarm.runtime.registry import PlacedObjectId
from taskfarm.runtime.runner import exception_of
from taskfarm.wire.codec import Packed, unpack
from taskfarm.wire.frames import Buffer
from taskfarm.wire.work import pack_work

__all__ = ["PlacedTask", "PlacedTasks"]


class PlacedTask:
    """A placed task; see `taskfarm.runtime.executor.team_desk.PlacedTask` for the methods."""

    def __init__(
        self,
        owner: PlacedTasks,
        future: AnyFuture,
        packed: Packed,
        known: KnownFunction | None,
        options: TaskOptions,
    ) -> None:
        self.job = owner.job
        self.packed = packed
        self.known = known
        self.wants_all = options.results == "all"
        self.retries = options.retries
        self._retry_on = options.retry_on if options.ranks > 1 else ()  # else its one rank tries again
        self.future = future
        self.number = 0
        self.handles: Sequence[PlacedObjectId] = ()  # kept alive: the objects must not go before the task has run
        self._owner = owner
        self._started: bool | None = None  # False if it was cancelled, and the future has told so

    def begin(self) -> bool:
        """Note that the task starts; False if it was cancelled before that. May be repeated."""
        if self._started is None:
            self._started = self.future.set_running_or_notify_cancel()
        return self._started

    def on_start(self) -> bool:
        if not self.begin():
            self._owner.tasks.pop(self.number, None)
        return self.begin()

    def on_failed(self, failure: RankFailure | BaseException) -> None:
        self._owner.crew.deliver_later(lambda: self.fail(exception_of(failure, "task")))

    def is_repeated(self, failure: RankFailure) -> bool:
        return isinstance(failure.exception, self._retry_on)

    def on_broken(self, failure: RankFailure) -> None:
        self._owner.on_broken(failure)

    def on_over(self, results: Sequence[tuple[Buffer, Sequence[Buffer]]]) -> None:
        self._owner.crew.deliver_later(lambda: self._settle(results))

    def fail(self, error: BaseException) -> None:
        """Give the future its error, unless it has ended."""
        if self.begin() and not self.future.done():
            self.future.set_exception(error)
        self._owner.tasks.pop(self.number, None)

    def _settle(self, results: Sequence[tuple[Buffer, Sequence[Buffer]]]) -> None:
        try:
            values = [unpack(body, buffers) for body, buffers in results]
        except Exception as exc:  # noqa: BLE001 - a class that cannot be imported here, a __setstate__ that raises
            self.fail(exc)
            values = []
        if values and not self.future.done():
            self.future.set_result(values if self.wants_all else values[0])
        self._owner.tasks.pop(self.number, None)


class PlacedTasks:
    """The placed tasks of one executor.

    Parameters
    ----------
    crew : Crew
        Runs them.
    job : Supplied
        The executor's tasks: what workers must have before.
    n_workers : int
        How many of the crew's workers the executor uses: the first ones.
    on_broken : callable
        Is told of the failure of the initializer.
    """

    def __init__(
        self,
        crew: Crew,
        job: Supplied,
        n_workers: int,
        on_broken: Callable[[RankFailure], None],
    ) -> None:
        self.crew = crew
        self.job = job
        self.on_broken = on_broken
        self.tasks: dict[int, PlacedTask] = {}
        self._first = crew.workers[:n_workers]

    @property
    def _workers(self) -> list[int]:
        """Those of the executor's workers that are not lost."""
        return [worker for worker in self._first if worker in self.crew.desk.hosts]

    def submit(
        self, options: TaskOptions, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AnyFuture:
        """Have ``fn(*args, **kwargs)`` run as `options` say; see `Executor.submit`.

        Raises
        ------
        UsageError
            If no workers can ever run it, or an option is not for placed tasks.
        """
        _check_options(options)
        if self.crew.has_groups:
            raise UsageError(
                "tasks with ranks, hosts or tags, or with objects that live on ranks, need rank 0 to know what each "
                "worker does, and in this job groups of workers have controllers of their own; set "
                "TASKFARM_GROUP_SIZE=0"
            )
        if options.ranks == 1:
            fn = with_retries(fn, options.retries, options.retry_on)
        future: AnyFuture = Future(self.crew)
        handles = [value for value in [*args, *kwargs.values()] if isinstance(value, PlacedObjectId)]
        allowed = self._allowed(options, handles)
        try:
            known = self.crew.functions.find(fn)
            packed = copied(pack_work(fn if known is None else known.number, args, kwargs))
        except Exception:  # noqa: BLE001 - any __reduce__ may raise anything
            fail_unpicklable(future, fn, args, kwargs)
            return future
        task = PlacedTask(self, future, packed, known, options)
        task.handles = handles

        def add() -> None:
            try:
                task.number = self.crew.desk.add(task, options.ranks, allowed)
            except UsageError as exc:  # workers have been lost meanwhile
                error = exc
                self.crew.deliver_later(lambda: future.set_exception(error))
            else:
                self.tasks[task.number] = task

        self.crew.post(add)
        return future

    @property
    def is_idle(self) -> bool:
        """Whether every future has ended, and been told so; ranks of a failed task may still be in it."""
        return not self.tasks

    def cancel_waiting(self) -> list[PlacedTask]:
        """Forget the tasks that have not started, with the crew's lock held; return them, to be cancelled."""
        waiting = [task for number, task in list(self.tasks.items()) if self.crew.desk.drop(number)]
        for task in waiting:
            del self.tasks[task.number]
        return waiting

    def break_all(self, error: BaseException) -> None:
        """Fail all tasks: the executor has become useless."""
        tasks = list(self.tasks.values())
        for task in tasks:
            self.crew.desk.drop(task.number)
        self.crew.deliver_later(lambda: self._fail_all(tasks, error))

    def _fail_all(self, tasks: Sequence[PlacedTask], error: BaseException) -> None:
        for task in tasks:
            task.fail(error)

    # Who may run a task

    def _allowed(self, options: TaskOptions, handles: Sequence[PlacedObjectId]) -> frozenset[int] | None:
        """Return the ranks that may run a task with these options, None for all workers of the crew."""
        workers = self._workers
        n_all = len(workers)
        if options.ranks > 1 and getattr(self.crew.transport, "parent", None) is None:
            raise UsageError(f"ranks={options.ranks}: {NO_MPI}")
        if options.ranks > n_all:
            raise UsageError(f"ranks={options.ranks}: the executor has {n_all} workers; start the job with more ranks")
        if not options.is_restricted and not handles:
            return None if n_all == len(self.crew.workers) else frozenset(workers)
        allowed = set(workers)
        self._restrict_to_hosts(allowed, options)
        if options.ranks_in is not None:
            allowed &= options.ranks_in
        elif handles and options.ranks == len(handles[0].ranks):
            allowed &= set(handles[0].ranks)
        if options.tags is not None:
            tags = self.crew.desk.tags
            allowed = {rank for rank in allowed if options.tags <= tags.get(rank, frozenset())}
        if len(allowed) < options.ranks:
            raise UsageError(self._why_nobody(options, sorted(allowed)))
        return frozenset(allowed)

    def _restrict_to_hosts(self, allowed: set[int], options: TaskOptions) -> None:
        if options.hosts is not None:
            hosts = self.crew.desk.hosts
            unknown = sorted(set(options.hosts) - set(hosts.values()))
            if unknown:
                known = ", ".join(sorted(set(hosts.values())))
                raise UsageError(f"hosts={list(options.hosts)!r}: no worker is on {', '.join(unknown)}; hosts: {known}")
            allowed &= {rank for rank in allowed if hosts[rank] in options.hosts}

    def _why_nobody(self, options: TaskOptions, found: Sequence[int]) -> str:
        asked = [f"hosts={list(options.hosts)!r}"] if options.hosts is not None else []
        asked += [f"ranks_in={sorted(options.ranks_in)}"] if options.ranks_in is not None else []
        asked += [f"tags={sorted(options.tags)}"] if options.tags is not None else []
        wide = "" if options.ranks == 1 else f"ranks={options.ranks} with "
        given: Mapping[int, frozenset[str]] = self.crew.desk.tags
        tagged = ", ".join(f"{rank}: {'+'.join(sorted(tags))}" for rank, tags in sorted(given.items()) if tags)
        told = f"; tags of ranks: {tagged or 'none'}" if options.tags is not None else ""
        return (
            f"{wide}{', '.join(asked) or 'these objects'}: no task like this can ever run, "
            f"since only ranks {list(found)} of workers {self._first[0]} to {self._first[-1]} qualify{told}"
        )


def _check_options(options: TaskOptions) -> None:
    if options.timeout_s is not None:
        raise UsageError(
            f"timeout_s={options.timeout_s}: a task with ranks, hosts or tags runs in the process of its rank, for MPI "
            "and for objects that live there, and cannot be killed; leave timeout_s out"
        )
