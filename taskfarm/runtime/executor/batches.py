"""The worker's side of the executor: keep the functions of jobs, run batches of items one by one, send what they gave.

A batch runs at the speed of C where its items are tiny (`map` inside ``list.extend``), and looks at the clock between
them where they are not. An item that raises, or whose result does not pickle, fails alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, starmap
from struct import Struct
from typing import Any, NamedTuple, Protocol

from taskfarm.errors import ProtocolError
from taskfarm.fast import new_tuple
from taskfarm.runtime.executor.results import ReplyOption, pack_results
from taskfarm.runtime.options import BatchOption, FunctionOption
from taskfarm.runtime.registry import Registry
from taskfarm.runtime.runner import Outcome, decode_failure, encode_failure, exception_of, failure_of, flush_output
from taskfarm.runtime.work import unpack_work
from taskfarm.scheduling.pacing import give_back_s
from taskfarm.transport.base import Transport
from taskfarm.wire.codec import unpack
from taskfarm.wire.frames import Buffer, Frame, Kind
from taskfarm.wire.work import Work

__all__ = [
    "ALL_RUN",
    "NOTHING_RUN",
    "BatchReport",
    "BatchRunner",
    "Progress",
    "call_task",
    "encode_times",
    "read_report",
]

_TIMES = Struct("<dd")
NOTHING_RUN = -1  # position of an item: the batch is being unpickled
ALL_RUN = -2  # the results are being pickled
SLICE_S = 50e-6  # between two looks at the clock, which cost 0.3 us
# Hot path: see `taskfarm.fast`.
_LONG, _FRESH, _ONE_TASK = int(BatchOption.LONG), int(BatchOption.FRESH), int(BatchOption.ONE_TASK)
_TASKS, _CHUNKS, _STAR = int(BatchOption.TASKS), int(BatchOption.CHUNKS), int(BatchOption.STAR)
_PIECES = int(BatchOption.PIECES)
SEND_PATIENCE_S = 5e-3  # for a reply that rank 0 does not take; a next batch may be long, and MPI would not move it


class Progress(Protocol):
    """Is told how far a batch is."""

    def begin(self, batch: int) -> None:
        """Note that a batch has begun."""

    def mark(self, position: int, now: float) -> None:
        """Note that the item at `position` begins; a negative one stands for what comes after the last."""


class BatchReport(NamedTuple):
    """What a worker tells of a batch beside its results.

    Attributes
    ----------
    seconds : float
        How long its items took.
    gap_s : float
        How long the worker had nothing to do before.
    body : bytes-like
        What follows, pickled.
    """

    seconds: float
    gap_s: float
    body: Buffer


def read_report(body: Buffer) -> BatchReport:
    """Return what the body of a BATCH_DONE frame holds; `ProtocolError` if it is none."""
    if len(body) < _TIMES.size:
        raise ProtocolError(f"a BATCH_DONE body has {len(body)} bytes")
    seconds, gap_s = _TIMES.unpack_from(body)
    if not (0.0 <= seconds < math.inf and -math.inf < gap_s < math.inf):
        raise ProtocolError("a BATCH_DONE body has times that cannot be")
    return new_tuple(BatchReport, (seconds, gap_s, memoryview(body)[_TIMES.size :]))


def encode_times(seconds: float, gap_s: float) -> bytes:
    """Return how the body of a BATCH_DONE frame begins; see `BatchReport`."""
    return _TIMES.pack(seconds, gap_s)


class _Job(NamedTuple):
    """What a worker knows of a job: its function, or why it cannot be run, and which reply says so."""

    fn: Callable[..., Any] | None
    failure: bytes
    reply: int


RunUserCode = Callable[..., Outcome]


class BatchRunner:
    """Runs batches.

    Parameters
    ----------
    transport : Transport
        Where the replies leave.
    host : str
        Name of this rank's host.
    registry : Registry
        Its managed objects.
    run_user_code : callable
        ``run_user_code(fn, *args)`` runs what may be the user's code, as an `Outcome`.
    complete_sends : callable
        Returns when the raw buffers that were sent may be changed, or after so many seconds if there are none.
    clock : callable, optional
        Returns the time in seconds.
    progress : Progress, optional
        Is told which item begins.
    """

    def __init__(
        self,
        transport: Transport,
        host: str,
        registry: Registry,
        run_user_code: RunUserCode,
        complete_sends: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
        progress: Progress | None = None,
    ) -> None:
        self._clock = clock
        self._transport = transport
        self._host = host
        self._registry = registry
        self._run_user_code = run_user_code
        self._complete_sends = complete_sends
        self._progress = progress
        self._jobs: dict[int, _Job] = {}
        self._kept: dict[int, list[object]] = {}
        self._feeder = 0
        self._give_back_s = give_back_s(transport.size - 1)
        self._ended = self._clock()
        self._late = False  # the last batch took much longer than rank 0 had expected

    def set_feeder(self, rank: int, n_workers: int) -> None:
        """Note who sends batches and gets the replies; the more workers it feeds, the longer are batches."""
        self._feeder = rank
        self._give_back_s = give_back_s(n_workers)

    # Jobs

    def on_function(self, source: int, frame: Frame) -> None:
        """Keep the function of a job, or run an initializer; ``frame.b`` is the job's initializer, 0 for none."""
        before = self._jobs.get(frame.b)
        if before is not None and before.fn is None:
            self._jobs[frame.a] = before
            return
        if not len(frame.body):
            self._jobs[frame.a] = _Job(call_task, b"", 0)
            return
        is_initializer = frame.option & FunctionOption.INITIALIZER
        load = _load_and_initialize if is_initializer else unpack
        outcome = self._run_user_code(load, frame.body, frame.buffers)
        if outcome.exception is not None:
            reply = ReplyOption.BROKEN if is_initializer else ReplyOption.UNREADABLE
            self._jobs[frame.a] = _Job(None, self._encode(outcome.exception), reply)
        else:
            self._jobs[frame.a] = _Job(outcome.value, b"", 0)

    def on_forget(self, source: int, frame: Frame) -> None:
        """Drop the function of a job, and what was kept under its number."""
        self._jobs.pop(frame.a, None)
        self._kept.pop(frame.a, None)

    def keep(self, number: int, thing: object) -> None:
        """Keep `thing`, for tasks to come, until rank 0 says that `number` is not needed any more."""
        self._kept.setdefault(number, []).append(thing)

    def let_go(self, number: int) -> None:
        """Keep nothing under `number`."""
        self._kept.pop(number, None)

    def failure_of_job(self, number: int) -> _Job | None:
        """Return why nothing of a job can be run here, None if it can; `ProtocolError` if it is not known."""
        job = self._jobs.get(number)
        if job is None:
            raise ProtocolError(f"job {number} is not known here")
        return job if job.fn is None else None

    # Batches

    def on_batch(self, source: int, frame: Frame) -> None:
        """Run the items of a batch, and send what they gave."""
        started = self._clock()
        gap_s = started - self._ended
        job = self._jobs.get(frame.b)
        if job is None:
            raise ProtocolError(f"batch {frame.a} is of job {frame.b}, which is not known here")
        if job.fn is None:
            self._reply(frame.a, 0, job.reply, (0.0, gap_s), job.failure, ())
            return
        option = frame.option & ~(_LONG | _FRESH)
        if self._late and not frame.option & _FRESH:  # dealt in the belief that this worker was not
            self._reply(frame.a, 0, ReplyOption.RESULTS, (0.0, gap_s), b"", ())
            return
        self._late = False
        progress = self._progress
        if progress is not None:
            progress.begin(frame.a)
        unit = 1
        if option == _ONE_TASK:
            items = [(frame.body, frame.buffers, self)]
        else:
            read = _read_tasks if option & _TASKS else _read_pieces if option & _PIECES else unpack
            outcome = self._run_user_code(read, *self._source(frame))
            if outcome.exception is not None:
                failure = self._encode(outcome.exception)
                self._reply(frame.a, 0, ReplyOption.UNREADABLE, (0.0, gap_s), failure, ())
                return
            items, unit = outcome.value if option & _CHUNKS else (outcome.value, 1)
            del outcome
        marked = items if progress is None else _marked(items, progress, self._clock)
        calls: Iterator[Any] = starmap(job.fn, marked) if option & _STAR else map(job.fn, marked)
        results, failures = self._run_items(calls, len(items), started + self._give_back_s, unit)
        del items, marked, calls
        if progress is not None:
            progress.mark(ALL_RUN, self._ended)
        n_done = len(results)
        reply, packed = pack_results(results, failures, self._encode)
        del results
        self._ended = self._clock()
        if self._ended - started >= self._give_back_s and not frame.option & _LONG:
            self._late = True
            reply |= ReplyOption.LATE
        self._reply(frame.a, n_done, reply, (self._ended - started, gap_s), packed.body, packed.buffers)
        flush_output()  # while the reply is on its way

    def _source(self, frame: Frame) -> tuple[Any, ...]:
        if frame.option & _TASKS:
            return frame.body, frame.buffers, bool(frame.option & BatchOption.BUFFERS), self
        if frame.option & _PIECES:
            return frame.body, frame.buffers, bool(frame.option & _CHUNKS)
        return frame.body, frame.buffers

    def call_task(self, body: Buffer, buffers: Sequence[Buffer]) -> Any:
        """Run one task, from what `taskfarm.wire.work.pack_work` made."""
        if not len(body):  # it was cancelled when it was sent
            return None
        fn, args, kwargs = self._load_task(body, buffers)
        return fn(*args, **kwargs)

    def _load_task(self, body: Buffer, buffers: Sequence[Buffer]) -> Work:
        return unpack_work(body, buffers, self._registry, self._find_known)

    def _find_known(self, number: int) -> Callable[..., Any]:
        job = self._jobs[number]
        if job.fn is None:
            raise exception_of(decode_failure(job.failure), "loading a function")
        return job.fn

    def _run_items(
        self, calls: Iterator[Any], n: int, deadline: float, unit: int
    ) -> tuple[list[Any], dict[int, bytes]]:
        """Return the results of the items that were run, and the failures among them by position."""
        results: list[Any] = []
        failures: dict[int, bytes] = {}
        while len(results) < n:
            outcome = self._run_user_code(_fill, results, calls, n, deadline, unit, self._clock)
            if outcome.exception is None:
                break
            failures[len(results)] = self._encode(outcome.exception)
            results.append(None)
            if len(results) % unit == 0 and self._clock() >= deadline:
                break
        return results, failures

    def _reply(
        self, number: int, n_done: int, option: int, times: tuple[float, float], body: bytes, buffers: Sequence[Buffer]
    ) -> None:
        frame = Frame(Kind.BATCH_DONE, number, n_done, option, _TIMES.pack(*times) + body, buffers)
        self._transport.send(self._feeder, frame, borrowed=True)
        if buffers:  # the next task may change the arrays
            self._complete_sends(math.inf)
        elif self._transport.n_unsent:
            self._complete_sends(SEND_PATIENCE_S)

    def _encode(self, exc: BaseException) -> bytes:
        encoded = encode_failure(failure_of(exc, self._transport.rank, self._host))
        exc.__traceback__ = None  # whose frames hold the task's arrays and, through their callers, the exception
        return encoded


def _fill(
    results: list[Any], calls: Iterator[Any], n: int, deadline: float, unit: int, clock: Callable[[], float]
) -> None:
    """Append what `calls` gives to `results` until it has `n` items, or a multiple of `unit` when the time has come.

    What was appended stays there if a call raises, and the next run of this function goes on behind it.
    """
    if n - len(results) == 1:
        results.append(next(calls))
        return
    began = now = clock()
    first = len(results)
    step = unit - first % unit
    while True:
        _extend(results, calls, min(step, n - len(results)))
        if len(results) == n:
            return
        now = clock()
        if now >= deadline:
            return
        step = max(1, int(SLICE_S * (len(results) - first) / (now - began + 1e-9)) // unit) * unit


def _marked(items: Iterable[Any], progress: Progress, clock: Callable[[], float]) -> Iterator[Any]:
    """Yield `items`, and tell which one begins."""
    mark = progress.mark
    for position, item in enumerate(items):
        mark(position, clock())
        yield item


def _extend(results: list[Any], calls: Iterator[Any], n: int) -> None:
    wanted = len(results) + n
    results.extend(islice(calls, n))
    if len(results) < wanted:
        raise StopIteration  # raised by the function; to `extend` it was the end


_Task = tuple[Buffer, Sequence[Buffer], BatchRunner]


def _read_tasks(body: Buffer, buffers: Sequence[Buffer], with_buffers: bool, runner: BatchRunner) -> list[_Task]:
    """Return the tasks of a batch, each still pickled: what does not unpickle is the failure of one task."""
    parts = unpack(body)
    if not with_buffers:
        return [(part, (), runner) for part in parts]
    tasks: list[_Task] = []
    first = 0
    for part, n in parts:
        tasks.append((part, buffers[first : first + n], runner))
        first += n
    return tasks


def _read_pieces(body: Buffer, buffers: Sequence[Buffer], in_chunks: bool) -> Any:
    """Return the items of a batch that is made of pieces; with the size of chunks if they come in these."""
    items: list[Any] = []
    first, unit = 0, 1
    for part, n_items, n_buffers in unpack(body):
        piece = unpack(part, buffers[first : first + n_buffers])
        first += n_buffers
        if in_chunks:
            piece, unit = piece
        elif n_items == 1:
            piece = [piece]
        items.extend(piece)
    return (items, unit) if in_chunks else items


def call_task(task: _Task) -> Any:
    """Run one task of a batch of tasks."""
    body, buffers, runner = task
    return runner.call_task(body, buffers)


def _load_and_initialize(body: Buffer, buffers: Sequence[Buffer]) -> Callable[..., Any]:
    fn, args = unpack(body, buffers)
    fn(*args)
    return call_task
