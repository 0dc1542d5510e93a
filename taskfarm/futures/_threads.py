"""How many threads numerical libraries use in tasks: so many that the workers of a host do not fight for its cores."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from taskfarm.runtime.launching.blas import VARIABLES
from taskfarm.runtime.launching.start import cores_by_host
from taskfarm.runtime.session import Session

__all__ = ["initialize_worker", "threads_per_worker"]


def threads_per_worker(session: Session) -> int:
    """Return a worker's share of the cores of the host that has least of them for each; at least 1.

    0, which leaves the libraries alone, where the user has set ``OMP_NUM_THREADS`` or ``TASKFARM_BLAS_THREADS=0``.
    """
    if session.config.blas_threads is not None:
        return session.config.blas_threads
    if "OMP_NUM_THREADS" in os.environ:
        return 0
    cores = cores_by_host(session.peers) if session.peers else {}
    if not cores:
        return 1
    n_ranks = Counter(peer.host for peer in session.peers if peer.rank > 0)
    return max(1, min(cores[host] // n for host, n in n_ranks.items()))


def initialize_worker(n_threads: int, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    """Limit the threads of numerical libraries on this worker, and run the user's initializer."""
    if n_threads:
        _limit_threads(n_threads)
    if initializer is not None:
        initializer(*initargs)


def _limit_threads(n: int) -> None:
    if importlib.util.find_spec("threadpoolctl") is not None:
        importlib.import_module("threadpoolctl").threadpool_limits(limits=n)
    for name in VARIABLES:  # for libraries that tasks load
        os.environ[name] = str(n)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(n)
