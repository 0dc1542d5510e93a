"""Stay beside the launcher of a job with supervisors, and end it if the job has ended and it does not notice.

A launcher waits for its helpers on other hosts. If a host has vanished, without closing its connections, it waits for
ever: so the hub (`taskfarm.runtime.survival.hub`) tells this process how the job stands, and after a while without a
word the hub's own host is lost.

Whatever this process ends is a child of its own. It makes itself the parent of all orphans among its descendants: when
a child is killed, what that has started becomes a child in turn. So nothing is left, also of helpers that have put
themselves into a session of their own, and nothing is hit that was not started from here. While the launcher lives it
is as if it were this process: it gets its signals, and its status counts. If this process is killed, so is that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taskfarm.runtime.launching.session_folders import free_own_folder
from taskfarm.runtime.launching.surroundings import OUTPOST_VARIABLE

if TYPE_CHECKING:
    from taskfarm.cli._watch import Watch

__all__ = ["run_and_watch"]

LOOK_S = 0.25  # at what the hub says; the launcher's end and signals are noticed at once
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # of linux/prctl.h
_SI_KERNEL = 0x80  # of a signal from the terminal, which the launcher gets by itself
_PASSED_ON = {
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2
}  # fmt: skip


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
    secret = os.urandom(16).hex()
    listener = socket.create_server(("127.0.0.1" if one_host else "", 0), backlog=8)
    name = "127.0.0.1" if one_host else socket.gethostname()
    address = f"{name}:{listener.getsockname()[1]}:{secret}"
    wanted = {*_PASSED_ON, signal.SIGCHLD}
    launcher = _start(command, {**environ, OUTPOST_VARIABLE: address}, wanted)
    from taskfarm.runtime.survival.vitals import end_like  # only now, while the launcher starts

    while not select.select([listener], [], [], 0.0)[0]:
        wait_status = _pause(launcher.pid, wanted)
        if wait_status is not None:
            end_like(wait_status)
    from taskfarm.cli._watch import Watch  # only now, when most of the start is over

    watch = Watch(listener, secret)
    wait_status = _watch_until_end(launcher.pid, watch, wanted)
    if watch.kill_at is not None:
        _end_children()  # a launcher may end and leave what waits for a host that is gone
    if wait_status is None:
        return watch.status
    end_like(wait_status)


def _start(command: Sequence[str], environ: Mapping[str, str], wanted: set[signal.Signals]) -> subprocess.Popen[bytes]:
    """Start the launcher, which ends with this process; `wanted` signals wait from now on until they are asked for."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    parent = os.getpid()

    def in_the_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if os.getppid() != parent:
            os._exit(signal.SIGKILL + 128)
        free_own_folder(environ)

    try:
        return subprocess.Popen(list(command), env=dict(environ), preexec_fn=in_the_child, close_fds=False)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise


def _watch_until_end(launcher: int, watch: Watch, wanted: set[signal.Signals]) -> int | None:
    """Return the launcher's wait status; None if its time is over."""
    while watch.kill_at is None or time.monotonic() < watch.kill_at:
        if text := watch.look(time.monotonic()):
            print(f"taskfarm: {text}", file=sys.stderr, flush=True)
        wait_status = _pause(launcher, wanted)
        if wait_status is not None:
            watch.look(time.monotonic())  # at what the hub has said meanwhile
            return wait_status
    return None


def _pause(launcher: int, wanted: set[signal.Signals]) -> int | None:
    """Wait a while for a signal, and pass it on; return the launcher's wait status once it has ended."""
    info = signal.sigtimedwait(wanted, LOOK_S)
    if info is not None and info.si_signo in _PASSED_ON and info.si_code != _SI_KERNEL:
        os.kill(launcher, info.si_signo)  # not reaped yet, so the number is still its own
    return _reap(launcher)


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
