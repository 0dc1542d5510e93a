"""The program of the row about traces: ``python -m taskfarm.bench.items SECONDS`` on two ranks.

Prints the median seconds of an item of a map. Items last 20 us by the clock, so that cores of another speed change
nothing; those below 10 us would have a span for each batch.
"""

from __future__ import annotations

import statistics
import sys
import time

from taskfarm import Executor
from taskfarm.bench.functions import busy, timed

__all__: list[str] = []

_ITEMS = 2_000  # of a map
_CHUNK = 500
_ITEM_S = 20e-6


def main(sample_s: float) -> None:
    """Measure, on rank 0."""
    with Executor() as executor:

        def whole_map() -> None:
            for _ in executor.map(busy, [_ITEM_S] * _ITEMS, chunksize=_CHUNK):
                pass

        whole_map()  # which finds everything cold
        times: list[float] = []
        end = time.perf_counter() + sample_s
        while not times or time.perf_counter() < end:
            times.append(timed(whole_map) / _ITEMS)
    print(statistics.median(times))


if __name__ == "__main__":
    main(float(sys.argv[1]))
