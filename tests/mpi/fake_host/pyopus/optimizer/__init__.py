"""A part of the stand-in whose import touches the parallel part, on every rank."""
from pyopus.parallel.cooperative import scheduler  # noqa: F401
from pyopus.parallel.mpi import MPI  # noqa: F401
