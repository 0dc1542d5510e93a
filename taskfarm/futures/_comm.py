"""`MPICommExecutor`: an executor on one rank of a communicator, whose other ranks work for it, for the time of a block.

It has a transport, a controller and workers of its own, over duplicates of the communicator, and leaves the session
alone: any rank may be the root, and all go on with the program behind the block.
"""

from __future__ import annotations

import concurrent.futures as std
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from taskfarm.errors import UsageError
from taskfarm.futures._mpi4py import COMM_KEY, MPIPoolExecutor
from taskfarm.futures._nested import NestedExecutor
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.endpoint import Surroundings
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.crews import COMM_ROOT_KEY, Hall
from taskfarm.runtime.session import Session, current
from taskfarm.runtime.worker import Worker
from taskfarm.transport.base import Transport

__all__ = ["MPICommExecutor", "get_comm_workers"]

T = TypeVar("T")


_here = threading.local()  # .alone: whether this thread runs a task of an executor over a single rank


class _Alone(NestedExecutor):
    """Runs the tasks of an executor over a communicator of one rank."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> std.Future[T]:
        return super().submit(_run_alone, fn, args, kwargs)


def _run_alone(fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    before = getattr(_here, "alone", False)
    _here.alone = True
    try:
        return fn(*args, **kwargs)
    finally:
        _here.alone = before


class _CommExecutor(MPIPoolExecutor):
    """The executor of an `MPICommExecutor`: its workers are the other ranks of a communicator."""

    def __init__(self, hall: Hall | None, **kwargs: Any) -> None:
        self._given = hall
        super().__init__(**kwargs)

    def _part(self) -> None:
        """Do nothing: the ranks of the communicator have parted."""

    def _boot(self) -> None:
        if self._given is None:
            self._boot_threads(1, _Alone)
        else:
            super()._boot()

    def _make_comm(self) -> None:
        """Do nothing: the ranks have one already."""

    def _find_hall(self, session: Session, wanted: int | None) -> Hall:
        if self._given is None:
            raise UsageError("an executor without workers")
        return self._given


class MPICommExecutor:
    """Context manager: within the block, one rank of a communicator has an executor, and the others work for it.

    Parameters
    ----------
    comm : MPI.Intracomm, optional
        By default the world.
    root : int
        The rank that gets the executor; the others get None, when the block of `root` has ended.
    **kwargs
        For `MPIPoolExecutor`.

    Raises
    ------
    ValueError
        If `comm` is no intracommunicator, or `root` is no rank of it.
    """

    def __init__(self, comm: Any = None, root: int = 0, **kwargs: Any) -> None:
        from taskfarm.transport.split import check_comm  # starts MPI

        self._rank, self._size = check_comm(comm, root)
        self._comm = comm
        self._root = root
        self._options = kwargs
        self._executor: MPIPoolExecutor | None = None
        self._hall: Hall | None = None

    def __enter__(self) -> MPIPoolExecutor | None:
        if self._executor is not None:
            raise RuntimeError("__enter__")
        session = current()
        if session.controller is not None and session.size > 1:  # the other ranks serve already
            self._executor = MPIPoolExecutor(**self._options)
        elif self._size == 1:
            self._executor = _CommExecutor(None, **self._options)
        else:
            from taskfarm.transport.split import split_transport

            transport, workers = split_transport(self._comm, self._root, session.config)
            if self._rank:
                session.face_state[COMM_KEY] = workers
                _serve(session, transport)
                del session.face_state[COMM_KEY]
                workers.Free()
                return None
            self._hall = _hall_over(session, transport)
            session.face_state[COMM_ROOT_KEY] = self._hall
            self._executor = _CommExecutor(self._hall, **self._options)
        return self._executor

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        executor, self._executor = self._executor, None
        if executor is None:
            return True
        executor.shutdown(wait=True)
        if self._hall is not None:
            self._hall.close()
            self._hall = None
            del current().face_state[COMM_ROOT_KEY]
        return False


def _hall_over(session: Session, transport: Transport) -> Hall:
    ranks = range(1, transport.size)
    surroundings = Surroundings.without_calls(session.registry, session.config)
    controller = Controller(transport, dict.fromkeys(ranks, ""), surroundings)

    def send_away(deadline: float) -> None:
        controller.quit_workers(deadline)
        transport.close(deadline, lambda source, frame: None)

    hall = Hall(session, Crew(controller, ranks), send_away)
    hall.isolated = False  # its workers run tasks themselves, whatever those of the session do
    return hall


def _serve(session: Session, transport: Transport) -> None:
    surroundings = Surroundings.without_calls(session.registry, session.config)
    before, session.worker = session.worker, Worker(transport, surroundings)
    try:
        session.worker.run()
        transport.close(float("inf"), lambda source, frame: None)
    finally:
        session.worker = before


def get_comm_workers() -> Any:
    """Return, inside a task of an `MPIPoolExecutor` or `MPICommExecutor`, a communicator over the workers.

    Raises
    ------
    RuntimeError
        Outside of a task, and where the workers are not ranks of one MPI job.
    """
    if getattr(_here, "alone", False):
        from taskfarm.transport.split import own_comm

        return own_comm()
    session = current()
    comm = session.face_state.get(COMM_KEY)
    if session.worker is None or comm is None:
        raise RuntimeError("communicator is not accessible")
    return comm
