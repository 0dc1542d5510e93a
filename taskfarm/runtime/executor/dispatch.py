"""What rank 0 sends to the executor's workers, and what it makes of their answers.

What is decided (how many items, for whom) is the dealer's business; what items and results mean is the job's. Placed
tasks are the desk's. Everything here happens with the crew's lock held (`taskfarm.runtime.executor.crew`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from taskfarm.errors import ProtocolError, WorkerLostError
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.executor.batches import read_report
from taskfarm.runtime.executor.functions import FunctionBook
from taskfarm.runtime.executor.jobs import Job, Parcel, Supplies
from taskfarm.runtime.executor.limits import pack_limits
from taskfarm.runtime.executor.losses import lose_worker, take_loss
from taskfarm.runtime.executor.results import ReplyOption, Results
from taskfarm.runtime.executor.team_desk import TeamDesk
from taskfarm.runtime.options import BatchOption
from taskfarm.runtime.runner import decode_failure, run
from taskfarm.scheduling.dealing import Batch, Dealer
from taskfarm.wire.frames import Frame, Kind

__all__ = ["Clock", "Dispatch"]

Clock = Callable[[], float]

# Hot path: see `taskfarm.fast`.
_APART, _LATE, _LONG, _FRESH = ReplyOption.APART, ReplyOption.LATE, int(BatchOption.LONG), int(BatchOption.FRESH)


class Dispatch:
    """The jobs, and what is under way of them; see `taskfarm.runtime.executor.crew.Crew` for the parameters."""

    has_groups = False  # controllers of their own between rank 0 and the workers

    def __init__(self, controller: Controller, workers: Sequence[int], clock: Clock) -> None:
        self.controller = controller
        self.clock = clock
        self.transport = controller.transport
        self.workers = tuple(workers)
        self.dealer = Dealer(workers)
        self.broken: BaseException | None = None
        self.closed = False
        self.n_done = 0  # items that were run, and placed tasks
        self._jobs: dict[int, Job] = {}
        self.job_numbers = self._jobs.keys()
        self.supplies = Supplies(workers)
        self._numbers = count(1)
        self.functions = FunctionBook(self.new_number)
        self.desk = TeamDesk(self, controller)
        controller.add_handler(Kind.BATCH_DONE, self._on_batch_done)

    def new_number(self) -> int:
        """Return a number for a job or an initializer that was never used; from any thread."""
        return next(self._numbers)

    def add_job(self, job: Job, n_workers: int, unit: int = 1) -> None:
        """Take a new job; its items come by `add_items`."""
        self._jobs[job.number] = job
        self.dealer.on_job(job.number, n_workers, unit, job.retries)
        if self.broken is not None:  # after the executor has looked
            job.on_broken(self.broken)

    def add_items(self, job: Job, n: int) -> bool:
        """Note that `n` more items of `job` are available; False if they will not be run, as the job has ended."""
        if self.closed or job.number not in self._jobs:
            return False
        self.dealer.on_items(job.number, n)
        return True

    def end_job(self, job: Job) -> None:
        """Forget a job of which nothing is waited for any more; what is flying comes back unheard."""
        if self._jobs.pop(job.number, None) is None:
            return
        self.dealer.drop_job(job.number)
        self.forget(job.number)

    def forget(self, number: int) -> None:
        """Let the workers drop the function of a job, or the outcome of an initializer."""
        for worker in self.supplies.forget(number):
            if not self.closed:
                self.transport.send(worker, Frame(Kind.FORGET, number))

    def lose_worker(self, rank: int, how: str) -> None:
        """Go on without a worker: what it had is dealt to others."""
        self.supplies.lose(rank)
        lose_worker(self.dealer, self._jobs, rank, how)
        self.desk.on_worker_lost(rank, how)
        if not self.dealer.lanes.workers:
            self.broken = WorkerLostError("no worker is left", self.workers)
            for job in list(self._jobs.values()):
                job.on_broken(WorkerLostError("no worker is left", self.workers))

    @property
    def busy_workers(self) -> set[int]:
        """Workers that have something to do; from any thread."""
        return {batch.worker for batch in list(self.dealer.flying.values())} | self.desk.busy_workers()

    @property
    def n_in_hand(self) -> int:
        """Number of items that workers have; from any thread."""
        return sum(batch.stop - batch.start for batch in list(self.dealer.flying.values()))

    def send_batches(self) -> None:
        """Send what should be under way now."""
        now = self.clock()
        self.desk.place(now)
        for batch in self.dealer.deal(now):
            job = self._jobs[batch.job]
            packed = run(job.pack, (batch.start, batch.stop))
            if packed.exception is not None:
                self.dealer.on_unsent(batch.number)
                job.on_returned(batch.start, batch.stop)
                if batch.stop - batch.start == 1:
                    job.on_item_failed(batch.start, batch.stop, packed.exception)
            elif packed.value is None:
                self.dealer.on_void(batch.number)
            else:
                self.dealer.on_packed(batch.number, packed.value.size_bytes)
                self._send(batch, job, packed.value)

    def _send(self, batch: Batch, job: Job, parcel: Parcel) -> None:
        worker, send = batch.worker, self.transport.send
        for missing in self.supplies.missing(worker, job, parcel.needs):
            send(worker, missing)
        if parcel.limits:
            send(worker, Frame(Kind.LIMIT, batch.number, 0, 0, pack_limits(parcel.limits)))
        option = parcel.option | batch.is_long * _LONG | batch.is_fresh * _FRESH
        frame = Frame(Kind.BATCH, batch.number, job.number, option, parcel.body, parcel.buffers)
        (self.transport.send_or_copy if parcel.borrows else send)(worker, frame)

    def _on_batch_done(self, source: int, frame: Frame) -> None:
        report = read_report(frame.body)
        batch = self.dealer.flying.get(frame.a)
        if batch is None or batch.worker != source:
            raise ProtocolError(f"batch {frame.a} is not under way at rank {source}")
        job = self._jobs.get(batch.job)
        n_items = batch.stop - batch.start
        late, form = frame.option & _LATE, frame.option & ~_LATE
        if form <= _APART:
            self.n_done += frame.b
            results = Results(frame.b, report.body, frame.buffers, form)
            self.dealer.on_done(batch.number, frame.b, report.seconds, report.gap_s, results.size_bytes, bool(late))
            self.desk.placer.on_plain_work(report.seconds)
            if job is not None:
                job.on_results(batch.start, results)
            return
        if frame.option == ReplyOption.LOST:
            take_loss(self.dealer, batch, job, report.body)
            return
        failure = decode_failure(report.body)
        if frame.option == ReplyOption.UNREADABLE and n_items > 1:
            self.dealer.on_unsent(batch.number)
            if job is not None:
                job.on_returned(batch.start, batch.stop)
            return
        self.dealer.on_void(batch.number)
        if job is not None and frame.option == ReplyOption.UNREADABLE:
            job.on_item_failed(batch.start, batch.stop, failure)
        elif job is not None:
            job.on_broken(failure)
