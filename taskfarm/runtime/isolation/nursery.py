"""Task children: processes that run the tasks of one rank, forked by a process in which MPI never started.

Theory of operation. A process that has started MPI must not fork another one to run the user's code. So, before MPI
starts, the rank forks a *fork server*, which does nothing but fork *task children* on demand, wait for them, and tell
the rank how they ended. All talk goes over one socket (``SOCK_SEQPACKET``, whole messages)::

    rank -> server   fork child n, with its socket and its page     server -> rank   child n ended with wait status s
                     send a signal to child n

Who dies with whom: the server ends when the rank's end of the socket is closed, or when the kernel tells it that its
parent has died; it kills all children then. A child is killed by the kernel when the server dies. The server leads a
session of its own, so that a launcher which kills the rank's process group leaves it the moment to do that; each child
leads a process group, so that what a task started dies with a child that is killed; what has left the group becomes
the server's own child then, which kills it.
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass

from taskfarm.errors import UsageError, WorkerLostError
from taskfarm.runtime.isolation.fork_server import ENDED, FORK, SIGNAL, ChildMain, Server, run_to_the_end
from taskfarm.runtime.isolation.page import Page
from taskfarm.runtime.runner import flush_output
from taskfarm.transport.shared import can_share

__all__ = ["Child", "ForkServerLostError", "Nursery", "check_possible", "describe_status"]

_MAX_MESSAGE_BYTES = 64


class ForkServerLostError(WorkerLostError):
    """Raised where the fork server is gone, without which a rank can run nothing any more."""


@dataclass(frozen=True)
class Child:
    """A task child, as its rank sees it.

    Attributes
    ----------
    number : int
        By which the fork server knows it.
    sock : socket
        To it.
    page : Page
        What it is at.
    """

    number: int
    sock: socket.socket
    page: Page


class Nursery:
    """The rank's side of the fork server, which starts with this object.

    Parameters
    ----------
    child_main : callable
        Program of a task child, given its socket and its page.

    Raises
    ------
    UsageError
        If MPI has started in this process, other threads run, or the system cannot do it.
    """

    def __init__(self, child_main: ChildMain) -> None:
        check_possible()
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._n_children = 0
        flush_output()  # or the server would have it, too
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._sock.close()
            run_to_the_end(lambda: Server(theirs, child_main).run(parent))
        theirs.close()
        self._sock.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor on which news of children arrive."""
        return self._sock.fileno()

    def new_child(self, content: object) -> Child:
        """Start a child that is told `content`; returns at once."""
        self._n_children += 1
        page, descriptor = Page.create(content)
        ours, theirs = socket.socketpair()
        try:
            rights = array.array("i", [theirs.fileno(), descriptor])
            message = FORK.pack(b"F", self._n_children)
            self._send(message, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        finally:
            theirs.close()
            os.close(descriptor)
        return Child(self._n_children, ours, page)

    def send_signal(self, child: int, number: int) -> None:
        """Send a signal to a child and all that it started; harmless if it has ended."""
        self._send(SIGNAL.pack(b"S", child, number), [])

    def _send(self, message: bytes, rights: list[tuple[int, int, array.array[int]]]) -> None:
        self._sock.setblocking(True)  # the server is quick, and its socket has room for hundreds
        try:
            self._sock.sendmsg([message], rights)
        except OSError as exc:
            raise ForkServerLostError(f"the fork server of this rank's task children is gone ({exc})") from exc
        finally:
            self._sock.setblocking(False)

    def next_ended(self) -> tuple[int, int] | None:
        """Return the next child that has ended and its wait status, None if there is none.

        Raises
        ------
        ForkServerLostError
            If the fork server itself is gone.
        """
        try:
            message = self._sock.recv(_MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            message = b""
        if not message:
            raise ForkServerLostError("the fork server of this rank's task children is gone")
        number, status = ENDED.unpack(message)
        return number, status

    def close(self) -> None:
        """End the server, which kills the children that are left."""
        self._sock.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def check_possible() -> None:
    """Raise `UsageError` if this process cannot fork task children."""
    cure = "run the program by `taskfarm run --isolate`, or set TASKFARM_ISOLATE=1 and use `python -m taskfarm.futures`"
    if not can_share() or not hasattr(socket, "SOCK_SEQPACKET"):
        raise UsageError("isolate: tasks in processes of their own need Linux")
    if "mpi4py.MPI" in sys.modules:
        raise UsageError(
            "isolate: mpi4py.MPI has been imported already, and a process that has started MPI cannot fork task "
            f"children: {cure}, or ask for isolation before anything imports mpi4py.MPI"
        )
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
        raise UsageError(
            f"isolate: other threads run in this process ({names}), so it cannot fork task children: {cure}"
        )


def describe_status(status: int) -> str:
    """Return how a process ended, by its wait status, for messages."""
    if not os.WIFSIGNALED(status):
        return f"it exited with status {os.waitstatus_to_exitcode(status)} in the middle of a task"
    number = os.WTERMSIG(status)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    hint = {
        "SIGKILL": " (as the kernel does when memory runs out)",
        "SIGSEGV": " (segmentation fault)",
        "SIGABRT": " (abort)",
        "SIGBUS": " (bus error)",
        "SIGFPE": " (arithmetic error in C code)",
        "SIGILL": " (illegal instruction)",
    }.get(name, "")
    return f"it was killed by {name}{hint}"
