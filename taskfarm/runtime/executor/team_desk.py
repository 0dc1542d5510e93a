"""Rank 0's side of placed tasks: those that need several workers, or particular ones.

The crew asks the desk before it deals. What starts is decided by the placer; the desk sends it to its ranks, gathers
how it ended on each, and sees to the team's communicator afterwards.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import count
from struct import Struct
from typing import TYPE_CHECKING, Protocol

import numpy as np

from taskfarm.errors import ProtocolError, RankFailure, UsageError, WorkerLostError
from taskfarm.runtime.executor.functions import KnownFunction
from taskfarm.runtime.executor.jobs import Supplied
from taskfarm.runtime.executor.losses import error_of_loss, note_retry
from taskfarm.runtime.options import LossCause, TeamForget, TeamReply
from taskfarm.runtime.runner import decode_failure
from taskfarm.scheduling.pacing import Loss
from taskfarm.scheduling.placing import Placement, Placer
from taskfarm.wire.codec import Packed
from taskfarm.wire.frames import Buffer, Frame, Kind

if TYPE_CHECKING:
    from taskfarm.runtime.controller import Controller
    from taskfarm.runtime.executor.dispatch import Dispatch

__all__ = ["TEAM_HEAD", "TEAM_REPORT", "PlacedTask", "TeamDesk"]

logger = logging.getLogger(__name__)

TEAM_HEAD = Struct("<qI")  # of TEAM_TASK: job, number of ranks; their numbers follow, 4 bytes each, then the work
TEAM_REPORT = Struct("<q")  # of TEAM_DONE: how far the rank has come (`Guard.n_steps`); what the part gave follows
MAX_TEAMS = 256  # communicators that are kept; libraries have some two thousand contexts


class PlacedTask(Protocol):
    """What the desk runs. All methods are called with the crew's lock held, and must not wait or run user code.

    Attributes
    ----------
    job : Supplied
        What workers must have before.
    packed : Packed
        The work.
    known : KnownFunction or None
        The function that it names.
    wants_all : bool
        Whether the results of all ranks are wanted.
    retries : int
        How often it is tried again if a worker that runs it is lost; as often again, if it raises.
    """

    job: Supplied
    packed: Packed
    known: KnownFunction | None
    wants_all: bool
    retries: int

    def on_start(self) -> bool:
        """Note that the task starts; False if it was cancelled."""

    def on_failed(self, failure: RankFailure | BaseException) -> None:
        """Note that it has failed; it may go on for a while on other ranks."""

    def is_repeated(self, failure: RankFailure) -> bool:
        """Tell whether a failure of it is one that is tried again."""

    def on_broken(self, failure: RankFailure) -> None:
        """Note that the initializer has failed."""

    def on_over(self, results: Sequence[tuple[Buffer, Sequence[Buffer]]]) -> None:
        """Note that it has ended on all ranks; `results` is empty if it failed."""


class _Wanted:
    """A task that has not ended: what it needs, and how often it was lost.

    Each attempt has a number of its own for the placer, since the ranks that are left of a lost one may be in it still.
    """

    __slots__ = ("allowed", "attempt", "losses", "n_raised", "n_workers", "number", "task")

    def __init__(self, number: int, task: PlacedTask, n_workers: int, allowed: frozenset[int] | None) -> None:
        self.number = number
        self.task = task
        self.n_workers = n_workers
        self.allowed = allowed
        self.attempt = 0
        self.losses: list[Loss] = []
        self.n_raised = 0


class _Run:
    """An attempt of a task that runs."""

    __slots__ = (
        "failed",
        "failed_at",
        "left",
        "lost",
        "n_steps",
        "n_unmatched",
        "number",
        "repeated",
        "results",
        "told",
        "uncounted",
        "wanted",
        "workers",
    )

    def __init__(self, number: int, wanted: _Wanted, workers: tuple[int, ...]) -> None:
        self.number = number
        self.wanted = wanted
        self.workers = workers
        self.left = set(workers)
        self.results: dict[int, tuple[Buffer, Sequence[Buffer]]] = {}
        self.failed = False
        self.failed_at = math.inf
        self.lost = False  # another attempt is made, or was the last; what is left of this one matters to nobody
        self.told = False
        self.repeated: RankFailure | None = None  # why another attempt is made when all ranks have left this one
        self.uncounted = False
        self.n_steps = 0
        self.n_unmatched = 0


class TeamDesk:
    """The placed tasks of one crew.

    Parameters
    ----------
    crew : Dispatch
        Whose lock is held in all methods.
    controller : Controller
        Knows hosts and tags of the workers.
    """

    def __init__(self, crew: Dispatch, controller: Controller) -> None:
        self._crew = crew
        self._transport = controller.transport
        self._tell_losses = controller.tell_losses
        self._caller = controller.caller
        self._registry = controller.registry
        self.hosts = {worker: controller.hosts[worker] for worker in crew.workers}
        self.tags = controller.tags
        self.placer = Placer(crew.dealer, self.hosts)
        self._numbers = count(1)
        self._attempts = count(1)
        self._run_numbers = count(1)
        self._team_numbers = count(1)
        self._wanted: dict[int, _Wanted] = {}  # by number of the task
        self._waiting: dict[int, _Wanted] = {}  # by number of the attempt
        self._runs: dict[int, _Run] = {}
        self._placed: dict[int, int] = {}  # run number to number of the attempt
        self._teams: OrderedDict[tuple[int, ...], int] = OrderedDict()  # least recently used first
        controller.add_handler(Kind.TEAM_DONE, self._on_done)

    # Events

    def add(self, task: PlacedTask, n_workers: int, allowed: frozenset[int] | None) -> int:
        """Take a task for `n_workers` of the workers `allowed`; return its number."""
        wanted = _Wanted(next(self._numbers), task, n_workers, allowed)
        self._queue(wanted)
        self._wanted[wanted.number] = wanted
        return wanted.number

    def _queue(self, wanted: _Wanted) -> None:
        attempt = next(self._attempts)
        self.placer.add(attempt, wanted.n_workers, wanted.allowed)
        wanted.attempt = attempt
        self._waiting[attempt] = wanted

    def drop(self, number: int) -> bool:
        """Forget a task that has not started; False if it has."""
        wanted = self._wanted.get(number)
        if wanted is None or self._waiting.pop(wanted.attempt, None) is None:
            return False
        del self._wanted[number]
        return self.placer.drop(wanted.attempt)

    def on_worker_lost(self, rank: int, how: str) -> None:
        """Take in that a worker is gone: what it ran is tried again, and what nobody can run now has failed."""
        del self.hosts[rank]
        for attempt in self.placer.on_worker_lost(rank):
            wanted = self._waiting[attempt]
            self.drop(wanted.number)
            text = f"no workers are left that could run the task, since rank {rank} {how}"
            self._fail(wanted.task, WorkerLostError(text, [rank]))
        running = {run.workers for run in self._runs.values()}
        for workers in [workers for workers in self._teams if rank in workers and workers not in running]:
            self._forget_team(workers, TeamForget.KEEP)
        for run in [run for run in self._runs.values() if rank in run.workers]:
            run.uncounted = run.failed = True
            run.failed_at = min(run.failed_at, self._crew.clock())
            run.left.discard(rank)
            for worker in run.left:
                self._tell_losses(worker)
            if not (run.lost or run.told):
                run.lost = True
                self._lose(run.wanted, Loss(rank, how))
            if not run.left:
                self._end(run)

    def _lose(self, wanted: _Wanted, loss: Loss) -> None:
        """Have a task wait again whose attempt was lost, unless it has used up its retries, or too few are left."""
        wanted.losses.append(loss)
        if len(wanted.losses) <= wanted.task.retries:
            try:
                self._queue(wanted)
            except UsageError:
                pass
            else:
                note_retry(loss.worker, loss.cause, 1)
                return
        del self._wanted[wanted.number]
        self._fail(wanted.task, error_of_loss(LossCause.DEATH, wanted.losses))

    def _fail(self, task: PlacedTask, error: BaseException) -> None:
        if task.on_start():
            task.on_failed(error)
            task.on_over([])

    def stuck_ranks(self, failed_before: float) -> list[int]:
        """Return the ranks that are still in tasks that failed before then, if nothing else is under way or waits."""
        runs = self._runs.values()
        if self._waiting or not all(run.failed_at < failed_before for run in runs):
            return []
        return sorted(rank for run in runs for rank in run.left)

    @property
    def is_busy(self) -> bool:
        """Whether any task runs or waits."""
        return bool(self._waiting or self._runs)

    @property
    def n_ahead(self) -> int:
        """Number of tasks that run or wait."""
        return len(self._waiting) + len(self._runs)

    def busy_workers(self) -> set[int]:
        """Return the workers that have a part in a task; from any thread."""
        return {worker for run in list(self._runs.values()) for worker in run.left}

    @property
    def is_used(self) -> bool:
        """Whether `place` has anything to do."""
        return bool(self._waiting or self._registry.dying_placed)

    # Moving

    def place(self, now: float) -> None:
        """Start what can start; to be called before anything is sent."""
        if not self._caller.book.is_settled:  # a task must not overtake a call, whose objects it may need
            self._caller.settle(math.inf)
        if not self.is_used:
            return
        if self._registry.dying_placed:
            self._forget_objects()
        cancelled = True
        while cancelled:  # and has made room
            cancelled = False
            for placement in self.placer.place(now):
                cancelled |= not self._start(placement, now)

    def _start(self, placement: Placement, now: float) -> bool:
        """Send a task to its ranks; False if it was cancelled."""
        attempt, workers = placement
        wanted = self._waiting.pop(attempt)
        task = wanted.task
        if not task.on_start():
            self.placer.on_ended(attempt, now)
            del self._wanted[wanted.number]
            return False
        run = _Run(next(self._run_numbers), wanted, workers)
        self._runs[run.number] = run
        self._placed[run.number] = attempt
        for worker in workers:
            needs = () if task.known is None else (task.known,)
            for frame in self._crew.supplies.missing(worker, task.job, needs):
                self._transport.send(worker, frame)
        head = TEAM_HEAD.pack(task.job.number, len(workers)) + np.array(workers, dtype="<i4").tobytes()
        frame = Frame(
            Kind.TEAM_TASK, run.number, self._team_of(workers), task.wants_all, head + task.packed.body,
            task.packed.buffers,
        )  # fmt: skip
        self._transport.send_to(workers, frame)
        return True

    def _team_of(self, workers: tuple[int, ...]) -> int:
        """Return the number of the team's communicator, which the workers make if they have none of that number."""
        if len(workers) == 1:
            return 0
        number = self._teams.pop(workers, None) or next(self._team_numbers)
        self._teams[workers] = number
        if len(self._teams) > MAX_TEAMS:
            running = {run.workers for run in self._runs.values()}
            for old in list(self._teams):
                if old not in running:
                    self._forget_team(old, TeamForget.FREE)
                    break
        return number

    def _forget_team(self, workers: tuple[int, ...], what: int, n_steps: int = 0, run: int = 0) -> None:
        number = self._teams.pop(workers, 0)
        frame = Frame(Kind.TEAM_FORGET, number, n_steps, what, TEAM_REPORT.pack(run))
        self._transport.send_to([worker for worker in workers if worker in self.hosts], frame)

    def _on_done(self, source: int, frame: Frame) -> None:
        run = self._runs.get(frame.a)
        if run is None or source not in run.left or len(frame.body) < TEAM_REPORT.size:
            raise ProtocolError(f"rank {source} ended its part in run {frame.a}, which it has none in")
        run.left.discard(source)
        run.n_steps = max(run.n_steps, TEAM_REPORT.unpack_from(frame.body)[0])
        run.n_unmatched += frame.b
        run.uncounted |= bool(frame.option & TeamReply.UNCOUNTED)
        body = memoryview(frame.body)[TEAM_REPORT.size :]
        how = frame.option & ~TeamReply.UNCOUNTED
        if how == TeamReply.VALUE:
            run.results[source] = body, frame.buffers
        elif how != TeamReply.ENDED and not (run.told or run.lost):
            run.told = True  # the first one; ranks that it has ended may have reported before
            run.failed_at = self._crew.clock()
            failure = decode_failure(body)
            if how == TeamReply.BROKEN:
                run.wanted.task.on_broken(failure)
            else:
                self._take_failure(run, failure)
        run.failed |= how != TeamReply.VALUE
        if not run.left:
            self._end(run)

    def _take_failure(self, run: _Run, failure: RankFailure) -> None:
        """Take in the first failure of a run: the task has failed, or is tried again when all ranks have left it."""
        wanted = run.wanted
        if wanted.n_raised < wanted.task.retries and wanted.task.is_repeated(failure):
            wanted.n_raised += 1
            run.repeated = failure
        else:
            wanted.task.on_failed(failure)

    def _repeat(self, wanted: _Wanted, failure: RankFailure) -> bool:
        """Have a task wait again that raised; False if too few workers are left."""
        try:
            self._queue(wanted)
        except UsageError:
            wanted.task.on_failed(failure)
            return False
        logger.warning(
            "attempt %d of a task of %d ranks raised and is repeated: %s",
            wanted.n_raised, wanted.n_workers, failure.headline(), extra={"event": "retry"},
        )  # fmt: skip
        return True

    def _end(self, run: _Run) -> None:
        del self._runs[run.number]
        if run.failed or run.n_unmatched:
            what = TeamForget.KEEP if run.uncounted else TeamForget.TIDY
            self._forget_team(run.workers, what, run.n_steps, run.number if run.failed else 0)
        self.placer.on_ended(self._placed.pop(run.number), self._crew.clock())
        if run.lost or (run.repeated is not None and self._repeat(run.wanted, run.repeated)):
            return
        task = run.wanted.task
        del self._wanted[run.wanted.number]
        self._crew.n_done += 1
        results = run.workers if task.wants_all else run.workers[:1]
        task.on_over([] if run.failed else [run.results[worker] for worker in results])

    def _forget_objects(self) -> None:
        for number, ranks in self._registry.take_dead_placed():
            alive = [rank for rank in ranks if rank in self.hosts]
            self._transport.send_to(alive, Frame(Kind.TEAM_FORGET, number, 0, TeamForget.OBJECT))
