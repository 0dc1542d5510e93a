"""A part of the stand-in whose import touches the parallel part, on every rank."""

from pyopus.parallel.cooperative import scheduler as scheduler
from pyopus.parallel.mpi import MPI as MPI
