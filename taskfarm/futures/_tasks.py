"""The calls of `submit`: one job per executor, whose items are functions with their arguments."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence

from taskfarm.errors import RankFailure, TaskTimeoutError
from taskfarm.futures._arguments import copy_of
from taskfarm.futures._future import AnyFuture, broken
from taskfarm.futures._options import TaskOptions
from taskfarm.futures._placed import PlacedTask, PlacedTasks
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.functions import KnownFunction
from taskfarm.runtime.executor.jobs import Initializer, Parcel, Pieces
from taskfarm.runtime.executor.results import ReplyOption, Results
from taskfarm.runtime.options import BatchOption
from taskfarm.runtime.runner import exception_of
from taskfarm.scheduling.pacing import RETRIES
from taskfarm.wire.codec import Packed
from taskfarm.wire.frames import Buffer, Frame, Kind

__all__ = ["Task", "TaskJob"]

INITIALIZER_FAILED = "the initializer failed"
_ONE_TASK = int(BatchOption.ONE_TASK)  # hot path: see `taskfarm.fast`


class Task:
    """A task that has not ended: its future, its pickle, the function that it names, and how far it is."""

    __slots__ = ("body", "borrows", "buffers", "future", "is_cancelled", "known", "options", "sent")

    def __init__(
        self, future: AnyFuture, packed: Packed, known: KnownFunction | None, options: TaskOptions | None
    ) -> None:
        self.future = future
        self.options = options
        self.known = known
        self.body = packed.body
        self.buffers: Sequence[Buffer] = packed.buffers
        self.sent = False
        self.is_cancelled = False  # and the future has told so, which it must not do twice
        self.borrows = bool(packed.buffers)

    def begin(self) -> bool:
        """Note that the task is sent; False if it was cancelled, or killed, before that. May be repeated."""
        if not (self.sent or self.is_cancelled):
            self.sent = self.future.set_running_or_notify_cancel()
            self.is_cancelled = not self.sent
        if self.is_cancelled or self.future.cancelled():
            self.body, self.buffers = b"", ()  # a worker answers an empty task with None
            return False
        return True

    def own_buffers(self, may_come_back: bool) -> None:
        """Copy the buffers, unless they have been sent and cannot come back: the caller may change their memory now."""
        if self.borrows:
            self.borrows = False
            if may_come_back or not self.sent:
                self.buffers = [copy_of(buffer) for buffer in self.buffers]


class TaskJob:
    """The tasks of one executor; see `taskfarm.runtime.executor.crew.Job` for the methods that are not described here.

    Parameters
    ----------
    crew : Crew
        Runs them.
    number : int
        The job's number.
    initializer : Initializer or None
        What a worker must have run before.
    on_broken : callable
        Is told of the error when the executor has become useless.
    """

    function: Packed | None = None
    retries: int = RETRIES

    def __init__(
        self, crew: Crew, number: int, initializer: Initializer | None, on_broken: Callable[[BaseException], None]
    ) -> None:
        self.number = number
        self.initializer = initializer
        self._crew = crew
        self._tell_broken = on_broken
        self.placed: PlacedTasks | None = None
        self._tasks: dict[int, Task] = {}
        self._n_added = 0
        self._error: BaseException | None = None  # of the executor

    def placed_tasks(self, n_workers: int) -> PlacedTasks:
        """Return those of the executor's tasks that need several of its workers, or particular ones."""
        if self.placed is None:
            self.placed = PlacedTasks(self._crew, self, n_workers, self.on_broken)
        return self.placed

    @property
    def is_idle(self) -> bool:
        """Whether every future has ended and has been told so."""
        return not self._tasks and (self.placed is None or self.placed.is_idle)

    def add(
        self, future: AnyFuture, packed: Packed, known: KnownFunction | None, options: TaskOptions | None = None
    ) -> Task:
        """Take one more task, (`known` or function, args, kwargs); with the crew's lock held."""
        task = Task(future, packed, known, options)
        self._append(task)
        return task

    def _append(self, task: Task) -> None:
        index = self._n_added
        self._tasks[index] = task
        self._n_added += 1
        if not self._crew.add_items(self, 1):  # another thread was faster than this `submit`
            error = self._error or RuntimeError("cannot schedule new futures after shutdown")
            self._crew.deliver_later(lambda: self._fail([index], error))
        elif task.options is not None and task.options.retries != RETRIES:
            self._crew.dealer.limit_retries(self.number, index, task.options.retries)

    def kill(self, future: AnyFuture) -> None:
        """Kill the process that runs the task of `future`; with the crew's lock held."""
        indices = {index for index, task in self._tasks.items() if task.future is future}
        for batch in self._crew.dealer.flying.values():
            if batch.job == self.number:
                for index in indices.intersection(range(batch.start, batch.stop)):
                    frame = Frame(Kind.CANCEL, batch.number, index - batch.start)
                    self._crew.transport.send(batch.worker, frame)

    def cancel_waiting(self) -> None:
        """Cancel what was not sent yet; with the crew's lock held."""
        ranges = self._crew.dealer.drop_waiting(self.number)
        indices = [index for start, stop in ranges for index in range(start, stop)]
        again: list[int] = []
        for index in indices:
            task = self._tasks.get(index)
            if task is not None and task.sent:  # given back by a worker, but running as far as others can see
                again.append(index)
        waiting: list[Task | PlacedTask] = [self._tasks.pop(index) for index in indices if index not in set(again)]
        if self.placed is not None:
            waiting += self.placed.cancel_waiting()
        self._crew.deliver_later(lambda: _cancel(waiting))
        self._put_back(again)

    def _put_back(self, indices: Sequence[int]) -> None:
        for index in indices:
            self._append(self._tasks.pop(index))

    # What the crew calls

    def pack(self, start: int, stop: int) -> Parcel | None:
        if stop - start == 1:
            return self._pack_one(start)
        option: int = BatchOption.TASKS
        bodies: list[Buffer] = []
        buffers: list[Buffer] = []
        counts: list[int] = []
        limits: list[float] = []
        needs: list[KnownFunction] = []
        alive = borrows = False
        for index in range(start, stop):
            task = self._tasks[index]
            if task.begin():
                alive = True
                borrows = borrows or task.borrows
            if task.known is not None and (not needs or needs[-1] is not task.known):
                needs.append(task.known)
            if task.options is not None and task.options.timeout_s is not None:
                limits = limits or [math.inf] * (stop - start)
                limits[index - start] = task.options.timeout_s
            bodies.append(task.body)
            buffers += task.buffers
            counts.append(len(task.buffers))
        if not alive:
            for index in range(start, stop):
                del self._tasks[index]
            return None
        if buffers:
            option |= BatchOption.BUFFERS
            return Parcel(
                pickle.dumps(list(zip(bodies, counts, strict=True)), 5), buffers, option, needs, borrows, limits
            )
        return Parcel(pickle.dumps(bodies, 5), (), option, needs, limits=limits)

    def _pack_one(self, index: int) -> Parcel | None:
        task = self._tasks[index]
        if not task.begin():
            del self._tasks[index]
            return None
        needs = () if task.known is None else (task.known,)
        limits = () if task.options is None else task.options.limits
        return Parcel(task.body, task.buffers, _ONE_TASK, needs, task.borrows, limits)

    def pack_pieces(self, start: int, stop: int, size: int) -> Pieces | None:
        tasks = [self._tasks[index] for index in range(start, stop)]
        begun = [task.begin() for task in tasks]
        if not any(begun):
            for index in range(start, stop):
                del self._tasks[index]
            return None
        buffers = [buffer for task in tasks for buffer in task.buffers]
        counts = [len(task.buffers) for task in tasks] if buffers else []
        needs = {task.known.number: task.known for task in tasks if task.known is not None}
        bodies = [bytes(task.body) for task in tasks]
        return Pieces(1, stop - start, _ONE_TASK, bodies, counts, buffers, list(needs.values()))

    def on_singles(self, items: Sequence[int], bodies: Sequence[bytes]) -> None:
        for item, body in zip(items, bodies, strict=True):
            self.on_results(item, Results(1, body, (), ReplyOption.VALUE))

    def on_results(self, start: int, results: Results) -> None:
        if not results.n:
            return
        self._crew.deliver_later(lambda: self._settle(start, results))

    def on_returned(self, start: int, stop: int) -> None:
        pass  # tasks are kept until they have ended

    def retries_late(self, item: int) -> bool:
        task = self._tasks.get(item)
        return task is not None and task.options is not None and TaskTimeoutError in task.options.retry_on

    def on_item_failed(self, start: int, stop: int, failure: RankFailure | BaseException) -> None:
        indices = range(start, stop)
        self._crew.deliver_later(lambda: self._fail(indices, exception_of(failure, "task")))

    def on_broken(self, failure: RankFailure | BaseException) -> None:
        error = broken(failure, INITIALIZER_FAILED if isinstance(failure, RankFailure) else "the executor is broken")
        self._error = error
        self._crew.end_job(self)
        if self.placed is not None:
            self.placed.break_all(error)
        indices = list(self._tasks)
        self._crew.deliver_later(lambda: self._tell_broken(error))
        self._crew.deliver_later(lambda: self._fail(indices, error))

    # Without the lock

    def _settle(self, start: int, results: Results) -> None:
        values, failures = results.read("task")
        tasks = self._tasks
        for index, value in enumerate(values, start):
            task = tasks.get(index)
            if task is None:
                continue
            if not task.sent or task.future.done():
                pass
            elif index - start in failures:
                task.future.set_exception(failures[index - start])
            else:
                task.future.set_result(value)
            tasks.pop(index, None)

    def _fail(self, indices: Sequence[int], error: BaseException) -> None:
        for index in indices:
            task = self._tasks.get(index)
            if task is not None:
                if task.begin() and not task.future.done():
                    task.future.set_exception(error)
                self._tasks.pop(index, None)


def _cancel(tasks: Sequence[Task | PlacedTask]) -> None:
    for task in tasks:
        if task.future.cancel():
            task.begin()  # tells those who wait
