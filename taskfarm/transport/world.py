"""Starting MPI, and the opening: how the ranks of a world agree to work together.

The opening is collective, but it must not block: rank 0 may have to give up after a time and say who is missing. So it
is made of non-blocking operations that are polled: a gather of one byte per rank (linear in the libraries at hand, so
its buffer shows who has come) and two duplicates of the world. Only when all of that is complete, and with it every
rank is known to be here, blocking operations exchange what the ranks know of themselves.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import metadata
from typing import Any, NamedTuple, NoReturn

from mpi4py import MPI

from taskfarm.config import Config
from taskfarm.transport.blocks import memory_key
from taskfarm.transport.comm import TrackedComm
from taskfarm.transport.doorbell import Doorbell, host_key
from taskfarm.transport.inlets import new_inlet
from taskfarm.transport.mpi import MpiTransport
from taskfarm.transport.waiting import RINGING_RANKS_PER_CORE, Waiter

__all__ = ["Opened", "Opening", "PeerInfo", "World", "cores_of_host", "current_world", "start_world"]

OUTPUT_GRACE_S = 0.1  # launchers lose what they have not passed on when they kill the ranks
_COMPARED_PACKAGES = ("taskfarm", "mpi4py", "numpy", "cloudpickle")


@dataclass(frozen=True)
class PeerInfo:
    """What one rank tells all others when the session opens.

    Attributes
    ----------
    rank : int
        Its rank.
    host : str
        Its host's name as MPI gives it.
    pid : int
        Its process number.
    n_cores : int
        Cores that its control groups and CPU set allow it.
    cpus : frozenset of int
        Its CPU set; a launcher may have bound each rank to a core of its own.
    versions : str
        Python's and the important packages' versions, for comparison.
    serves : bool
        Whether it will serve as a worker (or, on rank 0, controls); False for a rank that is about to end.
    key : str
        Equal for ranks that probably share memory and network.
    memory_key : str
        Equal for ranks that can open each other's blocks of shared memory.
    tags : frozenset of str
        The tags that it was given.
    trace : str
        Where it would have a trace written; rank 0's wish counts.
    """

    rank: int
    host: str
    pid: int
    n_cores: int
    cpus: frozenset[int]
    versions: str
    serves: bool
    key: str
    memory_key: str
    tags: frozenset[str] = frozenset()
    trace: str = ""


@dataclass(frozen=True)
class World:
    """The world that MPI gave us: `rank` of `size`, on `host`."""

    rank: int
    size: int
    host: str

    def new_comm(self) -> TrackedComm:
        """Return the user's communicator: the world itself, tracked."""
        return TrackedComm(MPI.COMM_WORLD)

    def abort(self, status: int) -> None:
        """End all ranks at once; the launcher returns `status`. May be called from any thread.

        The caller has flushed what it printed.
        """
        time.sleep(OUTPUT_GRACE_S)
        if MPI.Is_finalized():
            os._exit(status)
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE or MPI.Is_thread_main():
            MPI.COMM_WORLD.Abort(status)
        os._exit(status)

    def allows_threads(self) -> bool:
        """Tell whether threads may take turns in calling MPI."""
        return bool(MPI.Query_thread() >= MPI.THREAD_SERIALIZED)

    def is_finalized(self) -> bool:
        """Tell whether MPI has ended here."""
        return bool(MPI.Is_finalized())

    def finalize(self) -> None:
        """End MPI; collective over all ranks."""
        if not MPI.Is_finalized():
            MPI.Finalize()

    def leave(self, status: int) -> NoReturn:
        """End MPI, then the process with `status`, without going through the interpreter's own end.

        By C's ``exit``, not ``os._exit``: MPICH 5.0.2 says good-bye to its launcher in a C exit handler, and a rank
        that skips it has the job killed in every other run.
        """
        self.finalize()
        ctypes.CDLL(None).exit(status)
        os._exit(status)  # not reached

    def library(self) -> str:
        """Return the first line of the MPI library's description of itself."""
        return MPI.Get_library_version().splitlines()[0].strip()


def start_world() -> World:
    """Start MPI where nobody has, with the highest thread level, and return its world."""
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
        atexit.register(_finalize_own)  # mpi4py ends only what it has started itself
    comm = MPI.COMM_WORLD
    return World(comm.rank, comm.size, MPI.Get_processor_name())


def _finalize_own() -> None:
    if not MPI.Is_finalized():
        MPI.Finalize()


def current_world() -> World | None:
    """Return the world if MPI runs in this process, without starting it."""
    if not MPI.Is_initialized() or MPI.Is_finalized():
        return None
    return start_world()


class Opened(NamedTuple):
    """What the opening gives a rank.

    Attributes
    ----------
    transport : MpiTransport
        Ready for use.
    peers : list of PeerInfo
        By rank.
    secret : str
        The job's secret, chosen by rank 0.
    watch_address : tuple of str and int
        Where rank 0 listens for the watch channel, as seen from this rank.
    watch_listener : socket or None
        Rank 0's listening socket.
    life_address, life_listener
        The same for the supervisors; port 0 and None where there are none.
    """

    transport: MpiTransport
    peers: list[PeerInfo]
    secret: str
    watch_address: tuple[str, int]
    watch_listener: socket.socket | None
    life_address: tuple[str, int]
    life_listener: socket.socket | None


class Opening:
    """A rank's part in the opening of a session; begins when it is made.

    Parameters
    ----------
    config : Config
        Options of the session.
    """

    def __init__(self, config: Config) -> None:
        world = MPI.COMM_WORLD
        self._config = config
        self._size = world.size
        self._here = bytearray(world.size)
        counts = [1] * world.size
        target = [self._here, counts, list(range(world.size)), MPI.BYTE] if world.rank == 0 else None
        self._mark = b"\x01"
        gather = world.Igatherv([self._mark, MPI.BYTE], target, 0)
        self._control, first = world.Idup()
        self._bulk, second = world.Idup()
        self._requests: list[MPI.Request] = [gather, first, second]

    def wait(self, deadline: float) -> bool:
        """Poll until every rank takes part in the opening (True) or `deadline` has passed (False)."""
        waiter = Waiter(False, None, False)
        while not MPI.Request.Testall(self._requests):
            now = time.monotonic()
            if now >= deadline:
                return False
            waiter.idle(now, deadline)
        return True

    def missing(self) -> list[int]:
        """Return, on rank 0, the ranks that were not seen yet."""
        return [rank for rank in range(self._size) if not self._here[rank]]

    def complete(self, n_cores: int, serves: bool, survives: bool = False) -> Opened:
        """Exchange what the ranks know of themselves, once `wait` has returned True; collective.

        Parameters
        ----------
        n_cores : int
            Cores that this process may use.
        serves : bool
            Whether this rank will serve, or is about to end.
        survives : bool
            Whether there are supervisors; rank 0's word counts.
        """
        control = self._control
        rank = control.rank
        secret = control.bcast(secrets.token_hex(16), 0)
        bell = self._new_bell(secret, rank)
        key = host_key() if bell is not None else f"{host_key()}/{rank}"
        cpus = _cpu_set()
        info = PeerInfo(
            rank=rank,
            host=MPI.Get_processor_name(),
            pid=os.getpid(),
            n_cores=n_cores,
            cpus=cpus,
            versions=_versions(),
            serves=serves,
            key=key,
            memory_key=memory_key(),
            tags=self._config.tags | self._config.rank_tags.get(rank, frozenset()),
            trace=self._config.trace,
        )
        peers = _hold_parts_once(control.allgather(info))
        one_host = len({peer.key for peer in peers}) == 1
        interface = "127.0.0.1" if one_host else ""
        listener = socket.create_server((interface, 0), backlog=1024) if rank == 0 else None
        second = socket.create_server((interface, 0), backlog=1024) if rank == 0 and survives else None
        port, second_port = control.bcast([_port_of(listener), _port_of(second)], 0)
        name = "127.0.0.1" if peers[0].key == info.key else peers[0].host
        neighbours = self._join_neighbours(bell, info, peers)
        on_host = [peer for peer in peers if peer.host == info.host]
        n_cores = cores_of_host(on_host)
        spin = len(on_host) <= n_cores if self._config.spin is None else self._config.spin
        ranks_per_core = len(on_host) / n_cores
        rings = len(neighbours) > 1 and ranks_per_core <= RINGING_RANKS_PER_CORE
        usable = bell if rings else None
        all_ring = usable is not None and usable.reaches(range(self._size))
        waiter = Waiter(spin, usable, all_ring, ranks_per_core)
        transport = MpiTransport(control, self._bulk, waiter, usable, new_inlet(control, self._config.receive))
        return Opened(transport, peers, secret, (name, port), listener, (name, second_port), second)

    def _new_bell(self, secret: str, rank: int) -> Doorbell | None:
        if not self._config.doorbell or not sys.platform.startswith("linux"):
            return None
        try:
            return Doorbell(secret, rank, self._size)
        except OSError:
            return None

    def _join_neighbours(self, bell: Doorbell | None, info: PeerInfo, peers: Sequence[PeerInfo]) -> list[int]:
        """Prove who shares this host; return the ranks of the proven group, this one included."""
        control = self._control
        group = [peer.rank for peer in peers if peer.key == info.key]
        leader = group[0]
        path = bell.create_memory() if bell is not None and leader == info.rank else None
        paths = control.allgather(path)
        shared = paths[leader]
        proven = bell is not None and (leader == info.rank or (shared is not None and bell.join_memory(shared, leader)))
        all_proven = control.allgather(proven)
        if bell is None:
            return []
        bell.unlink_memory()
        neighbours = [rank for rank in group if all_proven[rank]] if proven else []
        bell.connect(neighbours)
        return neighbours


def _hold_parts_once(peers: Sequence[PeerInfo]) -> list[PeerInfo]:
    """Return `peers` with equal parts being one object: the CPU set of a host with 128 cores takes 8 kB."""
    held: dict[tuple[type, object], Any] = {}
    names = [field.name for field in fields(PeerInfo)]
    found = []
    for peer in peers:
        parts = [getattr(peer, name) for name in names]
        found.append(PeerInfo(*(held.setdefault((type(part), part), part) for part in parts)))
    return found


def _port_of(listener: socket.socket | None) -> int:
    return int(listener.getsockname()[1]) if listener is not None else 0


def cores_of_host(peers: Sequence[PeerInfo]) -> int:
    """Return how many cores the ranks of one host may use together."""
    together = len(frozenset().union(*(peer.cpus for peer in peers)))
    quotas = [peer.n_cores for peer in peers if peer.n_cores < len(peer.cpus)]
    return max(1, min([together, *quotas]))


def _cpu_set() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _versions() -> str:
    parts = [f"Python {platform.python_version()}"]
    for package in _COMPARED_PACKAGES:
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            parts.append(f"{package} (not installed)")
    return ", ".join(parts)
