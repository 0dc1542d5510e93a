"""How much memory the ranks of each host take, for the live view: one rank of every other host tells rank 0.

A rank that is busy in a task cannot answer over MPI, so a thread sends, to where rank 0 listens for the watch channel,
but by UDP. A datagram that gets lost, or that nobody takes, costs nothing: the next one comes a second later.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskfarm.transport.world import Opened, PeerInfo

__all__ = ["HostMemory", "report_memory", "resident_bytes"]

REPORT_S = 1.0
_MAX_BYTES = 200
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pids: Sequence[int]) -> int:
    """Return the resident memory of processes of this host; of those that are gone, none."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm") as file:
            total += int(file.read().split()[1]) * _PAGE_BYTES
    return total


def _pids_on(host: str, peers: Sequence[PeerInfo]) -> list[int]:
    return [peer.pid for peer in peers if peer.host == host]


class HostMemory:
    """What rank 0 knows of the memory of all hosts.

    Parameters
    ----------
    opened : Opened
        Its side of the job.
    """

    def __init__(self, opened: Opened) -> None:
        self._peers = opened.peers
        self._secret = opened.secret.encode()
        self._found: dict[str, int] = {}
        self._socket: socket.socket | None = None
        if any(peer.host != self._peers[0].host for peer in self._peers):
            with contextlib.suppress(OSError):  # then it is not shown
                self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
                self._socket.bind(("", opened.watch_address[1]))

    def by_host(self) -> Mapping[str, int]:
        """Return the bytes of each host that is known."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                while True:
                    self._take(self._socket.recv(_MAX_BYTES))
        own = self._peers[0].host
        return {own: resident_bytes(_pids_on(own, self._peers)), **self._found}

    def close(self) -> None:
        """Take nothing in any more."""
        if self._socket is not None:
            self._socket.close()

    def _take(self, datagram: bytes) -> None:
        secret, _, rest = datagram.partition(b" ")
        words = rest.split()
        if hmac.compare_digest(secret, self._secret) and len(words) == 2 and all(word.isdigit() for word in words):
            rank, n_bytes = map(int, words)
            if rank < len(self._peers):
                self._found[self._peers[rank].host] = n_bytes


def report_memory(rank: int, opened: Opened) -> None:
    """Have this rank tell rank 0, if it is the first one of another host."""
    peers = opened.peers
    host = peers[rank].host
    if host == peers[0].host or rank != min(peer.rank for peer in peers if peer.host == host):
        return
    pids = _pids_on(host, peers)
    threading.Thread(target=_report, args=(rank, pids, opened), name="taskfarm-memory", daemon=True).start()


def _report(rank: int, pids: Sequence[int], opened: Opened) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while True:
            with contextlib.suppress(OSError):
                sender.sendto(f"{opened.secret} {rank} {resident_bytes(pids)}".encode(), opened.watch_address)
            time.sleep(REPORT_S)
