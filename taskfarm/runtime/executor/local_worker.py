"""The program of a worker process that a process of the same host started (`taskfarm.runtime.executor.processes`)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Sequence

from taskfarm.errors import InternalError, WorkerLostError
from taskfarm.runtime.endpoint import Surroundings
from taskfarm.runtime.isolation import task_child
from taskfarm.runtime.isolation.nursery import Nursery
from taskfarm.runtime.runner import flush_output
from taskfarm.runtime.session import current
from taskfarm.runtime.sides import new_side
from taskfarm.transport.stream import StreamTransport, adopt_socket

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(words: Sequence[str]) -> None:
    """Serve the process at the other end of a socket until it says good-bye, or is gone.

    Parameters
    ----------
    words : sequence of str
        Number of the socket's descriptor, rank, number of processes, 1 if the process ends with its parent, and 1 if
        its tasks run in task children, and 1 if it is recorded for a trace.
    """
    descriptor, rank, size, dies_with_parent, isolated, traced = map(int, words)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    sys.argv[:] = [""]
    if dies_with_parent:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    session = current()
    if isolated:
        session.isolated, session.nursery = True, Nursery(task_child.main)
    transport = StreamTransport(rank, size, {0: adopt_socket(descriptor)})
    surroundings = Surroundings.without_calls(session.registry, session.config)
    trace = "recorded" if traced else ""
    session.worker = worker = new_side(transport, {}, surroundings, trace, session.nursery).worker
    if worker is None:
        raise InternalError(f"process {rank} is no worker")
    status = 0
    try:
        worker.run()
        transport.complete_sends(float("inf"), lambda source, frame: None)
    except WorkerLostError:
        status = 1
    flush_output()
    if status or any(not thread.daemon for thread in threading.enumerate()[1:]):
        os._exit(status)  # the parent is gone, or threads that tasks left behind would keep this process
