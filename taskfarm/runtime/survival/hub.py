"""Rank 0's supervisor as the hub of all others: who died, whether the job can go on, and how a damaged job ends.

A supervisor that connects begins with the job's secret and its rank, or is dropped. Then it says, a line of JSON each:
``here`` at short intervals, ``died`` when its rank has, ``left`` when its rank has ended as it should, ``gone`` when it
has obeyed an ``end``. The hub says ``damaged`` (a rank has died, and the job goes on: stay), ``end``, and ``free``.

A damaged job cannot go through MPI_Finalize, which would wait for the dead. It ends in steps: all other ranks are gone
and have left nothing in shared memory; then rank 0; then the launcher is told the status in its own way.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import select
import socket
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from taskfarm.runtime.lines import Lines
from taskfarm.runtime.survival.outpost import Outpost, launcher_grace_s
from taskfarm.runtime.survival.vitals import LOOKS_PER_LIMIT, LOST_STATUS, SILENCE_OF_HOST, Life, Mark, end_like
from taskfarm.scheduling.survival import Standing, fatal_reason

if TYPE_CHECKING:
    from taskfarm.runtime.survival.supervisor import Supervisor

__all__ = ["Hub"]

GRACE_S = 1.0  # for ranks that have been told to leave, and run their exit handlers
OBEY_S = 2.0  # for their supervisors, beyond that
OUTPUT_GRACE_S = 0.05  # for the launcher to read what the ranks have printed
LAUNCHER_S = 10.0  # for the launcher to end this process once it has been told
PAUSE_S = 0.1
STRANGER_S = 5.0  # for a connection to say who it is
_BAD_PEER = (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError)


class _Peer:
    """The connection of one supervisor."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lines = Lines()
        self.rank: int | None = None
        self.silent_s = 0.0
        self.has_left = False
        self.is_gone = False


class Hub:
    """What rank 0's supervisor does beside its own rank.

    Parameters
    ----------
    supervisor : Supervisor
        Of rank 0.
    listener : socket
        Where the others connect.
    secret : str
        The job's secret.
    hosts : sequence of str
        Host of each rank.
    limit_s : float
        Seconds after which the job has ended if a host is lost: its supervisors count as lost somewhat earlier.
    """

    def __init__(
        self, supervisor: Supervisor, listener: socket.socket, secret: str, hosts: Sequence[str], limit_s: float
    ) -> None:
        self._supervisor = supervisor
        self._listener = listener
        self._secret = secret.encode()
        self._hosts = hosts
        self._limit_s = limit_s
        self._silence_s = SILENCE_OF_HOST * limit_s
        self._outpost = Outpost(supervisor.environ, limit_s, hosts[0])
        self._peers: list[_Peer] = []
        self._is_ending = False
        self._looked_at = time.monotonic()
        supervisor.watch(listener, self._on_connection)

    # Connections

    def _on_connection(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            peer = _Peer(sock)
            self._peers.append(peer)
            self._supervisor.watch(sock, partial(self._on_data, peer))

    def _on_data(self, peer: _Peer) -> None:
        try:
            data = peer.sock.recv(65536)
            if not data:
                raise OSError("closed")
            peer.silent_s = 0.0
            for line in peer.lines.feed(data):
                self._on_line(peer, line)
        except BlockingIOError:
            return
        except _BAD_PEER:
            self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        """Part from a stranger, from a supervisor that is done, or from one that is lost."""
        self._supervisor.unwatch(peer.sock)
        if peer in self._peers:
            self._peers.remove(peer)
            if peer.rank is not None and not (peer.has_left or peer.is_gone or self._is_ending):
                self._lose_host(peer.rank, "the connection to its supervisor is gone")

    def _on_line(self, peer: _Peer, line: bytes) -> None:
        if peer.rank is None:
            secret, _, number = line.partition(b" ")
            rank = int(number) if hmac.compare_digest(secret, self._secret) else 0
            if not 0 < rank < len(self._hosts) or any(other.rank == rank for other in self._peers):
                raise ValueError("a stranger")
            peer.rank = rank
            return
        message = json.loads(line)
        if "died" in message:
            how, done_call, current_call, in_meeting = message["died"]
            self._on_died(peer.rank, str(how), Standing(int(done_call), int(current_call), bool(in_meeting)))
        elif "left" in message:
            peer.has_left = True
        elif "gone" in message:
            peer.is_gone = True

    def _tell_all(self, message: object) -> None:
        line = json.dumps(message).encode() + b"\n"
        for peer in self._peers:
            if peer.rank is not None:
                with contextlib.suppress(OSError):
                    peer.sock.send(line)

    def on_look(self, now: float) -> None:
        """Look for supervisors that have not been heard of, and for strangers that say nothing."""
        passed = min(now - self._looked_at, self._limit_s / LOOKS_PER_LIMIT)  # later looks: this process had to wait
        self._looked_at = now
        self._outpost.tell({"here": 1})
        for peer in list(self._peers):
            peer.silent_s += passed
            if peer.rank is None and peer.silent_s > STRANGER_S:
                self._drop(peer)
            elif peer.rank is not None and peer.silent_s > self._silence_s and not self._is_ending:
                self._lose_silent_host(peer.rank)

    # Deaths

    def _name(self, rank: int) -> str:
        return f"rank {rank} (host {self._hosts[rank]})"

    def _on_died(self, rank: int, how: str, standing: Standing) -> None:
        supervisor = self._supervisor
        page = supervisor.page
        if self._is_ending:
            return
        if page[Mark.LIFE] == Life.LEAVING:
            self.end_all(page[Mark.STATUS], GRACE_S)
        reason = fatal_reason(standing, page[Mark.LAST_CALL])
        if page[Mark.LIFE] != Life.WORKING:
            reason = "while the job was starting"
        if reason:
            supervisor.say(f"{self._name(rank)} {how} {reason}; ending the job with status {LOST_STATUS}")
            self.end_all(LOST_STATUS, 0.0)
        supervisor.is_damaged = True
        self._tell_all({"damaged": 1})
        supervisor.tell_rank({"lost": [rank, how]})
        page[Mark.NEWS] += 1

    def _lose_host(self, rank: int, why: str) -> None:
        text = f"{self._name(rank)} is lost, perhaps with its host: {why}; ending the job with status {LOST_STATUS}"
        self._supervisor.say(text)
        self.end_all(LOST_STATUS, 0.0)

    def _lose_silent_host(self, rank: int) -> None:
        """End the job, since nothing is heard of a rank's host; what does not answer is not waited for."""
        host = self._hosts[rank]
        silent = [peer for peer in self._peers if peer.rank is not None and peer.silent_s > self._silence_s / 2]
        ranks = sorted(peer.rank for peer in silent if peer.rank is not None and self._hosts[peer.rank] == host)
        for peer in silent:
            peer.is_gone = True
        names = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
        text = f"host {host} with {names} is lost: not heard of for {self._silence_s:g} s; ending the job with status "
        self._supervisor.say(text + str(LOST_STATUS))
        self.end_all(LOST_STATUS, 0.0, launcher_s=launcher_grace_s(self._limit_s))

    def on_end_of_rank_0(self, wait_status: int, how: str) -> None:
        """React to the end of this supervisor's own rank."""
        supervisor = self._supervisor
        if os.WIFSIGNALED(wait_status) and supervisor.page[Mark.LIFE] != Life.LEAVING:
            supervisor.say(f"{self._name(0)} {how}; ending the job with status {LOST_STATUS}")
            self.end_all(LOST_STATUS, 0.0)
        if supervisor.is_damaged:
            status = os.WEXITSTATUS(wait_status) if os.WIFEXITED(wait_status) else supervisor.page[Mark.STATUS]
            self.end_all(status, GRACE_S)
        self._tell_all({"free": 1})
        self._outpost.tell({"free": 1})
        end_like(wait_status)

    # The end

    def on_script_end(self, status: int) -> NoReturn:
        """End a damaged job whose script has ended with `status`."""
        self.end_all(status, GRACE_S, by_rank_0=status == 0 and self._is_open_mpi)

    @property
    def _is_open_mpi(self) -> bool:
        environ = self._supervisor.environ
        return "OMPI_COMM_WORLD_SIZE" in environ and "SLURM_STEP_ID" not in environ

    def end_all(
        self, status: int, grace_s: float, *, by_rank_0: bool = False, launcher_s: float = LAUNCHER_S / 2
    ) -> NoReturn:
        """End the job with `status`.

        Parameters
        ----------
        grace_s : float
            How long ranks that have been told to leave may take.
        by_rank_0 : bool
            Whether rank 0 is to do it, by aborting: Open MPI's launcher does not believe in a success without finalize.
        launcher_s : float
            How long the launcher may then take, before the process that started it ends it.
        """
        self._is_ending = True
        supervisor = self._supervisor
        self._tell_all({"end": [status, grace_s]})
        deadline = time.monotonic() + grace_s + OBEY_S
        while time.monotonic() < deadline and not all(peer.is_gone for peer in self._peers if peer.rank is not None):
            readable, _, _ = select.select([peer.sock for peer in self._peers], [], [], PAUSE_S)
            for peer in [peer for peer in self._peers if peer.sock in readable]:
                self._on_data(peer)
        if by_rank_0 and supervisor.is_rank_alive:
            supervisor.tell_rank({"ended": status})
            with contextlib.suppress(ChildProcessError):
                os.waitpid(supervisor.pid, 0)
            supervisor.clean()
            self._outpost.tell({"end": [status, launcher_s]})
        else:
            if supervisor.is_rank_alive:
                supervisor.kill_quietly()
            supervisor.clean()
            self._outpost.tell({"end": [status, launcher_s]})
            time.sleep(OUTPUT_GRACE_S)
            self._tell_launcher(status)
        time.sleep(LAUNCHER_S if by_rank_0 else 0.0)
        os._exit(status)

    def _tell_launcher(self, status: int) -> None:
        """Have the launcher end the job with `status`; returns where an exit status is enough."""
        environ = self._supervisor.environ
        descriptor = environ.get("PMI_FD")
        if descriptor is None or "SLURM_STEP_ID" in environ:
            return
        with contextlib.suppress(OSError, ValueError):
            os.write(int(descriptor), f"cmd=abort exitcode={status}\n".encode())  # MPICH's and Intel's own words
            time.sleep(LAUNCHER_S)
