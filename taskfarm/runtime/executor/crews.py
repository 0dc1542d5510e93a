"""Where a process finds its workers: the ranks of its MPI job, or processes that it starts itself.

A session has at most one crew, which all executors share. It is made by the first of them and ends with the session,
or with the process.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from taskfarm.errors import UsageError, WorkerLostError
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.ending import leave_if_threads_stay
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.pump import Pump
from taskfarm.runtime.executor.relay_crew import RelayCrew
from taskfarm.runtime.launching.surroundings import expected_world_size
from taskfarm.runtime.runner import flush_output, print_error
from taskfarm.runtime.session import STUCK_STATUS, Phase, Session, current
from taskfarm.scheduling.grouping import form_groups, group_size

__all__ = [
    "COMM_ROOT_KEY",
    "Hall",
    "catch_up",
    "current_crew",
    "hall_of",
    "in_comm_executor",
    "is_mpi_job",
    "part_ranks",
]

logger = logging.getLogger(__name__)

_FACE = "crew"
LOOK_FOR_STUCK_S = 0.5  # while nothing but the end of what is under way is waited for
COMM_ROOT_KEY = "comm executor"  # in `Session.face_state` of the root of an executor over a communicator


class Hall:
    """A session's crew, with what drives it and what ends it.

    Parameters
    ----------
    session : Session
        Whose crew it is.
    crew : Crew
        The workers.
    stop_workers : callable, optional
        Ends workers that only the executors use: called with a deadline when the last executor has gone.

    Attributes
    ----------
    crew : Crew
        The workers.
    pump : Pump
        Its background thread.
    isolated : bool
        Whether its workers run tasks in task children.
    closing : bool
        Whether the process is ending: nothing new is taken.
    """

    def __init__(self, session: Session, crew: Crew, stop_workers: Callable[[float], None] | None = None) -> None:
        self._session = session
        self._stop_workers = stop_workers
        self._n_users = 0
        self.crew = crew
        self.isolated = session.isolated
        crew.controller.crew = crew
        self.pump = Pump(crew)
        self.closing = False
        self._last_words: list[Callable[[float], None]] = []
        atexit.register(self.close)

    def before_the_end(self, words: Callable[[float], None]) -> Callable[[], None]:
        """Have `words` called with a deadline before the workers are sent away; return how to take that back."""
        self._last_words.append(words)

        def take_back() -> None:
            if words in self._last_words:
                self._last_words.remove(words)

        return take_back

    def enter(self) -> None:
        """Note one more executor."""
        self._n_users += 1
        if self._stop_workers is None:
            self._session.share(self.drain)

    def leave(self) -> None:
        """Note that an executor has been shut down and waited for."""
        self._n_users -= 1
        if self._n_users:
            return
        if self._stop_workers is None:
            self.drain()  # maps that were dropped may still be on their way back
            self._session.share(None)
        else:
            self.close()
            atexit.unregister(self.close)

    def suits(self, wanted: int | None) -> bool:
        """Tell whether one more executor, of `wanted` workers, can use this crew."""
        if self._stop_workers is None:
            return True
        if self._session.isolated and not self.isolated:
            return False
        too_few = wanted is not None and wanted > len(self.crew.workers)
        return not (self.closing or self.crew.broken is not None or too_few)

    def drain(self) -> None:
        """Return when nothing is under way: another face is about to talk to the workers."""
        crew = self.crew
        catch_up(crew, math.inf)
        while not (crew.is_at_rest() or crew.closed):
            crew.wait(crew.is_at_rest, time.monotonic() + LOOK_FOR_STUCK_S)
            self._end_if_stuck()

    def _end_if_stuck(self) -> None:
        """End the job if nothing is left but ranks that wait inside MPI for one that has failed."""
        limit_s = self._session.config.stuck_s
        stuck = self.crew.desk.stuck_ranks(time.monotonic() - limit_s)
        if stuck:
            print_error(
                f"taskfarm: a task of several ranks failed {limit_s:g} s ago, and ranks {stuck} are still in it; "
                "they may wait inside MPI for the rank that failed, by other ways than task_comm(); ending the job"
            )
            self._session.abort(self._session.exit_status or STUCK_STATUS)

    def close(self) -> None:
        """Finish what was begun (after an error: what ends within the time for that), and let the workers go."""
        if self.closing or os.getpid() != self._session.pid:
            return
        self.closing = True
        failed = bool(self._session.exit_status) or (hasattr(sys, "last_value") and not hasattr(sys, "ps1"))
        deadline = time.monotonic() + self._session.config.leave_s if failed else math.inf
        for words in list(self._last_words):
            words(deadline)
        if self._stop_workers is None and deadline == math.inf:
            self.drain()
        self.pump.stop()
        self.crew.close()
        if self._stop_workers is not None:
            self._stop_workers(deadline)


def catch_up(crew: Crew, deadline: float) -> None:
    """Return when all that this thread has posted was done: another one may have taken it over, and be busy."""
    done = threading.Event()
    crew.post(done.set)
    crew.wait(done.is_set, deadline)


def hall_of(session: Session, wanted: int | None) -> Hall:
    """Return the session's crew; the first call finds or starts the workers.

    Parameters
    ----------
    wanted : int or None
        How many workers to start where they must be started, None for one per usable core.
    """
    hall: Hall | None = session.face_state.get(_FACE)
    if hall is not None and not hall.suits(wanted):
        hall = None
    if hall is None:
        hall = _hall_of_ranks(session) if is_mpi_job() else _hall_of_processes(session, wanted)
        session.face_state[_FACE] = hall
    return hall


def part_ranks() -> None:
    """Return on rank 0, and where this process is the only one; serve on all other ranks, and never return there."""
    if not is_mpi_job():
        return
    session = current()
    if session.rank == 0 or (session.worker is not None and session.phase is not Phase.CLOSED):
        return  # rank 0, or within a task
    _serve(session)


def is_mpi_job() -> bool:
    """Tell whether this process is one of several ranks, without starting MPI."""
    size = expected_world_size(os.environ)
    if size is not None:
        return size > 1
    return "mpi4py.MPI" in sys.modules and current().size > 1


def in_comm_executor(session: Session) -> bool:
    """Tell whether this rank has an executor over a communicator, whose workers are the ranks of that one."""
    return COMM_ROOT_KEY in session.face_state


def current_crew(session: Session) -> Crew | None:
    """Return the crew that this process has, without making one."""
    hall: Hall | None = session.face_state.get(_FACE)
    return None if hall is None or hall.closing else hall.crew


def _serve(session: Session) -> NoReturn:
    if session.phase is Phase.CLOSED:
        flush_output()
        if session.world is not None:
            session.world.leave(0)  # something swallowed the SystemExit of a worker that was told to exit
    session.open()
    session.serve()
    leave_if_threads_stay(session)
    raise SystemExit(0)


def _hall_of_ranks(session: Session) -> Hall:
    if session.phase is not Phase.OPEN:
        session.open(session.config.open_s)
    controller = session.controller
    if controller is None or session.world is None:
        raise UsageError("an executor is made on rank 0")
    if not session.world.allows_threads():
        raise UsageError(
            "the MPI library was started with a thread level below MPI_THREAD_SERIALIZED, and an executor has a "
            "thread of its own: let taskfarm start MPI, or leave mpi4py.rc.threads and mpi4py.rc.thread_level alone"
        )
    controller.tags = {peer.rank: peer.tags for peer in session.peers[1:]}
    alive = [rank for rank in range(1, session.size) if rank not in controller.lost]
    if not alive:
        raise WorkerLostError("an executor needs a worker, and all of them have died", tuple(controller.lost))
    crew = _crew_of(alive, session, controller)
    hall = Hall(session, crew)
    controller.before_end = hall.close
    logger.info("rank 0: the executor's workers are %d MPI ranks", len(crew.workers))
    return hall


def _crew_of(workers: Sequence[int], session: Session, controller: Controller) -> Crew:
    """Return a crew of the ranks `workers`, in groups if they are many or the user wants it."""
    size = group_size(len(workers), session.config.group_size)
    hindrance = "with isolated tasks" if session.isolated else ""
    if session.lifeline is not None:
        hindrance = "in a job that survives deaths"
    if size and hindrance:  # who feeds a group could not tell rank 0 of lost attempts
        if session.config.group_size:
            raise UsageError(
                f"TASKFARM_GROUP_SIZE={size}: there are no groups of workers {hindrance}; set TASKFARM_GROUP_SIZE=0"
            )
        text = "rank 0: %d workers, and there are no groups of workers %s; rank 0 feeds all of them itself"
        logger.warning(text, len(workers), hindrance)
        size = 0
    groups = form_groups({rank: controller.hosts[rank] for rank in workers}, size) if size else {}
    if not groups:
        return Crew(controller, workers)
    logger.info("rank 0: %d groups of workers, each with a controller of its own", len(groups))
    return RelayCrew(controller, groups)


def _hall_of_processes(session: Session, wanted: int | None) -> Hall:
    from taskfarm.runtime.executor.processes import LocalProcesses  # not needed under a launcher

    session.isolated = session.isolated or session.config.isolate
    processes = LocalProcesses(session, wanted)
    crew = Crew(processes.controller, processes.ranks)
    text = "no MPI launcher: the executor's workers are %d processes on this host; `taskfarm run` would use MPI"
    logger.info(text, len(crew.workers))
    return Hall(session, crew, processes.stop)
