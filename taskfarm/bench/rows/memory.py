"""Memory: what a large argument adds to the peak of each process, and what remains after very many tasks and calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from taskfarm import Executor, objects
from taskfarm.bench.common import MB, machine, meet
from taskfarm.bench.functions import noop
from taskfarm.bench.measure import OURS, Contenders, Setting
from taskfarm.bench.proc import peak_bytes, reset_peak, resident_bytes
from taskfarm.bench.rows.tasks import farm_out
from taskfarm.bench.works import new_array

__all__ = ["growth_by_calls", "growth_by_submits", "growth_by_tasks", "peak_by_call", "peak_by_task"]

_N_TASKS = 10**6
_N_CALLS = 10**5
_IN_FLIGHT = 1000
_QUICK_PART = 10
_WARM_PART = 20  # of the repetitions come first: pages that are touched once, caches that fill


def peak_by_call(size_bytes: int, rank: int, setting: Setting) -> Contenders:
    """Return the row for the argument of a collective call: on rank 0, which owns it already, or on a worker."""
    return _peak(_two_calls, size_bytes, rank)


def peak_by_task(size_bytes: int, rank: int, setting: Setting) -> Contenders:
    """Return the row for the argument of a task."""
    return _peak(_two_tasks, size_bytes, rank)


def _peak(send: Callable[[Any], None], size_bytes: int, rank: int) -> Contenders:
    array = new_array(size_bytes)

    def added(n: int) -> float:
        before = objects.call_all(_start_peak)
        send(array)
        after = objects.call_all(peak_bytes)
        return float(after[rank] - before[rank]) / size_bytes

    return {OURS: added}


# Twice: the first array must be gone before the second one lands.


def _two_calls(array: Any) -> None:
    objects.call(noop, array)
    objects.call(noop, array)


def _two_tasks(array: Any) -> None:
    farm = machine()
    for _ in range(2):
        farm.spawnFunction(noop, (array,), count=1, sendBack=False)
        farm.receiveMessage()  # the exit


def _start_peak() -> int:
    """Begin a new peak and return where it starts."""
    reset_peak()
    return resident_bytes()


def growth_by_tasks(setting: Setting) -> Contenders:
    """Return the row for the process that has grown most over a million empty tasks."""
    return _growth(lambda n: farm_out(noop, 0, n), _N_TASKS, setting)


def growth_by_submits(setting: Setting) -> Contenders:
    """Return the row for the process that has grown most over a million empty tasks of an executor."""
    return _growth(_submits, _N_TASKS, setting)


def growth_by_calls(setting: Setting) -> Contenders:
    """Return the row for the process that has grown most over a hundred thousand empty calls."""
    return _growth(_calls, _N_CALLS, setting)


def _growth(work: Callable[[int], None], full: int, setting: Setting) -> Contenders:
    n = full // _QUICK_PART if setting.quick else full

    def grown(_: int) -> float:
        work(n // _WARM_PART)
        before = objects.call_all(resident_bytes)
        work(n)
        after = objects.call_all(resident_bytes)
        return float(max(late - early for early, late in zip(before, after, strict=True))) / MB

    return {OURS: grown}


def _submits(n: int) -> None:
    with Executor() as executor:
        waiting: deque[Future[None]] = deque()
        for _ in range(n):
            waiting.append(executor.submit(noop, None))
            if len(waiting) > _IN_FLIGHT:
                waiting.popleft().result()


def _calls(n: int) -> None:
    for _ in range(n):
        objects.call(noop)
    objects.call(meet)
