"""One large table for all workers of a host: shared, read, and the memory that it takes all of them together.

    taskfarm run -n 4 examples/shared_table.py
    taskfarm run -n 4 examples/shared_table.py --megabytes 1000

The table is a random walk over a grid; each task follows paths through it, which looks up places all over the table.
Without `taskfarm.share` every worker would have a copy of its own.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import numpy as np

import taskfarm

MB = 1_000_000
STEPS = 2000


def follow(table: taskfarm.Shared[np.ndarray], start: int) -> int:
    """Follow the arrows of the table from `start`, and return where that leads."""
    arrows, place = table.value, start
    for _ in range(STEPS):
        place = int(arrows[place])
    return place


def column_sums(table: taskfarm.Shared[np.ndarray], sums: taskfarm.Shared[np.ndarray], part: int) -> None:
    """Sum up one part of the table, and write the result into the row of the part."""
    size = -(-len(table.value) // len(sums.value))
    sums.value[part] = table.value[part * size : (part + 1) * size].sum()


def memory_mb(table: taskfarm.Shared[np.ndarray] | None, _: int) -> tuple[float, float]:
    """Return this process's share of the memory in MB, a page that n processes have counted as 1 / n; and a checksum.

    It reads the whole table before, and takes long enough for every worker to get one of these tasks.
    """
    checksum = 0.0 if table is None else float(table.value.sum())
    time.sleep(0.3)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith("Pss:")), checksum


def memory_of_all(executor: taskfarm.Executor, table: taskfarm.Shared[np.ndarray] | None = None) -> float:
    """Return the memory of rank 0 and all workers in MB, each page counted once."""
    found = list(executor.map(functools.partial(memory_mb, table), range(executor.num_workers), chunksize=1))
    assert len({checksum for _, checksum in found}) == 1
    return sum(size for size, _ in found) + memory_mb(None, 0)[0]


def main() -> None:
    """Share a table, use it, and print what it takes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=100, help="size of the table (default: %(default)s)")
    n = parser.parse_args().megabytes * MB // 8

    with taskfarm.Executor() as executor:  # here the ranks part: the table is made by rank 0 alone
        table = np.random.default_rng(1).permutation(n)
        memory_of_all(executor)
        before = memory_of_all(executor)
        began = time.perf_counter()
        shared = taskfarm.share(table)
        print(f"shared {table.nbytes / MB:.0f} MB in {time.perf_counter() - began:.2f} s")
        added = memory_of_all(executor, shared) - before
        print(f"memory of {executor.num_workers} workers and rank 0: {added:.0f} MB more than before")

        starts = range(0, n, n // 100)
        ends = list(executor.map(functools.partial(follow, shared), starts))
        place = np.arange(0, n, n // 100)
        for _ in range(STEPS):
            place = table[place]
        assert ends == place.tolist()
        print(f"{len(ends)} paths of {STEPS} steps end where they should")

        with taskfarm.shared_array(16, int) as sums:
            list(executor.map(functools.partial(column_sums, shared, sums), range(16)))
            assert sums.value.sum() == n * (n - 1) // 2
        print("16 parts were summed up in place")
        shared.release()


if __name__ == "__main__":
    main()
