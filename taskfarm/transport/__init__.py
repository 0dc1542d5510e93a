"""What moves bytes between ranks; decides nothing. The only package that imports mpi4py."""

from __future__ import annotations

import sys

__all__ = ["prepare_mpi4py"]


def prepare_mpi4py() -> None:
    """Choose how mpi4py works, if nothing has loaded MPI yet.

    Its fast object reductions duplicate the communicator, at their first use, while they hold the interpreter lock: if
    a rank never comes, no watching thread can run any more. The plain ones gather instead.
    """
    if "mpi4py.MPI" not in sys.modules:
        import mpi4py

        mpi4py.rc.fast_reduce = False
