"""Where a benchmark ran: versions, processor, cores. Without it a figure says nothing."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["busy_share", "cpu_times", "describe", "read_cpu_times"]

_PACKAGES = ("taskfarm", "mpi4py", "numpy", "cloudpickle")
_PEER_PACKAGES = ("schwimmbad", "joblib", "distributed")


def describe(cpus: Sequence[int], n_cores: int, quick: bool, mpi: str, busy: float) -> dict[str, Any]:
    """Return what the JSON file says of the machine and of what is installed.

    Parameters
    ----------
    cpus : sequence of int
        Cores that the benchmark may use.
    n_cores : int
        How many it can keep busy; a quota may allow fewer.
    quick : bool
        Whether the samples were few and short.
    mpi : str
        The MPI library.
    busy : float
        The part of the cores that others kept busy just before.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
        "mpi": mpi,
        **{name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "peers": {name: _version(name) for name in _PEER_PACKAGES},
        "machine": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": n_cores,
        "cpus": list(cpus),
        "busy_before": round(busy, 3),
    }


def read_cpu_times() -> tuple[float, float]:
    """Return the busy and the whole CPU time of the machine since its start, in clock ticks; zeros where not told."""
    try:
        return cpu_times(Path("/proc/stat").read_text())
    except OSError:
        return 0.0, 0.0


def cpu_times(stat: str) -> tuple[float, float]:
    """Return busy and whole time of the text of ``/proc/stat``: all cores together; waiting for a disk is not busy."""
    user, nice, system, idle, disk, *rest = (float(word) for word in stat.split("\n", 1)[0].split()[1:9])
    busy = user + nice + system + sum(rest)
    return busy, busy + idle + disk


def busy_share(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return the part of the cores that was busy between two `read_cpu_times`."""
    whole = after[1] - before[1]
    return (after[0] - before[0]) / whole if whole > 0 else 0.0


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Return the processor's name where Linux tells it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.machine()
