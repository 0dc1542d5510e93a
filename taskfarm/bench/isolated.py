"""The program of the rows about isolation: ``python -m taskfarm.bench.isolated ISOLATED SECONDS SIZE`` on two ranks.

Prints the median seconds of a task, there and back: of an empty one if SIZE is 0, else of one that returns an array of
so many bytes that it got.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence

from taskfarm import Executor
from taskfarm.bench.functions import noop, same
from taskfarm.bench.works import new_array

__all__: list[str] = []

_FIRST = 5  # tasks that find everything cold


def main(words: Sequence[str]) -> None:
    """Measure, on rank 0."""
    isolated, sample_s, size_bytes = bool(int(words[0])), float(words[1]), int(words[2])
    with Executor(isolate=isolated) as executor:
        function, argument = (same, new_array(size_bytes)) if size_bytes else (noop, None)
        for _ in range(_FIRST):
            executor.submit(function, argument).result()
        times: list[float] = []
        end = time.perf_counter() + sample_s
        while not times or time.perf_counter() < end:
            began = time.perf_counter()
            executor.submit(function, argument).result()
            times.append(time.perf_counter() - began)
    print(statistics.median(times))


if __name__ == "__main__":
    main(sys.argv[1:])
