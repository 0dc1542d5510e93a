"""How many threads numerical libraries may use, so that the ranks of a host do not fight for its cores."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SWITCH", "VARIABLES", "thread_variables"]

# What the libraries read when they are loaded.
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SWITCH = "TASKFARM_BLAS_THREADS"


def thread_variables(n_workers: int, n_cores: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the environment of processes that share a host's cores needs beyond what is there.

    Parameters
    ----------
    n_workers : int
        Number of processes that compute at the same time.
    n_cores : int
        Number of usable cores.
    environ : mapping of str to str
        Their environment otherwise; nothing is added where the user has chosen a number, or switched this off.
    """
    chosen = environ.get(SWITCH, "")
    if chosen == "0" or any(name in environ for name in VARIABLES):
        return {}
    n = chosen if chosen.isdecimal() else str(max(1, n_cores // max(1, n_workers)))
    return dict.fromkeys(VARIABLES, n)
