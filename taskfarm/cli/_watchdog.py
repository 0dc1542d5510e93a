"""Stay beside the launcher of a job with supervisors, and end it if the job has ended and it does not notice.

A launcher waits for its helpers on other hosts. If a host has vanished, without closing its connections, it waits for
ever: so the hub (`taskfarm.runtime.hub`) tells this process how the job stands, and after a while without a word the
hub's own host is lost.

Whatever this process ends is a child of its own. It makes itself the parent of all orphans among its descendants: when
a child is killed, what that has started becomes a child in turn. So nothing is left, also of helpers that have put
themselves into a session of their own, and nothing is hit that was not started from here. While the launcher lives it
is as if it were this process: it gets its signals, and its status counts. If this process is killed, so is that.
"""

from __future__ import annotations

import contextlib
import ctypes
import hmac
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskfarm.runtime.lines import Lines
from taskfarm.runtime.outpost import OUTPOST_VARIABLE, launcher_grace_s
from taskfarm.runtime.supervisor import end_like
from taskfarm.runtime.vitals import LOST_STATUS, SILENCE_OF_HOST

__all__ = ["Watch", "run_and_watch"]

LOOK_S = 0.25  # at what the hub says; the launcher's end and signals are noticed at once
STRANGER_S = 5.0  # for a connection to say who it is
MAX_STRANGERS = 64
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # of linux/prctl.h
_SI_KERNEL = 0x80  # of a signal from the terminal, which the launcher gets by itself
_PASSED_ON = {
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2
}  # fmt: skip
_BAD_PEER = (OSError, ValueError, KeyError, TypeError, RecursionError)


class Watch:
    """What is known of the job: from whom, and since when.

    Parameters
    ----------
    listener : socket
        Where the hub connects.
    secret : str
        What it begins with, or is dropped.
    """

    def __init__(self, listener: socket.socket, secret: str) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._secret = secret.encode()
        self._strangers: dict[socket.socket, tuple[Lines, float]] = {}
        self._hub: tuple[socket.socket, Lines] | None = None
        self._host = ""
        self._limit_s = 0.0
        self._heard_at = 0.0
        self._is_over = False  # the hub has said all that it has to say
        self.status = LOST_STATUS
        self.kill_at: float | None = None  # when the launcher is to be ended

    def look(self, now: float) -> str:
        """Take in what has come; return a line for the user, or an empty string."""
        with contextlib.suppress(BlockingIOError):
            while len(self._strangers) < MAX_STRANGERS:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                self._strangers[sock] = (Lines(), now)
        for sock, (lines, since) in list(self._strangers.items()):
            self._hear_stranger(sock, lines, since, now)
        if self._hub is not None:
            self._hear_hub(*self._hub, now)
        if self._hub is None or self._is_over or now - self._heard_at <= SILENCE_OF_HOST * self._limit_s:
            return ""
        self._is_over = True
        self.kill_at = now + launcher_grace_s(self._limit_s)
        return (
            f"host {self._host} with rank 0 is lost: not heard of for {SILENCE_OF_HOST * self._limit_s:g} s; "
            f"ending the job with status {LOST_STATUS}"
        )

    def _hear_stranger(self, sock: socket.socket, lines: Lines, since: float, now: float) -> None:
        try:
            found = lines.feed(_received(sock))
            if found:
                secret, limit_s, host = found[0].split(b" ", 2)
                if self._hub is not None or not hmac.compare_digest(secret, self._secret):
                    raise ValueError("a stranger")
                self._limit_s, self._host, self._heard_at = float(limit_s), host.decode(), now
                self._hub = (sock, lines)
                del self._strangers[sock]
                self._take(found[1:], now)
            elif now - since > STRANGER_S:
                raise ValueError("says nothing")
        except _BAD_PEER:
            self._strangers.pop(sock, None)
            sock.close()

    def _hear_hub(self, sock: socket.socket, lines: Lines, now: float) -> None:
        try:
            self._take(lines.feed(_received(sock)), now)
        except _BAD_PEER:  # it is gone: the launcher has seen that, unless it has lost the host
            sock.close()
            self._hub = None
            if not self._is_over:
                self._is_over = True
                self.kill_at = now + self._limit_s

    def _take(self, lines: Sequence[bytes], now: float) -> None:
        for line in lines:
            self._heard_at = now
            message = json.loads(line)
            if "end" in message:
                status, grace_s = message["end"]
                self._is_over = True
                self.status, self.kill_at = int(status), now + float(grace_s)
            elif "free" in message:
                self._is_over = True


def _received(sock: socket.socket) -> bytes:
    try:
        data = sock.recv(65536)
    except BlockingIOError:
        return b""
    if not data:
        raise OSError("closed")
    return data


def run_and_watch(command: Sequence[str], environ: Mapping[str, str], *, one_host: bool) -> int:
    """Run the launcher to its end, or to that of the job; does not return if a signal has ended it.

    Parameters
    ----------
    command : sequence of str
        The launcher.
    environ : mapping of str to str
        Its environment.
    one_host : bool
        Whether the job certainly stays here.

    Returns
    -------
    int
        The launcher's status, or the job's if it had to be ended.

    Raises
    ------
    OSError
        If it cannot be started.
    """
    secret = secrets.token_hex(16)
    listener = socket.create_server(("127.0.0.1" if one_host else "", 0), backlog=8)
    name = "127.0.0.1" if one_host else socket.gethostname()
    watch = Watch(listener, secret)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wanted = {*_PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    parent = os.getpid()

    def in_the_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if os.getppid() != parent:
            os._exit(LOST_STATUS)

    try:
        address = f"{name}:{listener.getsockname()[1]}:{secret}"
        launcher = subprocess.Popen(
            list(command), env={**environ, OUTPOST_VARIABLE: address}, preexec_fn=in_the_child, close_fds=False
        )
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    wait_status = _watch_until_end(launcher.pid, watch, wanted)
    if watch.kill_at is not None:
        _end_children()  # a launcher may end and leave what waits for a host that is gone
    if wait_status is None:
        return watch.status
    end_like(wait_status)


def _watch_until_end(launcher: int, watch: Watch, wanted: set[signal.Signals]) -> int | None:
    """Return the launcher's wait status; None if its time is over."""
    while True:
        wait_status = _reap(launcher)
        if wait_status is not None:
            watch.look(time.monotonic())
            return wait_status
        if text := watch.look(time.monotonic()):
            print(f"taskfarm: {text}", file=sys.stderr, flush=True)
        if watch.kill_at is not None and time.monotonic() >= watch.kill_at:
            return None
        info = signal.sigtimedwait(wanted, LOOK_S)
        if info is not None and info.si_signo in _PASSED_ON and info.si_code != _SI_KERNEL:
            os.kill(launcher, info.si_signo)  # not reaped yet, so the number is still its own


def _reap(launcher: int) -> int | None:
    """Take the status of children that have ended; return that of the launcher if it is among them."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid == launcher:
                return wait_status
            if not pid:
                break
    return None


def _end_children() -> None:
    """Kill all children, and those that become children by that, until there are none."""
    while pids := _children():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def _children() -> list[int]:
    """Return the processes whose parent is this one; their numbers stay theirs until they are waited for."""
    found = []
    own = str(os.getpid())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if (entry / "stat").read_text().rpartition(")")[2].split()[1] == own:
                    found.append(int(entry.name))
    return found
