"""A rank's side of its supervision: joining, beating, hearing who is lost, ending a damaged job.

See `taskfarm.runtime.survival.supervisor`. Where there is no supervisor, nothing here is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskfarm.config import Config
from taskfarm.runtime.endpoint import Endpoint
from taskfarm.runtime.lines import Lines
from taskfarm.runtime.survival.supervisor import LIFELINE_VARIABLE
from taskfarm.runtime.survival.vitals import LOOKS_PER_LIMIT, MAX_BEAT_S, Life, Mark, map_page

if TYPE_CHECKING:
    from taskfarm.transport.world import Opened

__all__ = ["Lifeline"]

END_S = 30.0  # for the supervisors to end all other ranks


class Lifeline:
    """The connection of this rank to its supervisor.

    Parameters
    ----------
    sock : socket
        To the supervisor.
    marks : memoryview
        The shared page, indexed by `Mark`.
    """

    def __init__(self, sock: socket.socket, marks: memoryview) -> None:
        self.marks = marks
        self._sock = sock
        self._lines = Lines()
        self._lost: list[tuple[int, str]] = []
        self._ended = False
        sock.setblocking(False)

    @classmethod
    def of_this_process(cls) -> Lifeline | None:
        """Return the lifeline that a supervisor has left to this process, not to one of its children; or None."""
        pid, _, rest = os.environ.get(LIFELINE_VARIABLE, "").partition(":")
        if pid != str(os.getpid()):
            return None
        sock, _, page = rest.partition(":")
        return cls(socket.socket(fileno=int(sock)), map_page(int(page)))

    def join_session(self, endpoint: Endpoint, opened: Opened, config: Config) -> None:
        """Take part in the supervision of an open session, if rank 0 does; see `join`."""
        if not opened.life_address[1]:
            return
        hosts = [peer.host for peer in opened.peers]
        limits_s = config.heartbeat_s, config.hang_s
        rank = endpoint.transport.rank
        self.join(rank, hosts, opened.secret, opened.life_address, opened.life_listener, limits_s)
        endpoint.marks = self.marks
        endpoint.may_lose = True
        if rank == 0:
            opened.transport.watch_losses(self.marks[Mark.NEWS :], self.take_losses)

    def join(
        self,
        rank: int,
        hosts: Sequence[str],
        secret: str,
        address: tuple[str, int],
        listener: socket.socket | None,
        limits_s: tuple[float, float | None],
    ) -> None:
        """Have the supervisors find each other; from here on a death does not end the job.

        Parameters
        ----------
        rank : int
            This rank.
        hosts : sequence of str
            Host of each rank.
        secret : str
            The job's secret.
        address : tuple of str and int
            Where rank 0's supervisor listens.
        listener : socket or None
            On rank 0, the listening socket; it is given away.
        limits_s : tuple
            Seconds without a sign of life for a rank that does nothing, and for one that computes (None: for ever).
        """
        heartbeat_s, hang_s = limits_s
        facts = {
            "rank": rank, "hosts": list(hosts), "secret": secret, "address": address,
            "heartbeat_s": heartbeat_s, "hang_s": hang_s,
        }  # fmt: skip
        self._sock.setblocking(True)
        descriptors = [listener.fileno()] if listener is not None else []
        line = json.dumps({"join": facts}).encode() + b"\n"
        n = socket.send_fds(self._sock, [line], descriptors)
        self._sock.sendall(line[n:])
        self._sock.setblocking(False)
        if listener is not None:
            listener.close()
            self.marks[Mark.LIFE] = Life.WORKING
        interval_s = min(heartbeat_s / LOOKS_PER_LIMIT / 2, MAX_BEAT_S)
        threading.Thread(target=self._beat, args=(interval_s,), name="taskfarm-beat", daemon=True).start()

    def _beat(self, interval_s: float) -> None:
        while True:
            self.marks[Mark.BEAT] = time.monotonic_ns()
            time.sleep(interval_s)

    @property
    def is_damaged(self) -> bool:
        """Whether a rank has died in this job; known on rank 0."""
        return bool(self.marks[Mark.NEWS])

    def take_losses(self) -> list[tuple[int, str]]:
        """Return, once, the ranks that died, and how."""
        self._hear()
        lost, self._lost = self._lost, []
        return lost

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while data := self._sock.recv(65536):
                for line in self._lines.feed(data):
                    message = json.loads(line)
                    if "lost" in message:
                        rank, how = message["lost"]
                        self._lost.append((rank, how))
                    elif "ended" in message:
                        self._ended = True

    def on_leaving(self, status: int) -> None:
        """Note that the script has ended, and only MPI has to be left."""
        self.marks[Mark.STATUS] = status
        self.marks[Mark.LIFE] = Life.LEAVING

    def end(self, status: int) -> None:
        """End a damaged job, all its ranks and what they have left; returns if this rank has to do the last step."""
        self._sock.setblocking(True)
        self._sock.settimeout(END_S)
        self._sock.sendall(json.dumps({"end": status}).encode() + b"\n")
        deadline = time.monotonic() + END_S
        while not self._ended and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                data = self._sock.recv(65536)
                if not data:
                    return
                self._ended = any("ended" in json.loads(line) for line in self._lines.feed(data))
