"""The process that forks task children, and what each of them does first; see `taskfarm.runtime.isolation.nursery`."""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from struct import Struct
from types import FrameType
from typing import NoReturn

from taskfarm.runtime.isolation.page import Page
from taskfarm.runtime.runner import flush_output

__all__ = ["ENDED", "FORK", "SIGNAL", "ChildMain", "Server", "dies_with_parent", "run_to_the_end"]

FORK = Struct("<cQ")  # b"F" and the child's number, with two descriptors: its socket and its page
SIGNAL = Struct("<cQi")  # b"S", the child's number, the signal
ENDED = Struct("<Qi")  # the child's number, its wait status
_MAX_MESSAGE_BYTES = 64
_DESCRIPTORS_BYTES = socket.CMSG_SPACE(2 * array.array("i").itemsize)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
ORPHANS_S = 1.0  # for what the last child has left behind to end
OOM_SCORE_ADJ = b"300"  # of 1000: where memory runs out, the kernel should rather end a child than the rank
LAUNCHER_DESCRIPTOR = "PMI_FD"  # MPICH, Intel: the launcher takes its end for the rank's

ChildMain = Callable[[socket.socket, Page], None]


class Server:
    """The program of the fork server.

    Parameters
    ----------
    sock : socket
        To the rank.
    child_main : callable
        The program of a child, given its socket and its page.
    """

    def __init__(self, sock: socket.socket, child_main: ChildMain) -> None:
        self._sock = sock
        self._child_main = child_main
        self._numbers: dict[int, int] = {}  # by process number
        self._orphans: set[int] = set()  # that were killed and have not ended
        self._ending = False

    def run(self, parent: int) -> None:
        """Serve until the rank, process `parent`, is gone."""
        os.setsid()
        _let_go_of_the_launcher()
        _read_nothing()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # whatever a task starts cannot get away from here
        news, bell = socket.socketpair()
        for end in (news, bell):
            end.setblocking(False)
        signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, _do_nothing)
        signal.signal(signal.SIGTERM, self._on_term)
        dies_with_parent(signal.SIGTERM, parent)
        gc.collect()
        gc.freeze()  # what is there will be shared by all children, unless the collector touches it
        try:
            self._serve(news)
        finally:
            self._kill_all()

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self._ending = True

    def _serve(self, news: socket.socket) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(news, select.POLLIN)
        while not self._ending:
            poll.poll()
            with contextlib.suppress(BlockingIOError):
                news.recv(256)
            self._reap()
            try:
                message, rights, _, _ = self._sock.recvmsg(_MAX_MESSAGE_BYTES, _DESCRIPTORS_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError:  # the rank has died, and had not read everything
                return
            if not message:
                return
            if message[:1] == b"F":
                self._fork(FORK.unpack(message)[1], rights[0][2])
            else:
                _, number, which = SIGNAL.unpack(message)
                for pid, other in self._numbers.items():
                    if other == number:
                        _signal_group(pid, which)

    def _fork(self, number: int, rights: bytes) -> None:
        descriptors = array.array("i")
        descriptors.frombytes(rights)
        sock, page = descriptors
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as exc:  # no memory, no process numbers: to the rank this is a child that died at once
            print(f"taskfarm: cannot fork a task child: {exc}", file=sys.stderr)
            self._tell(number, os.EX_OSERR << 8)
            pid = -1
        if pid == 0:
            run_to_the_end(lambda: _become_child(parent, sock, page, self))
        if pid > 0:
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)
            self._numbers[pid] = number
        os.close(sock)
        os.close(page)

    def close_in_child(self) -> ChildMain:
        """Let go, in a child, of what is the server's; return the child's program."""
        signal.set_wakeup_fd(-1)
        self._sock.close()
        return self._child_main

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            number = self._numbers.pop(pid, None)
            if number is not None:
                if status:
                    _signal_group(pid, signal.SIGKILL)  # what the task has left behind
                    self._kill_orphans()
                self._tell(number, status)
            elif pid in self._orphans:
                self._orphans.discard(pid)
                self._kill_orphans()  # those that it leaves

    def _kill_orphans(self) -> None:
        """Kill what has left the process group of a child that is gone; it is this process's child now."""
        with contextlib.suppress(OSError), open("/proc/thread-self/children") as file:
            for word in file.read().split():
                pid = int(word)
                if pid not in self._numbers and pid not in self._orphans:
                    self._orphans.add(pid)
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)

    def _tell(self, number: int, status: int) -> None:
        with contextlib.suppress(OSError):  # the rank is gone
            self._sock.send(ENDED.pack(number, status))

    def _kill_all(self) -> None:
        if not self._numbers:
            return
        for pid in self._numbers:
            _signal_group(pid, signal.SIGKILL)
        for pid in tuple(self._numbers):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            del self._numbers[pid]
        deadline = time.monotonic() + ORPHANS_S
        self._kill_orphans()
        while self._orphans and time.monotonic() < deadline:
            self._reap()
            time.sleep(1e-3)


def _become_child(parent: int, sock: int, page: int, server: Server) -> None:
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    dies_with_parent(signal.SIGKILL, parent)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker loop installs its own
    child_main = server.close_in_child()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as file:
        file.write(OOM_SCORE_ADJ)
    atexit._clear()  # they belong to the rank's program
    paper = Page(page, os.fstat(page).st_size)
    os.close(page)
    child_main(socket.socket(fileno=sock), paper)


def run_to_the_end(program: Callable[[], None]) -> NoReturn:
    """Run the program of a forked process, which must not return into what its parent was doing."""
    status = 1
    try:
        program()
        status = 0
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else 1
    except BaseException:  # noqa: BLE001 - the bottom of this process's stack
        traceback.print_exc()
    finally:
        flush_output()
        os._exit(status)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, number)


def dies_with_parent(number: int, parent: int) -> None:
    """Have the kernel send signal `number` to this process when the thread that started it has ended."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it was faster
        os._exit(1)


def _let_go_of_the_launcher() -> None:
    text = os.environ.get(LAUNCHER_DESCRIPTOR, "")
    if text.isdigit():
        with contextlib.suppress(OSError):
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, int(text))  # not closed: the number must not be used for something else
            os.close(nothing)


def _read_nothing() -> None:
    """Have the standard input of tasks be empty: that of the rank may be a terminal, or a pipe that never ends."""
    with contextlib.suppress(OSError):
        nothing = os.open(os.devnull, os.O_RDONLY)
        if nothing:
            os.dup2(nothing, 0)
            os.close(nothing)


def _do_nothing(number: int, frame: FrameType | None) -> None: ...
