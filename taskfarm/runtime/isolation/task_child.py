"""The program of a task child: a worker that has no MPI, and whose frames its rank passes on.

See `taskfarm.runtime.isolation.nursery` for where it comes from, and `taskfarm.runtime.isolation.isolated_worker` for
the rank's side.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import math
import os
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from taskfarm.errors import UsageError, WorkerLostError
from taskfarm.runtime.arrays import ArrayExchange
from taskfarm.runtime.endpoint import Surroundings
from taskfarm.runtime.isolation.page import Identity, Page
from taskfarm.runtime.registry import Registry
from taskfarm.runtime.runner import flush_output
from taskfarm.runtime.session import current
from taskfarm.runtime.worker import Worker
from taskfarm.transport import forbid_mpi
from taskfarm.transport.relay import ChildTransport

__all__ = ["ChildWorld", "main"]

_WHY = "it runs in a process of its own, without MPI (isolate=True)"


class Peer(NamedTuple):
    """What a task child knows of another rank."""

    host: str
    pid: int
    memory_key: str


class ChildWorld:
    """What a task child knows of the MPI world that its rank is in."""

    def __init__(self, identity: Identity) -> None:
        self.rank = identity.rank
        self.size = identity.size
        self.host = identity.host
        self.peers = [Peer(*peer) for peer in identity.peers]

    def new_comm(self) -> Any:
        """Refuse: there is no MPI here."""
        raise UsageError(f"comm in a task of rank {self.rank}: {_WHY}; use objects.call, which runs in the rank")

    def is_finalized(self) -> bool:
        """Tell that MPI does not run here."""
        return True

    def finalize(self) -> None:
        """Do nothing: MPI does not run here."""

    def allows_threads(self) -> bool:
        """Tell that threads are no matter."""
        return True

    def leave(self, status: int) -> NoReturn:
        """End this process."""
        self.abort(status)

    def abort(self, status: int) -> NoReturn:
        """End this process; its rank tells the others."""
        flush_output()
        os._exit(status)


class _ChildRegistry(Registry):
    """There are no managed objects here."""

    def get(self, obj_id: int) -> Any:
        raise UsageError(f"the managed object {int(obj_id)} in a task: {_WHY}, and managed objects live in the rank")


class _NoArrays(ArrayExchange):
    """Arrays do not go from memory to memory here."""

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(f"{what} in a task: {_WHY}; use sendMessage and receiveMessage")

    def send(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse("sendArray")

    def receive(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse("receiveArray")


class _TaskWorker(Worker):
    """The worker loop of a task child."""

    def __init__(self, transport: ChildTransport, surroundings: Surroundings, page: Page, debug: int) -> None:
        super().__init__(transport, surroundings, progress=page)
        self.arrays = _NoArrays(self)
        self.debug = debug


def main(sock: socket.socket, page: Page) -> None:
    """Run what the rank at the other end of `sock` sends until it says good-bye, or is gone."""
    identity = page.content()
    assert isinstance(identity, Identity)
    _adopt(identity)
    if not faulthandler.is_enabled():
        with contextlib.suppress(Exception):  # standard error may be an object of the user's, or closed
            faulthandler.enable(sys.__stderr__ or 2)
    transport = ChildTransport(identity.rank, identity.size, sock)
    session = current(anew=True)
    registry = _ChildRegistry()
    session.registry = registry
    surroundings = Surroundings.without_calls(registry, session.config)
    worker = _TaskWorker(transport, surroundings, page, identity.debug)
    if session.config.log or session.config.forward_logs:
        from taskfarm.runtime import logs

        logs.configure(session.config, transport, identity.host, worker)
    session.become_child(ChildWorld(identity), worker)
    try:
        worker.run()
        transport.flush(math.inf)
    except WorkerLostError:
        os._exit(1)  # the rank is gone
    _leave(threading.enumerate())


def _adopt(identity: Identity) -> None:
    """Have what a program sees of its process as it is in the rank."""
    os.environ.clear()
    os.environ.update(identity.environment)
    sys.path[:] = identity.path
    sys.argv[:] = identity.argv
    with contextlib.suppress(OSError):
        os.chdir(identity.directory)
    forbid_mpi()


def _leave(threads: Sequence[threading.Thread]) -> NoReturn:
    """Run what tasks have left for the end of their process, then end it, whatever threads they left."""
    run_exit_functions = getattr(atexit, "_run_exitfuncs")  # noqa: B009 - private, but the one way to do it
    with contextlib.suppress(Exception):
        run_exit_functions()
    flush_output()
    os._exit(0)
