"""The session: this process's part in the farm, from the first look at the world to the end.

There is one session per process, made at the first use of a face, and all faces share it. It goes through the phases
of `PHASE_TABLE`: nothing has happened yet (IDLE), the ranks are meeting (OPENING), they work together (OPEN), the work
is over (CLOSED). On rank 0 an open session holds a `Controller`, elsewhere a `Worker`.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any

from taskfarm.config import Config
from taskfarm.errors import InternalError, UsageError, WorkerLostError
from taskfarm.runtime import ending, interrupts
from taskfarm.runtime.call_limits import CallLimits
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.endpoint import Endpoint, ReportFailure, Surroundings
from taskfarm.runtime.isolation.asking import isolate_if_possible
from taskfarm.runtime.launching.start import find_world, wait_for_ranks, warn_of_versions
from taskfarm.runtime.launching.surroundings import usable_cores
from taskfarm.runtime.one_thread import OneThread
from taskfarm.runtime.phases import PHASE_TABLE, Phase, PhaseEvent
from taskfarm.runtime.registry import Registry
from taskfarm.runtime.runner import flush_output, print_error
from taskfarm.runtime.sides import Side, new_side
from taskfarm.runtime.survival.lifeline import Lifeline
from taskfarm.runtime.survival.vitals import LOST_STATUS
from taskfarm.runtime.watcher import WatchClient, WatchServer, start_watch, whereabouts_of
from taskfarm.runtime.worker import Worker
from taskfarm.scheduling.machine import advance
from taskfarm.scheduling.stuck import Whereabouts
from taskfarm.transport.base import Transport
from taskfarm.transport.local import LocalHub
from taskfarm.wire.frames import Frame

if TYPE_CHECKING:
    from taskfarm.runtime.isolation.nursery import Nursery
    from taskfarm.transport.world import Opened, Opening, PeerInfo, World

__all__ = ["PHASE_TABLE", "STUCK_STATUS", "Phase", "PhaseEvent", "Session", "current", "enter"]

logger = logging.getLogger(__name__)

STUCK_STATUS = LOST_STATUS  # a rank was stuck in a failed collective call, and nobody can get it out
CLOSE_S = 30.0  # everybody has said good-bye: what is left is to agree that all has arrived

_session: Session | None = None  # the one mutable global of the library


def current(*, anew: bool = False) -> Session:
    """Return this process's session; the first call makes it, and so does `anew`, in a process that was forked."""
    global _session
    if _session is None or anew:
        _session = Session(Config.from_environment(os.environ))
    return _session


def enter(what: str) -> Session:
    """Return this process's session to `what`, which is about to move messages; see `Session.check_caller`."""
    session = _session
    if session is None or session.thread != get_ident():  # one comparison: this is done several times per task
        session = current()
        session.check_caller(what)
    return session


class Session(OneThread):
    """One process's part in the farm.

    Parameters
    ----------
    config : Config
        Options.

    Attributes
    ----------
    registry : Registry
        Managed objects of this rank.
    phase : Phase
        How far the session is.
    exit_status : int or None
        The status that the process is about to exit with, once that is known.
    failed_late : bool
        Whether a failure came to light when it could no longer be raised; it was printed, and the status must be 1.
    on_error : OnError
        Mode of failing collective calls.
    call_limits : CallLimits
        How long collective calls may take.
    loop_launched : bool
        Whether `taskfarm.objects` has launched its loop here.
    face_state : dict
        What a face keeps for this session, by the face's name.
    code_namespace : dict
        Where `taskfarm.objects.run_code` executes.
    lifeline : Lifeline or None
        To this rank's supervisor, if it has one.
    isolated, is_task_child : bool
        Whether tasks of this session run in task children, and whether this process is one.
    nursery : Nursery or None
        What forks those of this rank.
    controller, worker : Controller or None, Worker or None
        This rank's side, while and after the session is open.
    open_controller, open_endpoint : Controller or None, Endpoint or None
        The controller, and this rank's side, while the session is open: short ways for what is done often.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.registry = Registry()
        self.phase = Phase.IDLE
        self.pid = os.getpid()
        self.exit_status: int | None = None
        self.failed_late = False
        self.on_error = config.on_error
        self.call_limits = CallLimits()
        self.loop_launched = False
        self.face_state: dict[str, Any] = {}
        self.code_namespace: dict[str, Any] = {"__name__": "__taskfarm_run_code__", "__builtins__": __builtins__}
        self.controller: Controller | None = None
        self.open_controller: Controller | None = None
        self.open_endpoint: Endpoint | None = None
        self.worker: Worker | None = None
        self.isolated = self.is_task_child = False
        self.nursery: Nursery | None = None
        self.mpi_error: ImportError | RuntimeError | None = None
        self._world: World | None = None
        self._looked = False
        self._opening: Opening | None = None
        self._opened: Opened | None = None
        self._transport: Transport | None = None
        self._watch: WatchClient | WatchServer | None = None
        self._comm: Any = None
        self.lifeline = Lifeline.of_this_process()

    # The world

    @property
    def world(self) -> World | None:
        """The MPI world, which the first look at it starts; None where mpi4py or an MPI library is missing.

        Raises
        ------
        UsageError
            If the launcher belongs to another MPI than the library that mpi4py loads.
        """
        if not self._looked:
            self._world = self._start_world()
            self._looked = True
        return self._world

    def _start_world(self) -> World | None:
        if self.config.isolate and not self.isolated:
            isolate_if_possible(self)
        world, self.mpi_error = find_world(os.environ)
        if world is not None and world.size > 1:
            ending.install(self)
        return world

    @property
    def rank(self) -> int:
        """Rank of this process; 0 without MPI."""
        return self.world.rank if self.world is not None else 0

    @property
    def size(self) -> int:
        """Number of ranks; 1 without MPI."""
        return self.world.size if self.world is not None else 1

    @property
    def host(self) -> str:
        """Name of this rank's host."""
        return self.world.host if self.world is not None else socket.gethostname()

    @property
    def comm(self) -> Any:
        """The user's communicator over all ranks; None without MPI."""
        if self._comm is None and self.world is not None:
            self._comm = self.world.new_comm()
        return self._comm

    def _renew_comm(self) -> None:
        """Replace the user's communicator by a fresh duplicate, on all ranks together."""
        self._comm = self.comm.renew()

    def _count_comm_entries(self) -> int:
        return self.comm.tracker.n_entries if self._comm is not None else 0

    @property
    def peers(self) -> Sequence[PeerInfo]:
        """What the ranks told of themselves, by rank; empty in a session of one process."""
        opened = self._opened or self._world
        return getattr(opened, "peers", ())

    # Opening

    def open(self, timeout_s: float = math.inf, *, serves: bool = True) -> None:
        """Meet the other ranks, which do the same; returns when all are here.

        Parameters
        ----------
        timeout_s : float
            How long to wait for them.
        serves : bool
            False for a rank that is about to end and only lets the others go.

        Raises
        ------
        WorkerLostError
            On rank 0, if ranks are missing after `timeout_s`, or ended without entering their loop.
        UsageError
            If the session has ended.
        """
        self.check_caller("opening the session")
        if self.phase is Phase.OPEN:
            return
        self.thread = get_ident()
        if self.phase is Phase.CLOSED:
            raise UsageError("the session has ended (quit or finalize was called); start a new job")
        if self.size == 1:
            self._go_on(PhaseEvent.BEGAN)
            self._take(new_side(LocalHub(1).transports()[0], {}, self._surroundings(), self.config.trace))
            self._go_on(PhaseEvent.ALL_HERE)
            if self.config.trace:
                atexit.register(self.close)  # nobody else has to: there is nobody to wait for
            return
        self.begin()
        self._meet(timeout_s, serves)

    def begin(self) -> None:
        """Begin to meet the other ranks, without waiting for them; `open` goes on from there."""
        self.thread = get_ident()
        if self.phase is Phase.IDLE and self.size > 1:
            from taskfarm.transport.world import Opening

            self._opening = Opening(self.config)
            self._go_on(PhaseEvent.BEGAN)

    def _meet(self, timeout_s: float, serves: bool) -> None:
        opening = self._opening
        if opening is None:
            raise InternalError("the session is opening without an opening")
        wait_for_ranks(opening, self.rank, timeout_s)
        self._opened = opening.complete(usable_cores(), serves, self.lifeline is not None)
        hosts = {peer.rank: peer.host for peer in self.peers[1:]}
        trace = self.peers[0].trace if all(peer.serves for peer in self.peers) else ""
        side = self._take(
            new_side(self._opened.transport, hosts, self._surroundings(), trace, self.nursery, self.peers)
        )
        if self.config.watch:
            from taskfarm.runtime.live import watch  # not needed otherwise

            watch(self.config.watch, self.rank, self.controller, hosts, self._opened)
        if self.rank == 0:
            interrupts.defer_on_controller(side.transport)
            warn_of_versions(self.peers)
        if self.lifeline is not None:
            self.lifeline.join_session(side.endpoint, self._opened, self.config)
        self._go_on(PhaseEvent.ALL_HERE)
        absent = [peer.rank for peer in self.peers if not peer.serves and peer.rank > 0]
        if self.rank == 0 and serves and absent:
            raise WorkerLostError(f"ranks {absent} ended without entering their loop", absent)

    @property
    def is_damaged(self) -> bool:
        """Whether a rank has died, as far as this one knows: MPI cannot be finalized then."""
        return bool((known_by := self.worker or self.lifeline) and known_by.is_damaged)

    def become_child(self, world: Any, worker: Worker) -> None:
        """Be open at once, as the session of a task child, with what it knows of its rank."""
        self._world, self._looked = world, True
        self.thread = get_ident()
        self.isolated = self.is_task_child = True
        self.worker = worker
        self._go_on(PhaseEvent.BEGAN)
        self._go_on(PhaseEvent.ALL_HERE)

    def _take(self, side: Side) -> Side:
        self._transport, self.controller, self.worker = side
        return side

    def _go_on(self, event: PhaseEvent) -> None:
        self.phase = advance(PHASE_TABLE, self.phase, event, "the session")
        self.open_controller = self.controller if self.phase is Phase.OPEN else None
        self.open_endpoint = (self.controller or self.worker) if self.phase is Phase.OPEN else None

    def _surroundings(self) -> Surroundings:
        watch, limits = self._start_watch, self.call_limits
        return Surroundings(
            self.host, self.registry, self.config, self._renew_comm, self._count_comm_entries, watch, limits
        )

    # The watch channel

    def _start_watch(self) -> ReportFailure:
        if self._opened is None:
            return lambda call, text: None  # one process: nobody can be stuck
        book = self.controller.caller.book if self.controller is not None else None
        self._watch = start_watch(
            self._opened,
            self.rank,
            self.config,
            self._where,
            lambda: book.done_up_to if book else {},
            self.end_stuck_job,
            self.call_limits,
        )
        return self._watch.report_failure

    def _where(self) -> Whereabouts:
        """Say where this rank's main thread is; called from the watching thread, which must not touch MPI."""
        return whereabouts_of(self.controller or self.worker, self._comm)

    def end_stuck_job(self, text: str) -> None:
        """End the job because a call cannot end, or has not ended in time; any thread may do it."""
        print_error(f"taskfarm: {text}")
        self.abort(self.exit_status or STUCK_STATUS)

    # The end

    def serve(self) -> None:
        """Work for rank 0 until it ends the session; on ranks above 0, once the session is open."""
        if self.worker is None or self._transport is None:
            raise InternalError("serve() without a worker")
        self.worker.run()
        self.registry.clear()
        if not self.is_damaged:
            self._transport.close(math.inf, _drop)  # rank 0 has the deadline, and aborts for all
        self._go_on(PhaseEvent.ENDED)

    def close(self, limit_s: float = math.inf) -> None:
        """End the session on rank 0: let tasks end, send the workers away, agree that nothing is left.

        Parameters
        ----------
        limit_s : float
            How long running tasks and calls may take to end; tasks that wait for a message that nobody sends are
            ended. If workers do not leave in time, the job is aborted with `exit_status`, or 1.
        """
        controller, transport = self.controller, self._transport
        if controller is None or transport is None or self.phase is not Phase.OPEN:
            return
        if controller.current_call:
            raise UsageError(f"the session cannot end inside call {controller.current_call}")
        deadline = time.monotonic() + limit_s
        if isinstance(self._watch, WatchServer):
            self._watch.report_end(controller.caller.book.last)
        controller.drain_tasks(deadline, "the end of the session", at_end=True)
        stayed = controller.quit_workers(deadline)
        if stayed:
            self._give_up(f"ranks {stayed} are still at work and do not leave")
        if not self.is_damaged and not transport.close(time.monotonic() + CLOSE_S, controller.handle):
            self._give_up("the ranks could not agree on the end of the session")
        if isinstance(self._watch, WatchServer):
            self._watch.stop()
        self.registry.clear()
        self._go_on(PhaseEvent.ENDED)

    def _give_up(self, why: str) -> None:
        error = self.controller.caller.take_untold_failures() if self.controller is not None else None
        if error is not None:
            print_error(f"taskfarm: {error}")
        print_error(f"taskfarm: {why}; ending the job")
        self.abort(self.exit_status or 1)

    def finalize_mpi(self) -> None:
        """End MPI here; collective. In a damaged job it stays, until the process ends."""
        if self.world is not None and not self.is_damaged:
            self.world.finalize()

    def abort(self, status: int) -> None:
        """End all ranks at once with `status`."""
        flush_output()
        if self._world is not None:
            self._world.abort(status)
        os._exit(status)


def _drop(source: int, frame: Frame) -> None:
    """Ignore a frame that arrives after the end."""
