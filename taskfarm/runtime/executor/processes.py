"""Workers without MPI: processes on this host, which this process starts and talks to over sockets.

The same frames, the same worker loop and the same controller as on MPI; only the transport differs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from taskfarm.errors import InternalError
from taskfarm.runtime import interrupts
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.endpoint import Surroundings
from taskfarm.runtime.launching.blas import thread_variables
from taskfarm.runtime.launching.surroundings import usable_cores
from taskfarm.runtime.session import Session
from taskfarm.runtime.sides import new_side
from taskfarm.transport.stream import StreamTransport

__all__ = ["LocalProcesses"]

KILL_S = 2.0  # between asking a process to end and killing it
# The worker finds modules where this process does, whatever changed its path; __main__ travels by value.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from taskfarm.runtime.executor.local_worker import main; main(sys.argv[2:])"
)
# A process that a launcher did not start must not take itself for a rank that it did.
_OF_A_LAUNCHER = ("PMI_", "PMIX_", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "MPI_LOCALRANKID", "HYDI_")


class LocalProcesses:
    """Worker processes on this host.

    Parameters
    ----------
    session : Session
        This process's session, of one rank.
    wanted : int or None
        How many; by default one per usable core.

    Attributes
    ----------
    controller : Controller
        Talks to them.
    ranks : list of int
        Their numbers, from 1 on.
    """

    def __init__(self, session: Session, wanted: int | None) -> None:
        n = wanted or usable_cores()
        self.ranks = list(range(1, n + 1))
        ours: dict[int, socket.socket] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        with _interrupts_blocked():
            for rank in self.ranks:
                ours[rank], theirs = socket.socketpair()
                self._children.append(_start(rank, n + 1, theirs, session.isolated, bool(session.config.trace)))
                theirs.close()
        surroundings = Surroundings.without_calls(session.registry, session.config)
        config = session.config
        hosts = dict.fromkeys(self.ranks, surroundings.host)
        self._transport, controller, _ = new_side(StreamTransport(0, n + 1, ours), hosts, surroundings, config.trace)
        if controller is None:
            raise InternalError("rank 0 without a controller")
        self.controller: Controller = controller
        self.controller.tags = {rank: config.tags | config.rank_tags.get(rank, frozenset()) for rank in self.ranks}
        self.controller.may_lose = True
        interrupts.defer_on_controller(self._transport)

    def stop(self, deadline: float) -> None:
        """Send the processes away, and end those that have not left at `deadline`."""
        self.controller.quit_workers(deadline)
        limit = time.monotonic() + KILL_S if deadline < math.inf else math.inf
        self._transport.close(min(limit, deadline), lambda source, frame: None)
        for child in self._children:
            _end(child, limit)


def _start(rank: int, size: int, theirs: socket.socket, isolated: bool, traced: bool) -> subprocess.Popen[bytes]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_LAUNCHER)}
    environ |= thread_variables(size - 1, usable_cores(), environ)
    dies_with_us = threading.current_thread() is threading.main_thread()
    numbers = [theirs.fileno(), rank, size, dies_with_us, isolated, traced]
    words = [json.dumps(sys.path), *(str(int(number)) for number in numbers)]
    return subprocess.Popen(
        [sys.executable, *_interpreter_flags(), "-c", _PROGRAM, *words],
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        env=environ,
    )


def _interpreter_flags() -> list[str]:
    """Return the interpreter options that a worker must share: those that change what code does."""
    flags = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    flags += [f"-W{option}" for option in sys.warnoptions]
    return flags + ["-X" + (name if value is True else f"{name}={value}") for name, value in sys._xoptions.items()]


def _end(child: subprocess.Popen[bytes], limit: float) -> None:
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            child.send_signal(number)
        try:
            child.wait(None if limit == math.inf else max(0.0, limit - time.monotonic()) + 0.01)
            return
        except subprocess.TimeoutExpired:
            limit = time.monotonic() + KILL_S


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Within the block, keep interrupts waiting; children start with them blocked, and are deaf until they are up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
