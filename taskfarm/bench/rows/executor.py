"""The executor against its peers: tasks one by one and at once, maps, arrays, and how well uneven work is shared."""

from __future__ import annotations

import itertools
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence

from taskfarm import Executor, task_comm
from taskfarm.bench import peers
from taskfarm.bench.functions import noop, same, timed
from taskfarm.bench.measure import OURS, RAW, WITHOUT, Contenders, Setting
from taskfarm.bench.works import MAP, NOOP, NOOPS, new_array

__all__ = [
    "echo",
    "journaled",
    "mapped",
    "one_by_one_map",
    "resumed",
    "submitted",
    "there_and_back",
    "two_ranks",
    "uneven",
]

_MEAN_S, _SIGMA = 1e-3, 2.0  # of the logarithm: one task in a hundred takes a hundred times the median
_N_UNEVEN = 2000


def _with_executor(work: Callable[[Executor, int], None], setting: Setting) -> Callable[[int], float]:
    def seconds(n: int) -> float:
        with Executor(max_workers=setting.n_ranks - 1) as executor:
            executor.submit(noop, None).result()
            return timed(work, executor, n)

    return seconds


def submitted(setting: Setting) -> Contenders:
    """Return the row for empty tasks that are all submitted and then gathered; the peers' maps do that, too."""
    return {OURS: _with_executor(_submit_all, setting), **peers.contenders(setting, NOOPS)}


def _submit_all(executor: Executor, n: int) -> None:
    for future in [executor.submit(noop, item) for item in range(n)]:
        future.result()


def one_by_one_map(setting: Setting) -> Contenders:
    """Return the row for a map of empty tasks in batches of one."""

    def work(executor: Executor, n: int) -> None:
        for _ in executor.map(noop, range(n), chunksize=1):
            pass

    return {OURS: _with_executor(work, setting), **peers.contenders(setting, NOOPS)}


def mapped(setting: Setting) -> Contenders:
    """Return the row for a map of empty tasks as it is; the peers with their best chunksize."""

    def work(executor: Executor, n: int) -> None:
        for _ in executor.map(noop, range(n)):
            pass

    return {OURS: _with_executor(work, setting), **peers.contenders(setting, MAP)}


def journaled(setting: Setting) -> Contenders:
    """Return the row for a map whose results are kept in a journal, against one without; all items are new to it."""
    folder = setting.cleanup.enter_context(tempfile.TemporaryDirectory())
    items = itertools.count()

    def seconds(journal: str | None) -> Callable[[int], float]:
        def work(executor: Executor, n: int) -> None:
            for _ in executor.map(noop, itertools.islice(items, n), journal=journal):
                pass

        return _with_executor(work, setting)

    return {OURS: seconds(os.path.join(folder, "journal.db")), WITHOUT: seconds(None)}


def resumed(n_items: int, setting: Setting) -> Contenders:
    """Return the row for a map of which the journal has all but one item: from opening it to the last result."""
    folder = setting.cleanup.enter_context(tempfile.TemporaryDirectory())
    path = os.path.join(folder, "journal.db")
    n_done = itertools.count(n_items)

    def seconds(n: int) -> float:
        return sum(_whole_map_s(setting.n_ranks - 1, range(next(n_done)), path) for _ in range(n))

    _whole_map_s(setting.n_ranks - 1, range(n_items - 1), path)
    return {OURS: seconds}


def _whole_map_s(n_workers: int, items: Sequence[int], journal: str) -> float:
    with Executor(max_workers=n_workers) as executor:
        executor.submit(noop, None).result()
        began = time.perf_counter()
        for _ in executor.map(noop, items, journal=journal):
            pass
        return time.perf_counter() - began


def there_and_back(setting: Setting) -> Contenders:
    """Return the row for ``submit(...).result()``."""

    def work(executor: Executor, n: int) -> None:
        for _ in range(n):
            executor.submit(noop, None).result()

    return {OURS: _with_executor(work, setting), **peers.contenders(setting, NOOP)}


def echo(size_bytes: int, peer_work: str, setting: Setting) -> Contenders:
    """Return the row for an array as argument and result of a task; the peers do `peer_work`."""
    array = new_array(size_bytes)

    def work(executor: Executor, n: int) -> None:
        for _ in range(n):
            executor.submit(same, array).result()

    return {OURS: _with_executor(work, setting), **peers.contenders(setting, peer_work)}


def two_ranks(setting: Setting) -> Contenders:
    """Return the row for an empty task of two ranks, against two tasks of one rank and a raw `Create_group`."""

    def work(executor: Executor, n: int) -> None:
        pair = executor.with_options(ranks=2)
        for _ in range(n):
            pair.submit(noop, None).result()

    def apart(executor: Executor, n: int) -> None:
        for _ in range(n):
            one, other = executor.submit(noop, None), executor.submit(noop, None)
            one.result()
            other.result()

    def raw(n: int) -> float:
        with Executor(max_workers=setting.n_ranks - 1) as executor:
            executor.submit(noop, None).result()
            return timed(apart, executor, n) + executor.with_options(ranks=2).submit(_groups_s, n).result()

    return {OURS: _with_executor(work, setting), RAW: raw}


def _groups_s(n: int) -> float:
    """Return the seconds that making `n` communicators over the ranks of this task takes, one after the other."""
    comm = task_comm()
    plain = comm.raw
    group = plain.Get_group()
    seconds = 0.0
    for _ in range(n):
        comm.Barrier()
        began = time.perf_counter()
        made = plain.Create_group(group)
        seconds += time.perf_counter() - began
        made.Free()
    group.Free()
    return seconds


def uneven(setting: Setting) -> Contenders:
    """Return the row for sleeping tasks of log-normal duration: the ideal makespan in percent of ours."""
    rng = random.Random(1)
    times = [rng.lognormvariate(math.log(_MEAN_S) - _SIGMA**2 / 2, _SIGMA) for _ in range(_N_UNEVEN)]
    n_workers = setting.n_ranks - 1

    def percent(_: int) -> float:
        with Executor(max_workers=n_workers) as executor:
            began = time.perf_counter()
            spent = sum(executor.map(_sleep, times))
            ideal: float = max(spent / n_workers, max(times))
            return 100 * ideal / (time.perf_counter() - began)

    return {OURS: percent}


def _sleep(seconds: float) -> float:
    """Sleep, and return how long that took: more than was asked for, where the time is short."""
    began = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - began
