"""Shared data: how long it takes to share, what it adds to the memory of all ranks, how fast workers read it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from taskfarm import Executor, Shared, share
from taskfarm.bench.measure import OURS, RAW, Contenders, Setting
from taskfarm.bench.proc import proportional_bytes
from taskfarm.bench.works import new_array

__all__ = ["added_memory", "reading", "sharing"]

_GATHER_S = 0.2  # a task of this length on every worker: none of them gets two


def _on_workers(executor: Executor, fn: Callable[[Any], Any]) -> list[Any]:
    return list(executor.map(partial(_call_slowly, fn), range(executor.num_workers), chunksize=1))


def _call_slowly(fn: Callable[[Any], Any], item: int) -> Any:
    value = fn(item)
    time.sleep(_GATHER_S)
    return value


def sharing(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for `share` until a worker has opened the data, against a copy into fresh memory."""
    array = new_array(size_bytes)

    def ours(n: int) -> float:
        with Executor(max_workers=setting.n_ranks - 1) as executor:
            executor.submit(abs, 1).result()
            total = 0.0
            for _ in range(n):
                start = time.perf_counter()
                with share(array) as shared:
                    executor.submit(_first, shared).result()
                    total += time.perf_counter() - start
            return total

    def copy(n: int) -> float:
        total = 0.0
        for _ in range(n):
            start = time.perf_counter()
            fresh = np.empty_like(array)
            np.copyto(fresh, array)
            total += time.perf_counter() - start
            del fresh
        return total

    return {OURS: ours, RAW: copy}


def _first(shared: Shared[Any]) -> Any:
    return shared.value[0]


def added_memory(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for the growth of the memory of all ranks together, when all workers have read all of the data."""
    array = new_array(size_bytes)

    def added(_: int) -> float:
        with Executor(max_workers=setting.n_ranks - 1) as executor:
            _on_workers(executor, _proportional)
            before = sum(_on_workers(executor, _proportional)) + proportional_bytes()
            with share(array) as shared:
                _on_workers(executor, partial(_read_all, shared))
                after = sum(_on_workers(executor, _proportional)) + proportional_bytes()
            return float(after - before) / size_bytes

    return {OURS: added}


def _proportional(_: int) -> int:
    return proportional_bytes()


def _read_all(shared: Shared[Any], _: int) -> None:
    shared.value.max()


def reading(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for reading shared data in a worker that has done so before, against an array of its own."""
    array = new_array(size_bytes)

    def seconds(fn: Callable[[Any, int], float], held: Any) -> Callable[[int], float]:
        def work(n: int) -> float:
            with Executor(max_workers=1) as executor:
                taken: float = executor.submit(fn, held, n).result()
                return taken

        return work

    shared = share(array)
    return {OURS: seconds(_read_shared, shared), RAW: seconds(_read_own, size_bytes)}


def _read_shared(shared: Shared[Any], n: int) -> float:
    return _read(shared.value, n)


def _read_own(size_bytes: int, n: int) -> float:
    return _read(new_array(size_bytes), n)


def _read(array: Any, n: int) -> float:
    array.max()
    start = time.perf_counter()
    for _ in range(n):
        array.max()
    return time.perf_counter() - start
