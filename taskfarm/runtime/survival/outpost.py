"""What the hub tells the process that launched the job, which ends a launcher that does not end by itself.

The launching process (`taskfarm.cli._watchdog`) listens, and says where in a variable. The hub connects as soon as it
works, and begins with a line of the secret, the limit in seconds and rank 0's host. Then it says, a line of JSON each:
``here`` at short intervals, ``end`` when it has ended a job, with the status and how many seconds the launcher may take
to notice, ``free`` when rank 0 has left as it should. Nothing is said in the other direction.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping

from taskfarm.runtime.launching.surroundings import OUTPOST_VARIABLE

__all__ = ["Outpost", "launcher_grace_s"]

CONNECT_S = 2.0  # the launching host is as near as the launcher's own connections, or out of reach
MAX_GRACE_S = 2.0  # for a launcher that has lost a host: a living one ends a job in some tenths of a second
PART_OF_LIMIT = 0.15  # at most: the job must have ended when the limit is reached


def launcher_grace_s(limit_s: float) -> float:
    """Return how long a launcher may take to end a job that has lost a host."""
    return min(MAX_GRACE_S, PART_OF_LIMIT * limit_s)


class Outpost:
    """The hub's connection to the launching process; where there is none, nothing is said.

    Parameters
    ----------
    environ : mapping of str to str
        Environment of the hub.
    limit_s : float
        Seconds without a word after which the hub's host counts as lost.
    host : str
        Name of that host.
    """

    def __init__(self, environ: Mapping[str, str], limit_s: float, host: str) -> None:
        self._sock: socket.socket | None = None
        words = environ.get(OUTPOST_VARIABLE, "").split(":")
        if len(words) != 3:
            return
        with contextlib.suppress(OSError, ValueError):
            sock = socket.create_connection((words[0], int(words[1])), CONNECT_S)
            sock.setblocking(False)
            sock.send(f"{words[2]} {limit_s} {host}\n".encode())
            self._sock = sock

    def tell(self, message: object) -> None:
        """Say something; a launching process that does not listen is not waited for."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.send(json.dumps(message).encode() + b"\n")
