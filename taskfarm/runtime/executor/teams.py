"""A worker's side of placed tasks: meet the other ranks, run, say how it ended, and leave nothing behind.

A rank that fails tells the others itself, which are perhaps waiting for it: a frame that their communicator's guard
looks for (`taskfarm.transport.guard`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from taskfarm.errors import ProtocolError, UsageError
from taskfarm.runtime.endpoint import CutOff
from taskfarm.runtime.executor.batches import BatchRunner
from taskfarm.runtime.executor.meeting import GROUP, Meetings
from taskfarm.runtime.executor.results import ReplyOption
from taskfarm.runtime.executor.team_desk import TEAM_HEAD, TEAM_REPORT
from taskfarm.runtime.options import TeamForget, TeamReply
from taskfarm.runtime.runner import Outcome, encode_failure, failure_of, flush_output, run
from taskfarm.transport.base import PeerFailed
from taskfarm.wire.codec import Packed, pack
from taskfarm.wire.frames import Buffer, Frame, Kind

if TYPE_CHECKING:
    from taskfarm.runtime.worker import Worker
    from taskfarm.transport.guard import Guard
    from taskfarm.transport.teams import Team

__all__ = ["Teams"]

LOOK_EVERY_S = 0.05  # for a failure of others, while the main thread waits for receives of its own
NO_MPI = (
    "without an MPI launcher the executor's workers are processes that share no communicator: "
    "start the program with `taskfarm run -n N`, mpiexec or srun"
)


class _Part:
    """The part of this rank in the task that runs."""

    def __init__(self, number: int, ranks: tuple[int, ...]) -> None:
        self.number = number
        self.ranks = ranks
        self.team: Team | None = None
        self.guard: Guard | None = None
        self.comm: Any = None


class Teams:
    """The teams of which this rank is one.

    Parameters
    ----------
    worker : Worker
        Whose tasks run in teams.
    batches : BatchRunner
        Knows functions and initializers.
    run_user_code : callable
        ``run_user_code(fn, *args)`` runs the user's code, as an `Outcome`.
    complete_sends : callable
        See `BatchRunner`.
    """

    def __init__(
        self,
        worker: Worker,
        batches: BatchRunner,
        run_user_code: Callable[..., Outcome],
        complete_sends: Callable[[float], None],
    ) -> None:
        self._worker = worker
        self._transport = worker.transport
        self._batches = batches
        self._run_user_code = run_user_code
        self._complete_sends = complete_sends
        self._teams: dict[int, Team] = {}
        self._part: _Part | None = None
        self._stopped: dict[int, str] = {}  # runs that others have left before they began here
        self._lost: dict[int, str] = {}  # ranks that died, and how
        self._groups: dict[tuple[int, ...], Team] = {}
        self._last_run = self._last_group = 0
        self._thread: threading.Thread | None = None
        self._wanted = threading.Event()
        self._meetings = Meetings(worker.transport)
        self.on_meet = self._meetings.on_frame
        self.new_team = self._new_team  # the simulator has no communicators

    # Frames

    def on_task(self, source: int, frame: Frame) -> None:
        """Run this rank's part of a task."""
        job, ranks, body = _read_head(frame.body)
        part = self._part = _Part(frame.a, ranks)
        self._last_run = frame.a
        self._worker.registry.start_run(frame.a, ranks)
        try:
            option, packed = self._run(part, frame, job, body)
        finally:
            self._worker.registry.end_run()
            self._part = None
        self._report(part, option, packed)
        flush_output()  # while the reply is on its way

    def on_stop(self, source: int, frame: Frame) -> None:
        """Note that another rank of a task has failed."""
        why = f"rank {source} of the task has failed: {bytes(frame.body).decode(errors='replace')}"
        part = self._part
        if part is not None and part.number == frame.a:
            if part.guard is not None:
                part.guard.failed = why
            else:
                self._stopped[frame.a] = why
        elif frame.a > (self._last_group if frame.a > GROUP else self._last_run):
            self._stopped[frame.a] = why

    def on_lost(self, rank: int, how: str) -> None:
        """Note that a rank died, for which no task may wait."""
        self._lost[rank] = how
        part = self._part
        if part is not None and rank in part.ranks and part.guard is not None:
            part.guard.failed = f"rank {rank} of the task {how}"

    def _check_complete(self, ranks: tuple[int, ...]) -> None:
        for rank in ranks:
            if rank in self._lost:
                raise PeerFailed(f"rank {rank} of the task {self._lost[rank]}")

    def on_forget(self, source: int, frame: Frame) -> None:
        """Drop a team's communicator, or an object."""
        if frame.option == TeamForget.OBJECT:
            self._worker.registry.discard([frame.a])
            return
        if len(frame.body) != TEAM_REPORT.size:
            raise ProtocolError(f"a TEAM_FORGET body has {len(frame.body)} bytes")
        run_number = TEAM_REPORT.unpack(frame.body)[0]
        if run_number:
            self._worker.registry.discard_run(run_number)
        team = self._teams.pop(frame.a, None)
        if team is None:
            return
        if frame.option == TeamForget.FREE:
            team.free()
        elif frame.option == TeamForget.TIDY:
            team.tidy(frame.b)
        else:
            team.keep_for_ever()

    # The communicator

    def comm(self) -> Any:
        """Return the communicator of the task that runs."""
        part = self._part
        if part is not None and part.comm is not None:
            return part.comm
        if getattr(self._transport, "parent", None) is None:
            raise UsageError(f"task_comm: {NO_MPI}")
        from taskfarm.transport.teams import alone

        if 0 not in self._teams:
            self._teams[0] = alone()
        guard, comm = self._teams[0].begin(self._look)
        if part is not None:
            part.guard, part.comm = guard, comm
        return comm

    def _open(self, part: _Part, number: int) -> None:
        """Meet the others; they do the same, whatever has happened to them."""
        self._check_complete(part.ranks)
        team = self._teams.get(number)
        if team is None:
            team = self._teams[number] = self.new_team(part)
        part.team = team
        part.guard, part.comm = team.begin(self._look)
        part.guard.on_receive = self._watch

    def _new_team(self, part: _Part) -> Team:
        """Make a communicator with the others, once all are there."""
        from taskfarm.transport.teams import open_team

        def serve_once() -> None:
            self._check_complete(part.ranks)
            self._worker.serve_at_once()

        with self._meetings.of(part.number, part.ranks, self._worker.marks, serve_once):
            return open_team(self._transport.parent, part.ranks)  # type: ignore[attr-defined]

    def _look(self) -> None:
        item = self._transport.receive_nowait()
        if item is not None:
            self._worker.handle(*item)
        self._worker.check_waiting()

    # Running

    def _run(self, part: _Part, frame: Frame, job: int, body: Buffer) -> tuple[int, Packed]:
        failure = self._batches.failure_of_job(job)
        opened = run(self._open, (part, frame.b)) if frame.b else Outcome()
        stopped = self._stopped.pop(part.number, "")
        if part.guard is not None and stopped:
            part.guard.failed = stopped
        if failure is not None and failure.reply == ReplyOption.BROKEN:
            self._tell(part, "the initializer failed")
            return TeamReply.BROKEN, Packed(failure.failure, ())
        outcome = opened
        if outcome.exception is None:
            outcome = self._run_user_code(self._call, part, body, frame.buffers)
        wanted = frame.option or self._transport.rank == part.ranks[0]
        packed = run(pack, (outcome.value if wanted else None,)) if outcome.exception is None else outcome
        if part.guard is not None:
            part.guard.end()
        if packed.exception is None:
            return TeamReply.VALUE, packed.value
        if isinstance(packed.exception, PeerFailed):
            return TeamReply.ENDED, Packed(b"", ())
        told = failure_of(packed.exception, self._transport.rank, self._worker.host)
        self._tell(part, told.headline())
        return TeamReply.FAILED, Packed(encode_failure(told), ())

    def _call(self, part: _Part, body: Buffer, buffers: Sequence[Buffer]) -> Any:
        if part.guard is not None:
            part.guard.check()
        return self._batches.call_task(body, buffers)

    def _tell(self, part: _Part, why: str) -> None:
        """Let the others know that this rank has failed."""
        others = [rank for rank in part.ranks if rank != self._transport.rank]
        if others:
            self._transport.send_to(others, Frame(Kind.TEAM_STOP, part.number, body=why.encode(errors="replace")))

    def _report(self, part: _Part, option: int, packed: Packed) -> None:
        guard = part.guard
        n_steps = n_unmatched = 0
        if guard is not None and part.team is not None:
            n_steps, n_unmatched = guard.n_steps, guard.n_unmatched
            option |= 0 if guard.is_countable else TeamReply.UNCOUNTED
        body = TEAM_REPORT.pack(n_steps) + packed.body
        frame = Frame(Kind.TEAM_DONE, part.number, n_unmatched, option, body, packed.buffers)
        self._transport.send(0, frame, borrowed=True)
        if packed.buffers:  # the next task may change the arrays
            self._complete_sends(math.inf)

    def run_group(self, number: int, ranks: tuple[int, ...], body: Buffer, buffers: Sequence[Buffer]) -> Any:
        """Run this rank's part of a group of tasks, the first of which has this number."""
        if self._part is not None:
            raise UsageError("a group of tasks inside a task")
        part = self._part = _Part(GROUP | number, ranks)
        self._last_group = part.number
        try:
            self._check_complete(ranks)
            team = self._groups.pop(ranks, None) or self._new_team(part)
            part.team = team
            part.guard, part.comm = team.begin(self._look)
            part.guard.failed = self._stopped.pop(part.number, "")
            try:
                value = self._call(part, body, buffers)
                left = part.comm.allreduce((part.guard.n_unmatched, not part.guard.is_countable), op=_add_pairs)
            finally:
                part.guard.end()
        except BaseException as exc:
            if part.team is not None:
                part.team.keep_for_ever()
            if not isinstance(exc, PeerFailed):
                self._tell(part, failure_of(exc, self._transport.rank, self._worker.host).headline())
            raise
        finally:
            self._part = None
        if left == (0, 0):
            self._groups[ranks] = team
        else:
            team.keep_for_ever()
        return value

    # A second thread, for failures of others while the main thread waits in MPI for receives of its own

    def _watch(self) -> None:
        self._wanted.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_looking, name="taskfarm team watch", daemon=True)
            self._thread.start()

    def _keep_looking(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            part = self._part
            while part is not None and part is self._part and part.guard is not None and part.guard.is_waited_for:
                time.sleep(LOOK_EVERY_S)
                try:
                    part.guard.look_for_other_thread()
                except CutOff as exc:
                    part.guard.failed = str(exc)


def _read_head(body: Buffer) -> tuple[int, tuple[int, ...], Buffer]:
    """Return job, ranks and work of a TEAM_TASK."""
    if len(body) < TEAM_HEAD.size:
        raise ProtocolError(f"a TEAM_TASK body has {len(body)} bytes")
    job, n_ranks = TEAM_HEAD.unpack_from(body)
    end = TEAM_HEAD.size + 4 * n_ranks
    if len(body) < end or not n_ranks:
        raise ProtocolError(f"a TEAM_TASK body of {len(body)} bytes announces {n_ranks} ranks")
    ranks = tuple(np.frombuffer(body, dtype="<i4", count=n_ranks, offset=TEAM_HEAD.size).tolist())
    return job, ranks, memoryview(body)[end:]


def _add_pairs(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]
