"""What the ranks of a job find out about themselves, their clocks and the network between them; for ``doctor``."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np

from taskfarm.transport.library import library_facts, load_mpi

__all__ = ["Link", "RankReport", "inspect_ranks"]

_PACKAGES = ("taskfarm", "mpi4py", "numpy", "cloudpickle")
_N_PINGS = 200  # 1 ms where the network is quick; half of them warm up
_LARGE_BYTES = 8 << 20
_N_LARGE = 4
_TAG = 1


@dataclass(frozen=True, slots=True)
class Link:
    """The way between rank 0 and another rank.

    Attributes
    ----------
    latency_s : float
        Of an empty message, one way.
    bytes_per_s : float
        Of a large message.
    clock_offset_s : float
        The other host's time of day minus that of rank 0.
    clock_error_s : float
        Uncertainty of that.
    """

    latency_s: float
    bytes_per_s: float
    clock_offset_s: float
    clock_error_s: float


@dataclass(frozen=True, slots=True)
class RankReport:
    """One rank: where it is, what it runs, and how rank 0 reaches it (None for rank 0 and for most ranks of a host)."""

    rank: int
    host: str
    python: str
    executable: str
    packages: dict[str, str]
    thread_level: str
    n_cores: int
    fabrics: list[str]
    link: Link | None = None


def inspect_ranks(n_cores: int) -> list[RankReport] | None:
    """Collect the reports of all ranks on rank 0, with a link to the last rank of each host; None on other ranks."""
    mpi = load_mpi()
    facts = library_facts()
    world = mpi.COMM_WORLD
    own = RankReport(
        facts.rank,
        mpi.Get_processor_name(),
        platform.python_version(),
        sys.executable,
        {name: _version(name) for name in _PACKAGES},
        facts.thread_level,
        n_cores,
        _fabrics(),
    )
    reports: list[RankReport] = world.allgather(own)
    partners = {report.host: report.rank for report in reports if report.rank > 0}
    for partner in partners.values():
        world.Barrier()  # the others wait in MPI, and may take the cores that are measured: as in a real job
        if facts.rank in (0, partner):
            link = _measure(world, 0 if facts.rank else partner, facts.rank == 0)
            reports[partner] = replace(reports[partner], link=link)
    world.Barrier()
    return reports if facts.rank == 0 else None


def _measure(world: Any, peer: int, leads: bool) -> Link:
    """Measure the way to `peer`, which does the same; what the one that `leads` gets is meant."""
    empty, large = bytearray(1), np.empty(_LARGE_BYTES, dtype=np.uint8)
    shortest, best_offset = float("inf"), 0.0
    times = np.zeros(1)
    for _ in range(_N_PINGS):
        sent = time.time()
        if leads:
            world.Send(empty, peer, _TAG)
            world.Recv(times, peer, _TAG)
        else:
            world.Recv(empty, peer, _TAG)
            times[0] = time.time()
            world.Send(times, peer, _TAG)
        received = time.time()
        if received - sent < shortest:
            shortest, best_offset = received - sent, times[0] - (sent + received) / 2
    quickest = float("inf")
    for _ in range(_N_LARGE):
        start = time.perf_counter()
        if leads:
            world.Send(large, peer, _TAG)
            world.Recv(large, peer, _TAG)
        else:
            world.Recv(large, peer, _TAG)
            world.Send(large, peer, _TAG)
        quickest = min(quickest, time.perf_counter() - start)
    return Link(shortest / 2, 2 * _LARGE_BYTES / quickest, float(best_offset), shortest / 2)


def _fabrics() -> list[str]:
    """Return the fast network adapters of this host."""
    try:
        return sorted(os.listdir("/sys/class/infiniband"))
    except OSError:
        return []


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
