"""Where a benchmark ran: versions, processor, cores. Without it a figure says nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["describe"]

_PACKAGES = ("taskfarm", "mpi4py", "numpy", "cloudpickle")
_PEER_PACKAGES = ("schwimmbad", "joblib", "distributed")


def describe(cpus: Sequence[int], n_cores: int, quick: bool, mpi: str) -> dict[str, Any]:
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
        "load": os.getloadavg()[0],
    }


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
