"""The exit status of a script under ``srun``, which does not return it: a job that is cut short there ends with 137.

The launching process stays beside ``srun`` and listens; rank 0 tells it the status before it leaves. Nothing depends on
the message: without it the status is that of ``srun``.
"""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import FrameType

__all__ = ["let_rank_0_report", "report_status", "run_and_listen"]

_VARIABLE = "TASKFARM_REPORT_STATUS"  # host:port:token; set for the ranks, nothing for users
_CONNECT_S = 2.0  # the launching host is as near as Slurm's own connections, or out of reach
_MAX_MESSAGE_BYTES = 100
_REPORTING_S = 3.0  # ranks that fail alike do so within tenths of a second of each other, on a busy machine in seconds


def run_and_listen(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run `command` to its end and return its status, or what rank 0 reported if it failed.

    Signals that ask this process to end are passed on. An interrupt from the terminal reaches both by itself.
    """
    token = secrets.token_hex(8)
    with socket.create_server(("", 0), backlog=8) as listener:
        address = f"{socket.gethostname()}:{listener.getsockname()[1]}:{token}"
        process = subprocess.Popen(list(command), env={**environ, _VARIABLE: address})

        def pass_on(number: int, _frame: FrameType | None) -> None:
            process.send_signal(number)

        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, pass_on)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = process.wait()
        reported = _reported_status(listener, token)
    if status < 0:
        status = 128 - status
    return status if reported is None or status == 0 else reported


def report_status(status: int, rank: int, environ: Mapping[str, str]) -> None:
    """Tell the launching process that rank 0's program ended with `status`; does nothing where nobody listens."""
    address = environ.get(_VARIABLE, "")
    if rank != 0 or address.count(":") != 2:
        return
    host, port, token = address.split(":")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_S) as connection:
            connection.sendall(f"{token} {status}\n".encode())
    except (OSError, ValueError):
        return  # then the status is that of srun


def let_rank_0_report(environ: Mapping[str, str]) -> None:
    """Wait on another rank, whose program failed before it met the others, as rank 0's probably does, too.

    A wrong argument ends all of them at once, and srun ends those that are left with the first one: rank 0 perhaps
    before it has told its status. Its end ends this wait.
    """
    if _VARIABLE in environ:
        time.sleep(_REPORTING_S)


def _reported_status(listener: socket.socket, token: str) -> int | None:
    """Return what waits in the listener's queue; the command has ended, so nothing more will come."""
    listener.setblocking(False)
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return None
        with connection:
            connection.settimeout(_CONNECT_S)
            try:
                words = connection.recv(_MAX_MESSAGE_BYTES).decode(errors="replace").split()
            except OSError:
                continue
        if len(words) == 2 and secrets.compare_digest(words[0].encode(), token.encode()) and words[1].isdigit():
            return int(words[1]) & 0xFF
