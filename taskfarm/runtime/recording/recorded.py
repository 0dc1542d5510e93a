"""A rank that records what it does: the same transport, worker and controller, with a `Recorder` beside them.

These are made when the session opens with tracing on. Nothing of them is there otherwise: no flag is tested anywhere.

*Clocks.* Rank 0 asks every worker for its clock, some times in quick succession, when the session opens and before it
ends. The answer with the shortest way there and back counts; half of that way is the uncertainty. Where the difference
is smaller than it, as between ranks of one host, which have one clock, none is assumed.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from taskfarm.config import OnError
from taskfarm.errors import ProtocolError
from taskfarm.runtime.caller import Caller
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.endpoint import Surroundings
from taskfarm.runtime.executor.batches import BatchRunner, Progress, call_task
from taskfarm.runtime.isolation.isolated_worker import IsolatedWorker
from taskfarm.runtime.options import TraceOption
from taskfarm.runtime.recording.recorder import MarkHandler, Recorder, Recording, Track, max_spans, name_of, untimed
from taskfarm.runtime.recording.trace_file import Clock, TraceFile
from taskfarm.runtime.runner import Outcome
from taskfarm.runtime.worker import Worker
from taskfarm.transport.base import Transport
from taskfarm.wire import work as wire
from taskfarm.wire.frames import Buffer, Frame, Kind

if TYPE_CHECKING:
    from taskfarm.runtime.isolation.nursery import Nursery
    from taskfarm.transport.world import PeerInfo

__all__ = ["RecordedController", "new_recorded_worker", "new_recorder"]

logger = logging.getLogger(__name__)

# For the clock of each worker, whom the first ones may wake: more of them while the best answer is worse than good.
MIN_QUESTIONS, MAX_QUESTIONS = 8, 40
GOOD_NS = 25_000
CLOCK_S = 2.0  # for all of them at the start; who is busy then is asked again at the end
END_CLOCK_S, MIN_CLOCK_S = 10.0, 0.02  # for all of them at the end, and for each: 1000 ranks are not kept waiting long
HAND_IN_S = 30.0  # one worker's recording: 100,000 spans are 3.4 MB, packed in 0.05 s
# Spans of tiny items of a map would take longer than the items: after so many, those of a batch are one span.
TINY_NS = 10_000
N_TINY = 200
_BATCH, _ITEM = int(Track.BATCH), int(Track.ITEM)  # looked up once: see `taskfarm.fast`


def new_recorder(rank: int, size: int, host: str) -> Recorder:
    """Return the recorder of a rank; what taskfarm logs from WARNING on becomes marks."""
    recorder = Recorder(rank, host, max_spans(size))
    logging.getLogger("taskfarm").addHandler(MarkHandler(recorder))
    return recorder


class _RecordedBatchRunner(BatchRunner):
    """Runs batches as spans, and in them the items."""

    def __init__(self, recorder: Recorder, *args: Any) -> None:
        super().__init__(*args)
        self._recorder = recorder
        self._n_done = 0
        self._seconds = 0.0

    def on_function(self, source: int, frame: Frame) -> None:
        """Keep the function of a job, timed."""
        super().on_function(source, frame)
        job = self._jobs[frame.a]
        if job.fn is not None and job.fn is not call_task and untimed(job.fn) is None:
            self._jobs[frame.a] = job._replace(fn=self._recorder.timed(job.fn))

    def call_task(self, body: Buffer, buffers: Sequence[Buffer]) -> Any:
        """Run one task, timed."""
        if not len(body):
            return None
        fn, args, kwargs = self._load_task(body, buffers)
        return self._recorder.call(_ITEM, untimed(fn) or fn, args, kwargs)

    def on_batch(self, source: int, frame: Frame) -> None:
        """Run a batch; items of a job of tiny ones are timed together from then on."""
        recorder = self._recorder
        start = recorder.clock()
        recorder.depth += 1
        try:
            super().on_batch(source, frame)
        finally:
            recorder.depth -= 1
        end = recorder.clock()
        n = self._n_done
        recorder.add(_BATCH, "batch", start, end, n, 0, frame.a)
        job = self._jobs.get(frame.b)
        if job is None or job.fn is None or job.fn is call_task:
            return
        plain = untimed(job.fn)
        if plain is None:
            recorder.add_together(name_of(job.fn), start, min(end, start + int(self._seconds * 1e9)), n)
        elif n >= N_TINY and end - start < n * TINY_NS:
            self._jobs[frame.b] = job._replace(fn=plain)

    def _reply(self, number: int, n_done: int, option: int, times: tuple[float, float], *args: Any) -> None:
        self._n_done, self._seconds = n_done, times[0]
        super()._reply(number, n_done, option, times, *args)


class _Recording(Worker):
    """What workers have in common that record, whether their tasks run in task children or not.

    Calls and placed tasks run in the rank, so it records them; of what runs in a child it sees when that begins and
    ends.
    """

    _recorder: Recorder

    def _new_batches(self, clock: Callable[[], float], progress: Progress | None) -> BatchRunner:
        registry, run = self._surroundings.registry, self._run_user_code
        return _RecordedBatchRunner(
            self._recorder, self.transport, self.host, registry, run, self._complete_sends, clock, progress
        )

    def _run_work(self, read: Callable[..., wire.Work], *args: Any) -> Outcome:
        return self._run_user_code(self._read_and_call, read, args)

    def _read_and_call(self, read: Callable[..., wire.Work], source: Sequence[Any]) -> Any:
        fn, args, kwargs = read(*source)
        return self._recorder.call(Track.TASK, fn, args, kwargs, self.current_call or self.mailbox.number or 0)

    def on_trace(self, source: int, frame: Frame) -> None:
        """Tell the clock, or hand in what was recorded."""
        recorder = self._recorder
        body = pickle.dumps(recorder.recording()) if frame.option == TraceOption.SPANS else b""
        self.transport.send(source, Frame(Kind.TRACE, frame.a, recorder.clock(), frame.option, body))


class RecordedWorker(_Recording):
    """A worker that records its tasks, calls and batches, and hands in what it recorded."""

    def __init__(self, transport: Transport, surroundings: Surroundings, recorder: Recorder) -> None:
        self._recorder = recorder
        super().__init__(transport, surroundings)
        self.add_handler(Kind.TRACE, self.on_trace)


class RecordedIsolatedWorker(_Recording, IsolatedWorker):
    """The same, for tasks in task children: their batches are spans, the items in them are not."""

    def __init__(
        self,
        transport: Transport,
        surroundings: Surroundings,
        recorder: Recorder,
        nursery: Nursery,
        peers: Sequence[PeerInfo],
    ) -> None:
        self._recorder = recorder
        self._began = 0  # the first of what the child was given
        super().__init__(transport, surroundings, nursery, peers)
        self.add_handler(Kind.TRACE, self.on_trace)

    def on_work(self, source: int, frame: Frame) -> None:
        """Take in a task or a batch, and note when it begins."""
        if not self._given:
            self._began = self._recorder.clock()
        super().on_work(source, frame)

    def on_answer(self, frame: Frame) -> None:
        """Record what the child was doing until now."""
        end = self._recorder.clock()
        is_batch = frame.kind is Kind.BATCH_DONE
        track, name = (Track.BATCH, "batch") if is_batch else (Track.TASK, "task")
        self._recorder.add(track, name, self._began, end, frame.b if is_batch else 1, 0, frame.a)
        self._began = end


def new_recorded_worker(
    transport: Transport,
    surroundings: Surroundings,
    recorder: Recorder,
    nursery: Nursery | None,
    peers: Sequence[PeerInfo],
) -> Worker:
    """Return the worker of a rank, whose tasks run in children of `nursery` if there is one."""
    if nursery is None:
        return RecordedWorker(transport, surroundings, recorder)
    return RecordedIsolatedWorker(transport, surroundings, recorder, nursery, peers)


class _RecordedCaller(Caller):
    """Makes collective calls as spans."""

    recorder: Recorder

    def call(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        mode: OnError,
        *,
        values: bool = False,
    ) -> Any:
        """Call; on rank 0 the span includes sending."""
        recorder = self.recorder
        start = recorder.clock()
        recorder.depth += 1
        try:
            return super().call(fn, args, kwargs, mode, values=values)
        finally:
            recorder.depth -= 1
            if not recorder.depth:  # calls inside a call are part of it
                recorder.add(Track.TASK, name_of(fn, args), start, recorder.clock(), 1, 0, self.book.last)


class _Answer(NamedTuple):
    """A worker's answer to a question, and when it came."""

    source: int
    frame: Frame
    at: int


class RecordedController(Controller):
    """A controller that collects what all ranks recorded, and writes the file, before the workers leave.

    Parameters
    ----------
    recorder : Recorder
        Rank 0's own.
    path : str
        Of the file.
    """

    def __init__(
        self, transport: Transport, hosts: Mapping[int, str], surroundings: Surroundings, recorder: Recorder, path: str
    ) -> None:
        self._recorder = recorder
        self._path = path
        self._answer: _Answer | None = None
        self._n_questions = 0
        self._clocks: dict[int, list[Clock]] = {}
        self._written = False
        super().__init__(transport, hosts, surroundings)
        self.add_handler(Kind.TRACE, self.on_trace)

    def _new_caller(self, workers: Sequence[int]) -> Caller:
        caller = _RecordedCaller(self, workers, self._surroundings, self._drain_for_call)
        caller.recorder = self._recorder
        return caller

    def on_trace(self, source: int, frame: Frame) -> None:
        """Take in an answer."""
        self._answer = _Answer(source, frame, self._recorder.clock())

    def read_clocks(self) -> None:
        """Ask every worker for its clock; who does not answer in time is asked again at the end."""
        deadline = time.monotonic() + CLOCK_S
        for rank in list(self._workers):
            self._read_clock(rank, deadline)

    def _read_clock(self, rank: int, deadline: float) -> None:
        best: Clock | None = None
        for n_asked in range(MAX_QUESTIONS):
            if n_asked >= MIN_QUESTIONS and best is not None and best.error <= GOOD_NS:
                break
            sent = self._recorder.clock()
            answer = self._ask(rank, TraceOption.CLOCK, deadline)
            if answer is None:
                break
            clock = Clock.from_answer(sent, answer.frame.b, answer.at)
            best = clock if best is None or clock.error < best.error else best
        if best is not None:
            self._clocks.setdefault(rank, []).append(best)

    def _ask(self, rank: int, option: TraceOption, deadline: float) -> _Answer | None:
        self._n_questions += 1
        number = self._n_questions
        self.transport.send(rank, Frame(Kind.TRACE, number, 0, option))

        def is_here() -> bool:
            answer = self._answer
            return answer is not None and answer.source == rank and answer.frame.a == number

        self.serve_until(lambda: is_here() or rank in self.lost, deadline)
        return self._answer if is_here() else None

    def quit_workers(self, deadline: float) -> list[int]:
        """Write the trace, then tell every worker to leave."""
        if not self._written:
            self._written = True
            self.caller.settle(deadline)
            self._write(deadline)
        return super().quit_workers(deadline)

    def _write(self, deadline: float) -> None:
        """Collect what the workers recorded, one after the other, and write the file."""
        own, ended = self._recorder.recording(), self._recorder.clock()  # what follows is not part of the program
        absent = sorted(self.lost)
        try:
            with TraceFile(self._path, self.transport.size, ended) as file:
                file.add(own, [])
                clock_s = max(MIN_CLOCK_S, min(CLOCK_S, END_CLOCK_S / self.transport.size))
                for rank in list(self._workers):
                    recording = None
                    if rank not in self._byes:  # it is known to be gone
                        self._read_clock(rank, time.monotonic() + clock_s)
                        recording = self._collect(rank, deadline)
                    if recording is None:
                        absent.append(rank)
                    else:
                        file.add(recording, self._clocks.get(rank, []))
                file.finish(absent)
        except OSError as exc:
            logger.error("rank 0: the trace %s cannot be written: %s", self._path, exc)

    def _collect(self, rank: int, deadline: float) -> Recording | None:
        """Return what a worker recorded; None if it does not answer in time."""
        limit = time.monotonic() + (HAND_IN_S if deadline == math.inf else CLOCK_S)
        return _read_recording(rank, self._ask(rank, TraceOption.SPANS, limit))


def _read_recording(rank: int, answer: _Answer | None) -> Recording | None:
    if answer is None:
        return None
    recording = pickle.loads(answer.frame.body)
    if not isinstance(recording, Recording) or recording.rank != rank:
        raise ProtocolError(f"rank {rank} handed in something else than what it recorded")
    return recording
