"""Pools of processes, each in a process of its own: ``python -m taskfarm.bench.pools NAME N_WORKERS CPU...``.

Rank 0 starts this program beside an MPI job (`peers`). It reads requests from its input, a line of JSON each,
``["noops", 1000]``, and answers with seconds. It ends when its input ends, so also when rank 0 dies.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from taskfarm.bench.works import Pool, work_seconds

__all__ = ["POOLS", "main"]


@dataclass(frozen=True, slots=True)
class _ExecutorPool:
    """A ``concurrent.futures`` executor."""

    executor: Any

    def map(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.executor.map(fn, items, chunksize=1))

    def map_best(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.executor.map(fn, items, chunksize=1000))

    def one(self, fn: Callable[[Any], Any], item: Any) -> Any:
        return self.executor.submit(fn, item).result()


@dataclass(frozen=True, slots=True)
class _MultiprocessingPool:
    pool: Any

    def map(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.pool.map(fn, items, chunksize=1))

    def map_best(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.pool.map(fn, items))

    def one(self, fn: Callable[[Any], Any], item: Any) -> Any:
        return self.pool.apply(fn, (item,))


@dataclass(frozen=True, slots=True)
class _DaskPool:
    client: Any

    def map(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.client.gather(self.client.map(fn, items, pure=False)))

    def map_best(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.client.gather(self.client.map(fn, items, pure=False, batch_size=1000)))

    def one(self, fn: Callable[[Any], Any], item: Any) -> Any:
        return self.client.submit(fn, item, pure=False).result()


@contextmanager
def _process_pool_executor(n_workers: int) -> Iterator[Pool]:
    with ProcessPoolExecutor(n_workers) as executor:
        yield _ExecutorPool(executor)


@contextmanager
def _multiprocessing_pool(n_workers: int) -> Iterator[Pool]:
    with multiprocessing.Pool(n_workers) as pool:
        yield _MultiprocessingPool(pool)


@contextmanager
def _joblib(n_workers: int) -> Iterator[Pool]:
    # Its process pool, loky, directly: joblib.Parallel with one worker does not use processes.
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=n_workers)
    yield _ExecutorPool(executor)
    executor.shutdown()


@contextmanager
def _dask(n_workers: int) -> Iterator[Pool]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        yield _DaskPool(client)


# Name of the peer: the module that must be installed, and what opens it.
POOLS: dict[str, tuple[str, Callable[[int], AbstractContextManager[Pool]]]] = {
    "ProcessPoolExecutor": ("concurrent.futures", _process_pool_executor),
    "mp.Pool": ("multiprocessing", _multiprocessing_pool),
    "joblib": ("joblib", _joblib),
    "dask": ("distributed", _dask),
}


def main(words: Sequence[str]) -> None:
    """Open the pool that `words` name and serve until the input ends."""
    name, n_workers, *cpus = words
    if cpus:
        os.sched_setaffinity(0, [int(cpu) for cpu in cpus])  # rank 0 may be bound to one core
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # what workers print must not be taken for an answer
        _, open_pool = POOLS[name]
        with open_pool(int(n_workers)) as pool:
            for line in sys.stdin:
                work, n = json.loads(line)
                answers.write(json.dumps(work_seconds(pool, work, n)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
