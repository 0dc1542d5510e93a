"""Fault injection: the executor's real scheduler and protocol against a virtual clock and misbehaving workers.

`simulate` runs one farm, chosen by a seed, in milliseconds and without MPI; ``python -m taskfarm.testing`` runs many.
See docs/testing.md.
"""

from taskfarm.testing._check import SimulationFailed
from taskfarm.testing._plan import Plan
from taskfarm.testing._run import Summary, simulate

__all__ = ["Plan", "SimulationFailed", "Summary", "simulate"]
