"""The rate of empty tasks in a job of its own: ``taskfarm run -n N -m taskfarm.bench.rate SECONDS`` prints it."""

from __future__ import annotations

import sys

from taskfarm.bench.common import machine
from taskfarm.bench.functions import noop, timed
from taskfarm.bench.measure import RATE, repetitions
from taskfarm.bench.rows.tasks import farm_out

__all__: list[str] = []


def _main(sample_s: float) -> None:
    machine()  # only rank 0 goes on
    n = repetitions(_seconds, sample_s)
    print(RATE.value(_seconds(n), n))


def _seconds(n: int) -> float:
    return timed(farm_out, noop, 0, n)


_main(float(sys.argv[1]))
