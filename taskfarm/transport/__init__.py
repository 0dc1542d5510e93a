"""What moves bytes between ranks; decides nothing. The only package that imports mpi4py."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["forbid_mpi", "prepare_mpi4py"]


def prepare_mpi4py() -> None:
    """Choose how mpi4py works, if nothing has loaded MPI yet.

    Its fast object reductions duplicate the communicator, at their first use, while they hold the interpreter lock: if
    a rank never comes, no watching thread can run any more. The plain ones gather instead.
    """
    if "mpi4py.MPI" not in sys.modules:
        import mpi4py

        mpi4py.rc.fast_reduce = False


def forbid_mpi() -> None:
    """See to it that importing mpi4py.MPI, as a user's module may do, does not start MPI in this process."""
    if importlib.util.find_spec("mpi4py") is not None:
        import mpi4py

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = False
