"""Ends: whatever way this process ends, all ranks end, with the right exit status.

A session over several ranks installs two hooks: one in `sys.excepthook`, which notes that the process ends by an
exception, and one in `atexit`, which then decides:

* rank 0, session open: running tasks and calls may end, workers are sent away; after an error they get only a few
  seconds;
* session never opened: an error aborts the job, since others may wait; otherwise the ranks meet now, so that workers
  which wait for a rank 0 that never needed them are let go;
* a worker outside its loop while the session is open: its process is ending under a task; the job is aborted.

`sys.exit(n)` is not visible from `atexit`; programs that taskfarm itself runs (``taskfarm run``, ``-m``) come through
`leave`, which knows n.

Imports inside functions keep a program that never opened a session from loading the session's modules just to end.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from taskfarm.errors import RemoteError
    from taskfarm.runtime.session import Session
    from taskfarm.transport.world import World

__all__ = ["has_begun", "install", "leave", "leave_if_threads_stay", "own_status", "report_late"]

logger = logging.getLogger(__name__)


def install(session: Session) -> None:
    """Take care of the end of this process; called once, when the world has several ranks."""
    before = sys.excepthook

    def note_exception(kind: type[BaseException], exc: BaseException, tb: TracebackType | None) -> None:
        if session.exit_status is None:
            session.exit_status = 130 if issubclass(kind, KeyboardInterrupt) else 1
        before(kind, exc, tb)

    sys.excepthook = note_exception
    atexit.register(_at_exit, session)


def own_status(status: int) -> int:
    """Return the exit status of this process, whose program ended with `status`: 0 for a worker that was sent away.

    It was told so by a `SystemExit`. A program that catches that, as test runners do, ends with a status that says
    nothing; but an exception that ends it counts.
    """
    session = _current_session()
    return 0 if session is not None and session.exit_status is None and _was_sent_away(session) else status


def has_begun() -> bool:
    """Tell whether this process has met the other ranks."""
    from taskfarm.runtime.session import Phase

    session = _current_session()
    return session is not None and session.phase is not Phase.IDLE


def _was_sent_away(session: Session) -> bool:
    from taskfarm.runtime.session import Phase

    return session.rank != 0 and session.worker is not None and session.phase is Phase.CLOSED


def _current_session() -> Session | None:
    return getattr(sys.modules.get("taskfarm.runtime.session"), "_session", None)


def leave(status: int) -> NoReturn:
    """Exit this process with `status`, which the hooks then know."""
    session = _current_session()
    if session is not None:
        session.exit_status = status
    elif status:
        _abort_foreign_world(status)
    sys.exit(status)


def _abort_foreign_world(status: int) -> None:
    """End a job that used mpi4py without taskfarm: other ranks may wait for this one, which failed."""
    if "mpi4py.MPI" in sys.modules:
        from taskfarm.runtime.runner import flush_output
        from taskfarm.transport.world import current_world

        flush_output()

        world = current_world()
        if world is not None and world.size > 1:
            world.abort(status)


def _at_exit(session: Session) -> None:
    from taskfarm.runtime.runner import flush_output, print_error

    if os.getpid() != session.pid:  # a forked child; the interpreter's own end would end its parent's MPI
        flush_output()
        os._exit(session.exit_status or 0)
    world = session.world
    if world is None or world.is_finalized():
        return
    if session.exit_status is None and hasattr(sys, "last_value") and not hasattr(sys, "ps1"):
        session.exit_status = 1  # an exception ends the program, and a hook of the program's own replaced ours
    flush_output()
    try:
        _end_session(session, world)
        status = session.exit_status or int(session.failed_late)
        if session.lifeline is not None and session.rank == 0:
            session.lifeline.on_leaving(status)
        if session.is_damaged:
            _leave_damaged(session, world, status)
    except Exception as exc:  # noqa: BLE001 - whatever goes wrong here, the other ranks must not be left waiting
        print_error(f"taskfarm: rank {session.rank} cannot end the session: {type(exc).__name__}: {exc}")
        session.abort(session.exit_status or 1)


def _leave_damaged(session: Session, world: World, status: int) -> NoReturn:
    """End a job in which a rank has died, whose status is `status`; on workers, end this process."""
    from taskfarm.runtime.runner import flush_output

    flush_output()
    if session.lifeline is not None and session.rank == 0:
        session.lifeline.end(status)
        world.abort(status)
    os._exit(status)


def _end_session(session: Session, world: World) -> None:
    from taskfarm.runtime.session import Phase

    status = session.exit_status or 0
    config = session.config
    if _was_sent_away(session) and not status:
        world.leave(0)  # whatever the program made of its SystemExit
    if session.phase is Phase.IDLE or session.phase is Phase.OPENING:
        if status and not (session.rank == 0 and session.phase is Phase.OPENING):
            session.abort(status)  # others may wait for this rank, and it does not know for what
        session.open(config.leave_s if status else math.inf, serves=False)
        if session.worker is not None:
            session.serve()
    if session.phase is Phase.OPEN:
        if session.controller is None:
            session.abort(status or 1)  # the process of a worker ends under its task
            return
        session.close(config.leave_s if status else math.inf)
        error = session.controller.caller.take_untold_failures()
        if error is not None:
            report_late(session, error)
    if session.failed_late and not status and not session.is_damaged:
        world.leave(1)  # the interpreter's own status can no longer be changed


def report_late(session: Session, error: RemoteError) -> bool:
    """Print `error` if the interpreter is shutting down, where raising it would go unnoticed; tell whether it is."""
    from taskfarm.runtime.runner import print_error

    if threading.main_thread().is_alive():
        return False
    session.failed_late = True
    print_error(f"taskfarm: a failure that was not seen before the end of the program\n{error}")
    return True


def leave_if_threads_stay(session: Session) -> None:
    """End this worker's process now if tasks left threads behind, for which the interpreter would wait for ever."""
    left = [thread.name for thread in threading.enumerate() if not thread.daemon]
    if len(left) > 1 and session.world is not None:
        from taskfarm.runtime.runner import flush_output

        logger.warning("rank %d: threads that tasks started are still alive: %s", session.rank, ", ".join(left[1:]))
        flush_output()
        session.world.leave(0)
