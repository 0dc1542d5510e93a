"""The supervisor: the parent of a rank, which the launcher takes for the rank itself.

Theory of operation. Every MPI launcher ends the whole job when a process that it started dies. So what it starts is a
*supervisor*, which forks before MPI exists; the child becomes the rank. The supervisor keeps the launcher's descriptors
open, passes signals on, and ends as the rank does. Only when the rank dies after the session has opened does it stay,
and tells the *hub*, rank 0's supervisor (`taskfarm.runtime.survival.hub`), which decides what becomes of the job.

Rank and supervisor share a page of numbers (`taskfarm.runtime.survival.vitals`) and a socket. What the rank says, a
line of JSON each: ``join`` once the session is open, and on rank 0 ``end`` when the script of a damaged job has ended.
If the supervisor dies, the kernel kills the rank.

This module is loaded before the user's program, so it imports little.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from taskfarm.runtime.lines import Lines
from taskfarm.runtime.survival.vitals import (
    LOOKS_PER_LIMIT,
    LOST_STATUS,
    SILENCE_OF_HOST,
    Mark,
    describe_end,
    end_like,
    look_at,
    map_page,
    new_page,
    remove_segments,
    segments_of,
)
from taskfarm.scheduling.survival import Pulse

__all__ = ["LIFELINE_VARIABLE", "Supervisor", "can_supervise", "fork_supervisor"]

LIFELINE_VARIABLE = "TASKFARM_LIFELINE"  # pid of the rank, and its descriptors: not for users
CONNECT_TIMEOUT_S = 5.0
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR2", "SIGCONT", "SIGTSTP", "SIGWINCH")


def can_supervise() -> bool:
    """Tell whether this system has what a supervisor needs."""
    return sys.platform.startswith("linux") and hasattr(os, "memfd_create")


def fork_supervisor(environ: Mapping[str, str]) -> None:
    """Fork. The parent becomes the supervisor and never returns; the child returns, and goes on as the rank."""
    import hmac  # noqa: F401 - for the hub, and for the rank's own channels: loaded once for both

    page = new_page()
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    gc.freeze()  # else collections in the rank write to every object that is here, and copy what both could share
    pid = os.fork()
    if pid:
        theirs.close()
        try:
            Supervisor(pid, ours, map_page(page), dict(environ)).run()
        finally:
            os._exit(70)  # EX_SOFTWARE; not reached
    ours.close()
    os.setpgid(0, 0)  # what the launcher sends to a process group comes once, from the supervisor
    _die_with(parent)
    os.environ[LIFELINE_VARIABLE] = f"{os.getpid()}:{theirs.detach()}:{page}"


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    import ctypes  # takes longer than the rest of this module, and numpy loads it anyway

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(LOST_STATUS)


class Supervisor:
    """The parent of one rank.

    Parameters
    ----------
    pid : int
        Process of the rank.
    sock : socket
        To the rank.
    page : memoryview
        Shared with the rank.
    environ : mapping
        Environment of the launcher.
    """

    def __init__(self, pid: int, sock: socket.socket, page: memoryview, environ: Mapping[str, str]) -> None:
        self.pid = pid
        self.page = page
        self.environ = environ
        self.rank = 0
        self.host = ""
        self.is_damaged = False  # a rank has died, and the job goes on
        self._sock = sock
        self._lines = Lines()
        self._selector = selectors.DefaultSelector()
        self._hub: Any = None  # on rank 0
        self._to_hub: socket.socket | None = None
        self._hub_lines = Lines()
        self._wait_status: int | None = None
        self._cause = ""  # why the rank was killed here
        self._segments: set[str] = set()
        self._pulse: Pulse | None = None
        self._look_at = math.inf  # when to look again
        self._end: tuple[int, float] | None = None  # status, and until when the rank may end by itself
        self._is_free = False  # the hub needs this supervisor no more
        self.watch(sock, self._on_rank)

    # The loop

    def run(self) -> NoReturn:
        """Serve until it is time to end this process."""
        self._catch_signals()
        while True:
            self.turn()

    def turn(self) -> None:
        """Wait for the next event, and react to it."""
        timeout = max(0.0, self._look_at - time.monotonic())
        if self._end is not None:
            timeout = min(timeout, 0.02)
        for key, _ in self._selector.select(None if timeout == math.inf else timeout):
            key.data()
        self._reap()
        now = time.monotonic()
        if now >= self._look_at:
            self._look(now)
        if self._end is not None and now >= self._end[1]:
            self.kill("")

    def watch(self, sock: socket.socket, on_readable: Callable[[], None]) -> None:
        """Have `on_readable` called when `sock` has something."""
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, on_readable)

    def unwatch(self, sock: socket.socket) -> None:
        """Close `sock`."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()

    def _catch_signals(self) -> None:
        reader, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)

        def drain() -> None:
            with contextlib.suppress(BlockingIOError):
                reader.recv(4096)

        self.watch(reader, drain)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # MPICH's launcher tells the living of a death by it
        for name in _PASSED_ON:
            signal.signal(getattr(signal, name), lambda number, frame: self._pass_on(number))

    def _pass_on(self, number: int) -> None:
        if self._wait_status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    # The rank

    def _on_rank(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._sock, 65536, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self.unwatch(self._sock)  # the rank has closed it, or is gone; its end comes as a signal
            return
        for line in self._lines.feed(data):
            message = json.loads(line)
            if "join" in message:
                self._join(message["join"], descriptors)
            elif "end" in message and self._hub is not None:
                self._hub.on_script_end(message["end"])

    def tell_rank(self, message: object) -> None:
        """Say something to the rank."""
        with contextlib.suppress(OSError):
            self._sock.send(json.dumps(message).encode() + b"\n")

    def _join(self, facts: Mapping[str, Any], descriptors: list[int]) -> None:
        """Take part in the supervision of an open session."""
        self.rank, self.host = facts["rank"], facts["hosts"][facts["rank"]]
        self._segments |= segments_of(self.pid)
        limit_s = facts["heartbeat_s"]
        self._pulse = Pulse(limit_s / LOOKS_PER_LIMIT, limit_s, facts["hang_s"] or math.inf)
        self._look_at = time.monotonic()
        if descriptors:
            from taskfarm.runtime.survival.hub import Hub  # only here, since one rank in many needs it

            listener = socket.socket(fileno=descriptors[0])
            self._hub = Hub(self, listener, facts["secret"], facts["hosts"], limit_s)
            return
        try:
            sock = socket.create_connection(tuple(facts["address"]), timeout=CONNECT_TIMEOUT_S)
            sock.sendall(f"{facts['secret']} {self.rank}\n".encode())
        except OSError as exc:
            self.say(f"rank {self.rank} cannot reach rank 0 at {facts['address']} ({exc}): its death will end the job")
            return
        # Words that are not taken, since rank 0's host is gone, end this rank as soon as rank 0 would give it up.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SILENCE_OF_HOST * limit_s))
        self._to_hub = sock
        self.watch(sock, self._on_hub)

    def _look(self, now: float) -> None:
        pulse = self._pulse
        if pulse is None:
            return
        if self._wait_status is None:
            self._segments |= segments_of(self.pid)
            wrong = pulse.on_look(look_at(self.pid, self.page[Mark.BEAT], now))
            if wrong:
                self.kill(wrong)
        self._look_at = pulse.next_look(now)
        self._tell_hub({"here": 1})
        if self._hub is not None:
            self._hub.on_look(now)

    def kill(self, cause: str) -> None:
        """Kill the rank, if it is alive, because of `cause`."""
        if self._wait_status is None:
            self._cause = self._cause or cause
            self.kill_quietly()
            self._on_end_of_rank()

    def kill_quietly(self) -> None:
        """Kill the rank, and do nothing about it."""
        self._segments |= segments_of(self.pid)
        os.kill(self.pid, signal.SIGKILL)
        self._wait_status = os.waitpid(self.pid, 0)[1]

    def _reap(self) -> None:
        if self._wait_status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._wait_status = status
                self._on_end_of_rank()

    def _on_end_of_rank(self) -> None:
        status = self._wait_status
        if status is None:
            return
        if self._end is not None:
            self._on_end_of_all()
        elif self._hub is not None:
            self._hub.on_end_of_rank_0(status, self._cause or describe_end(status))
        elif self._to_hub is None or (status == 0 and not self.is_damaged):
            self._tell_hub({"left": 1})
            end_like(status)
        else:
            how = self._cause or describe_end(status)
            page = self.page
            standing = [page[Mark.DONE_CALL], page[Mark.CURRENT_CALL], page[Mark.MEETING]]
            self._tell_hub({"died": [how, *standing]} if status else {"left": 1})

    # The hub, on ranks above 0

    def _tell_hub(self, message: object) -> None:
        if self._to_hub is not None:
            with contextlib.suppress(OSError):
                self._to_hub.send(json.dumps(message).encode() + b"\n")

    def _on_hub(self) -> None:
        sock = self._to_hub
        if sock is None:
            return
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        for line in self._hub_lines.feed(data):
            message = json.loads(line)
            if "damaged" in message:
                self.is_damaged = True
            elif "free" in message:
                self._is_free = True
            elif "end" in message:
                self.begin_end(*message["end"])
        if data:
            return
        self.unwatch(sock)
        self._to_hub = None
        if self._is_free:  # rank 0 has ended as it should, and this rank is about to
            return
        if self._end is None:
            self.say(f"rank {self.rank}: the connection to rank 0's host is gone; this rank ends")
            self.begin_end(LOST_STATUS, 0.0)
        if self._end is not None:
            self.kill("")
            os._exit(self._end[0])

    # The end of a damaged job

    def begin_end(self, status: int, grace_s: float) -> None:
        """See to it that the rank is gone in `grace_s` seconds; this process ends with `status` when the hub does."""
        if self._end is None:
            self._end = (status, time.monotonic() + grace_s)
            if self._wait_status is not None:
                self._on_end_of_all()

    def _on_end_of_all(self) -> None:
        self.clean()
        self._tell_hub({"gone": 1})

    def clean(self) -> None:
        """Remove what a rank that did not finalize has left."""
        remove_segments(self._segments)

    @property
    def is_rank_alive(self) -> bool:
        """Whether the rank runs."""
        return self._wait_status is None

    @staticmethod
    def say(text: str) -> None:
        """Print a line to the job's error stream."""
        with contextlib.suppress(OSError):
            os.write(2, f"taskfarm: {text}\n".encode())
