"""Executors without workers, and futures made of futures."""

from __future__ import annotations

import concurrent.futures as std
import threading
import time
from typing import Any

import pytest

from taskfarm.futures import collect, compose
from taskfarm.futures._nested import NestedExecutor
from taskfarm.futures._pool import AsyncResult

LIMIT_S = 10.0


def new(initializer: Any = None, initargs: tuple[Any, ...] = (), n_threads: int = 2) -> NestedExecutor:
    broken.clear()
    return NestedExecutor(initializer, initargs, broken.append, n_threads)


broken: list[BaseException] = []


def test_tasks_that_wait_for_their_own_tasks() -> None:
    """However deep, and with fewer threads than tasks that wait: `result` runs what has not begun."""
    executor = new(n_threads=1)

    def depth(n: int) -> int:
        return 0 if n == 0 else 1 + executor.submit(depth, n - 1).result()

    assert executor.submit(depth, 50).result() == 50
    executor.shutdown(True, False)


def test_standard_waits() -> None:
    """`wait` and `as_completed` need no thread that runs tasks itself."""
    executor = new()
    futures = [executor.submit(pow, 2, i) for i in range(20)]
    assert sum(future.result() for future in std.as_completed(futures, LIMIT_S)) == 2**20 - 1
    assert not std.wait([executor.submit(abs, 1)], LIMIT_S).not_done


def test_maps() -> None:
    """In order, lazily, with time limit and failures in place."""
    executor = new()
    read: list[int] = []

    def source() -> Any:
        for i in range(1000):
            read.append(i)
            yield i

    results = executor.map_items(abs, source(), False, float("inf"), 5)
    assert len(read) == 5
    assert list(results) == list(range(1000))
    assert list(executor.map_items(pow, [(2, 3)], True, float("inf"), None)) == [8]
    with pytest.raises(std.TimeoutError):
        list(executor.map_items(time.sleep, [0.5], False, time.monotonic() + 0.01, None))


def test_shutdown_runs_or_cancels_what_waits() -> None:
    """Everything has ended when `shutdown` returns, and nothing more is taken."""
    gate = threading.Event()
    executor = new(n_threads=1)
    blocking = executor.submit(gate.wait, LIMIT_S)
    futures = [executor.submit(abs, -i) for i in range(5)]
    gate.set()
    executor.shutdown(True, False)
    assert blocking.result() and [future.result(0) for future in futures] == list(range(5))
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)
    gate.clear()
    executor = new(n_threads=1)
    blocking = executor.submit(gate.wait, LIMIT_S)
    futures = [executor.submit(abs, -i) for i in range(5)]
    threading.Timer(0.05, gate.set).start()
    executor.shutdown(True, True)
    assert all(future.done() for future in futures) and any(future.cancelled() for future in futures)


def test_initializer_that_fails() -> None:
    """All futures fail, and the owner is told."""
    executor = new(int, ("x",))
    futures = [executor.submit(abs, 1) for _ in range(3)]
    assert all(isinstance(future.exception(LIMIT_S), std.BrokenExecutor) for future in futures)
    assert len(broken) == 1


def test_collect() -> None:
    """All results in order, the first failure, or cancelled together."""
    parts: list[std.Future[int]] = [std.Future() for _ in range(3)]
    whole = collect([*parts, parts[0]])
    for index in (2, 0, 1):
        assert not whole.done()
        parts[index].set_result(index)
    assert whole.result(0) == [0, 1, 2, 0]
    assert collect([]).result(0) == []
    parts = [std.Future() for _ in range(3)]
    whole = collect(parts)
    parts[1].set_exception(KeyError(1))
    assert isinstance(whole.exception(0), KeyError) and parts[0].cancelled()
    parts = [std.Future() for _ in range(3)]
    whole = collect(parts)
    whole.cancel()
    assert all(part.cancelled() for part in parts)


def test_compose() -> None:
    """Hooks see the outcome, and make the new one; cancelling goes both ways."""

    def composed(outcome: Any, **hooks: Any) -> std.Future[Any]:
        old: std.Future[Any] = std.Future()
        new = compose(old, **hooks)
        old.set_exception(outcome) if isinstance(outcome, Exception) else old.set_result(outcome)
        return new

    assert composed(4).result(0) == 4
    assert composed(4, resulthook=str).result(0) == "4"
    assert isinstance(composed(KeyError()).exception(0), KeyError)
    assert composed(KeyError(7), excepthook=lambda exc: exc.args[0]).result(0) == 7
    assert isinstance(composed(KeyError(), excepthook=lambda exc: OSError()).exception(0), OSError)
    assert isinstance(composed(4, resulthook=lambda _: 1 // 0).exception(0), ZeroDivisionError)
    old: std.Future[Any] = std.Future()
    assert compose(old).cancel() and old.cancelled()
    old = std.Future()
    new = compose(old)
    old.cancel()
    assert new.cancelled()


def test_async_result() -> None:
    """As `multiprocessing.pool.AsyncResult`: callbacks, and questions that may be asked too early."""
    told: list[Any] = []
    good: std.Future[int] = std.Future()
    result = AsyncResult(good, told.append, told.append)
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(std.TimeoutError):
        result.get(0)
    good.set_result(3)
    bad: std.Future[int] = std.Future()
    failed = AsyncResult(bad, told.append, told.append)
    error = KeyError()
    bad.set_exception(error)
    assert (result.get(), result.ready(), result.successful(), failed.successful()) == (3, True, True, False)
    assert told == [3, error]
