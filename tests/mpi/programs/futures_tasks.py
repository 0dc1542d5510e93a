"""Checks of ``taskfarm.Executor``: `submit`, futures, cancelling, threads, callbacks, tasks inside of tasks, ends."""

from __future__ import annotations

import asyncio
import concurrent.futures as std
import contextlib
import gc
import io
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque

import numpy as np
from tf_checks import equal, eventually, holds, peak_bytes, raises, run_checks

import taskfarm
from taskfarm import Executor, RemoteError, as_completed, wait
from taskfarm.runtime.launching.surroundings import expected_world_size

EX: Executor


class Oops(Exception):
    pass


class Stubborn(Exception):
    """Does not survive pickling: its constructor needs two arguments."""

    def __init__(self, one, two):
        super().__init__(one)


class Unpicklable:
    def __reduce__(self):
        raise ValueError("not this one")


class Unloadable:
    def __reduce__(self):
        return explode, ("on loading",)


class Point:
    def __init__(self, x):
        self.x = x

    def move(self, by):
        self.x += by
        return self


def explode(text):
    raise Oops(text)


def capture(*args, **kwargs):
    return args, kwargs


def nap(seconds):
    time.sleep(seconds)
    return seconds


def power_inside(n):
    with Executor() as executor:
        return executor.submit(pow, 2, n).result()


def sums_inside(n):
    with Executor() as executor:
        futures = [executor.submit(pow, 2, i) for i in range(n)]
        return sum(future.result() for future in as_completed(futures)), sum(executor.map(abs, range(n)))


def fibonacci(n):
    if n < 2:
        return n
    with Executor() as executor:
        return sum(executor.map(fibonacci, [n - 1, n - 2]))


def remembered():
    return REMEMBERED  # noqa: F821


def remember(value):
    import builtins

    builtins.REMEMBERED = value


# submit


def check_submit_returns_the_result():
    equal(EX.submit(pow, 2, 8).result(), 256)
    equal(EX.submit(capture, 1, self=2, fn=3).result(), ((1,), {"self": 2, "fn": 3}))
    with raises(TypeError):
        EX.submit(fn=capture)
    holds(isinstance(EX.submit(pow, 2, 8), std.Future), "a standard future")


def check_functions_of_all_kinds():
    three = 3
    equal(EX.submit(lambda x: x * three, 4).result(), 12)
    equal(EX.submit(Point(1).move, 2).result().x, 3)
    equal(EX.submit("a-b".split, "-").result(), ["a", "b"])
    found = EX.submit(Point, 5).result()
    holds(type(found) is Point, "the class of __main__ is the same class when it comes back")


def check_what_a_function_refers_to_is_as_it_is_now():
    for value in range(5):
        globals()["SETTING"] = value
        equal(EX.submit(lambda: SETTING).result(), value)  # noqa: F821
        equal(EX.submit(read_setting).result(), value)
    box = []

    def length():
        return len(box)

    for n in range(4):
        equal(EX.submit(length).result(), n)
        box.append(n)


def read_setting():
    return SETTING  # noqa: F821


def check_arguments_may_change_after_submit():
    array = np.zeros(100_000)
    futures = []
    for value in range(20):
        array[:] = value
        futures.append(EX.submit(np.mean, array))
    array[:] = -1
    equal([future.result() for future in futures], list(range(20)))


def check_many_submits():
    futures = [EX.submit(abs, -i) for i in range(5000)]
    equal(sum(future.result() for future in futures), sum(range(5000)))


def check_memory_stays_over_many_submits():
    def submit_all(n):
        waiting = deque()
        for i in range(n):
            waiting.append(EX.submit(abs, -i))
            if len(waiting) > 2000:
                equal(waiting.popleft().result(), i - 2000)
        for future in waiting:
            future.result()

    submit_all(10_000)
    before = peak_bytes()
    submit_all(20_000)
    growth = peak_bytes() - before
    holds(growth < 2e6, f"20,000 more tasks took {growth / 1e6:.1f} MB")


def check_large_arrays_there_and_back():
    for n in (1 << 10, 1 << 15, 1 << 20):
        array = np.arange(n, dtype=np.float64)
        result = EX.submit(np.negative, array).result()
        holds(np.array_equal(result, -array) and result.flags.writeable, "equal, and writable")
    arrays = [np.full(20_000, i) for i in range(30)]
    futures = [EX.submit(np.add, array, 1) for array in arrays]
    equal([float(future.result()[0]) for future in futures], [float(i + 1) for i in range(30)])


# Failures


def check_exceptions_arrive_as_themselves():
    future = EX.submit(explode, "there")
    with raises(Oops, match="there") as caught:
        future.result()
    holds(type(caught.exception.__cause__) is RemoteError, caught.exception.__cause__)
    holds("in explode" in str(caught.exception.__cause__), "the remote traceback is the cause")
    holds(type(future.exception()) is Oops, future.exception())


def check_exceptions_that_do_not_travel():
    error = EX.submit(raise_stubborn).exception()
    holds(type(error) is RemoteError and "Stubborn" in str(error), error)


def raise_stubborn():
    raise Stubborn(1, 2)


def check_system_exit_is_an_outcome():
    holds(type(EX.submit(sys.exit, 3).exception()) is SystemExit, "SystemExit")
    holds(type(EX.submit(next, iter([])).exception()) is StopIteration, "StopIteration")
    equal(EX.submit(abs, -1).result(), 1)


def check_one_bad_pickle_fails_alone():
    futures = [EX.submit(give, Unpicklable if i == 7 else int) for i in range(20)]
    kinds = [type(future.exception()) for future in futures]
    equal(kinds, [ValueError if i == 7 else type(None) for i in range(20)])
    future = EX.submit(abs, Unpicklable())
    holds(type(future.exception()) is ValueError, future.exception())
    future = EX.submit(id, Unloadable())
    holds(type(future.exception()) is Oops, future.exception())
    futures = [EX.submit(give, Unloadable if i % 10 == 7 else int) for i in range(100)]
    kinds = [type(future.exception()) for future in futures]
    equal(kinds, [Oops if i % 10 == 7 else type(None) for i in range(100)])
    equal(EX.submit(abs, -1).result(), 1)


def give(kind):
    return kind()


def check_what_cannot_be_called():
    holds(type(EX.submit(5).exception()) is TypeError, "an error of the future")


# Futures


def check_timeouts():
    future = EX.submit(nap, 0.5)
    with raises(std.TimeoutError):
        future.result(timeout=0.01)
    with raises(std.TimeoutError):
        future.exception(timeout=0)
    equal(future.result(timeout=20), 0.5)


def check_states():
    future = EX.submit(nap, 0.5)
    eventually(future.running, "running")
    holds(not future.cancel() and not future.done(), "a running task is not cancelled")
    future.result()
    holds(future.done() and not future.running() and not future.cancelled(), "done")


def check_cancel_before_running():
    futures = [EX.submit(nap, 0.1) for _ in range(10 * EX.num_workers)]
    cancelled = [future.cancel() for future in futures]
    holds(sum(cancelled) >= len(futures) // 2, cancelled)
    told = []
    for future, was in zip(futures, cancelled, strict=True):
        future.add_done_callback(lambda f: told.append(f.cancelled()))
        if was:
            with raises(std.CancelledError):
                future.result()
        else:
            equal(future.result(), 0.1)
    equal(told.count(True), sum(cancelled))
    done, not_done = wait(futures, timeout=10)
    equal((len(done), len(not_done)), (len(futures), 0))


def check_wait_and_as_completed():
    slow, fast = EX.submit(nap, 1.0), EX.submit(abs, -1)
    if EX.num_workers > 1:
        done, not_done = wait([slow, fast], return_when=std.FIRST_COMPLETED)
        equal((done, not_done), ({fast}, {slow}))
    done, _ = wait([EX.submit(explode, "x"), slow], return_when=std.FIRST_EXCEPTION)
    holds(any(future.exception() for future in done), "the failed one is among them")
    equal(sorted(f.result() for f in as_completed([EX.submit(abs, -i) for i in range(100)])), list(range(100)))
    with raises(std.TimeoutError):
        list(as_completed([EX.submit(nap, 0.3)], timeout=0.01))
    slow.result()


def check_callbacks_run_without_anybody_waiting():
    told = threading.Event()
    EX.submit(abs, -1).add_done_callback(lambda future: told.set())
    holds(told.wait(10), "the callback ran")


def check_callbacks_may_submit_and_wait():
    found = []
    ended = threading.Event()

    def again(future):
        if future.result() < 20:
            EX.submit(abs, -future.result() - 1).add_done_callback(again)
        else:
            found.append(EX.submit(pow, future.result(), 2).result())
            ended.set()

    EX.submit(abs, 0).add_done_callback(again)
    holds(ended.wait(20), "the chain of callbacks came to its end")
    equal(found, [400])


def check_callback_that_raises_is_logged():
    logger = logging.getLogger("concurrent.futures")
    seen = []
    handler = logging.Handler()
    handler.emit = seen.append
    logger.addHandler(handler)
    logger.propagate = False
    try:
        EX.submit(abs, -1).add_done_callback(lambda future: 1 // 0)
        eventually(lambda: seen, "the standard library's log line")
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    equal(EX.submit(abs, -1).result(), 1)


def check_nothing_is_kept():
    class Thing:
        def method(self):
            return 1

    thing = Thing()
    gone = weakref.ref(thing)
    EX.submit(thing.method).result()
    del thing
    eventually(lambda: gc.collect() >= 0 and gone() is None, "the argument is let go")
    future = EX.submit(Point, 1)
    gone = weakref.ref(future.result())
    del future
    eventually(lambda: gc.collect() >= 0 and gone() is None, "the result is let go")


# Threads, asyncio


def check_threads_submit_and_wait():
    found = []

    def work(base):
        found.append(sum(EX.submit(pow, base + i, 2).result() for i in range(200)))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    equal(sorted(found), [sum((k + i) ** 2 for i in range(200)) for k in range(6)])


def check_main_thread_computes_meanwhile():
    told = []
    futures = [EX.submit(abs, -i) for i in range(300)]
    for future in futures:
        future.add_done_callback(lambda f: told.append(f.result()))
    until = time.monotonic() + 30
    while len(told) < 300 and time.monotonic() < until:
        sum(range(1000))
    equal(sorted(told), list(range(300)))


def check_a_forked_child_cannot_use_it():
    pending = EX.submit(nap, 0.2)
    results = EX.map(abs, range(5))
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        said = []
        for attempt in (lambda: EX.submit(abs, 1), pending.result, lambda: EX.map(abs, [1]), Executor):
            try:
                attempt()
            except taskfarm.UsageError as exc:
                said.append("forked child" in str(exc))
            except Exception as exc:  # noqa: BLE001
                said.append(type(exc).__name__)
        EX.shutdown()
        results.close()
        os.write(writer, repr(said).encode())
        os._exit(0)
    os.waitpid(child, 0)
    equal(os.read(reader, 1000), b"[True, True, True, True]")
    for end in (reader, writer):
        os.close(end)
    equal(list(results), [0, 1, 2, 3, 4])
    equal(pending.result(), 0.2)


def check_asyncio():
    async def main():
        first = await asyncio.wrap_future(EX.submit(pow, 2, 5))
        second = await EX.asubmit(pow, 2, 6)
        seen = [value async for value in EX.amap(abs, range(-3000, 0))]
        beside = []
        async for value in EX.amap(nap, [0.05] * 4):
            beside.append(value)
            await asyncio.sleep(0)
        with raises(Oops):
            async for _ in EX.amap(explode, ["x"]):
                pass
        return first, second, seen, beside

    equal(asyncio.run(main()), (32, 64, list(range(3000, 0, -1)), [0.05] * 4))


# Tasks inside of tasks


def check_tasks_submit_tasks():
    equal(EX.submit(power_inside, 5).result(), 32)
    equal(list(EX.map(power_inside, range(40))), [2**n for n in range(40)])
    equal(EX.submit(sums_inside, 10).result(), (1023, 45))
    equal(EX.submit(fibonacci, 8).result(), 21)


def check_an_executor_that_a_task_refers_to():
    executor = EX
    equal(EX.submit(lambda: executor.submit(pow, 3, 2).result()).result(), 9)


# Initializers, the end


def check_initializer():
    with Executor(initializer=remember, initargs=(42,)) as executor:
        equal({executor.submit(remembered).result() for _ in range(20)}, {42})
        equal(set(executor.map(lambda _: remembered(), range(100))), {42})


def check_initializer_that_fails():
    for use in (lambda ex: ex.submit(abs, -1).result(20), lambda ex: list(ex.map(abs, [1, 2]))):
        with Executor(initializer=explode, initargs=("at the start",)) as executor:
            with raises(std.BrokenExecutor, match="at the start"):
                use(executor)
            eventually(lambda: executor._broken, "broken")
            with raises(std.BrokenExecutor, match="at the start"):
                executor.submit(abs, -1)
    equal(EX.submit(abs, -1).result(), 1)


def check_bad_arguments():
    for number in (0, -1):
        with raises(ValueError, match="max_workers must be greater than 0"):
            Executor(number)
    with raises(TypeError):
        Executor(initializer=5)


def check3_fewer_workers():
    with Executor(max_workers=1) as executor:
        equal(executor.num_workers, 1)
        futures = [executor.submit(os.getpid) for _ in range(50)]
        equal(len({future.result() for future in futures}), 1)


def check_shutdown():
    executor = Executor()
    futures = [executor.submit(nap, 0.01) for _ in range(50)]
    executor.shutdown()
    holds(all(future.done() for future in futures), "shutdown waits")
    with raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    with raises(RuntimeError, match="after shutdown"):
        executor.map(abs, [1])
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)


def check_shutdown_without_waiting():
    executor = Executor()
    future = executor.submit(nap, 0.3)
    executor.shutdown(wait=False)
    holds(not future.done(), "it does not wait")
    equal(future.result(20), 0.3)


def check_shutdown_that_cancels():
    executor = Executor()
    futures = [executor.submit(nap, 0.1) for _ in range(40 * executor.num_workers)]
    executor.shutdown(cancel_futures=True)
    holds(all(future.done() for future in futures), "all have ended")
    n_cancelled = sum(future.cancelled() for future in futures)
    holds(20 < n_cancelled < len(futures), n_cancelled)
    equal({future.result() for future in futures if not future.cancelled()}, {0.1})


def check_names_of_the_package():
    holds(taskfarm.wait is std.wait, "the standard library's")
    holds(issubclass(Executor, std.Executor), "a standard executor")
    holds(issubclass(taskfarm.ExecutorBrokenError, std.BrokenExecutor), "a standard error")


def check_progress():
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        equal(list(EX.map(abs, range(-50, 0), progress=True)), list(range(50, 0, -1)))
        equal(len(list(as_completed([EX.submit(abs, 1) for _ in range(5)], progress=True))), 5)
    equal(shown.getvalue(), "")
    with contextlib.redirect_stderr(shown):
        equal(sum(EX.map_unordered(abs, range(-50, 0), progress="always")), 1275)
        equal(len(list(as_completed([EX.submit(abs, 1) for _ in range(7)], progress="always"))), 7)
    text = shown.getvalue()
    holds("50/50" in text and "7/7" in text and "workers busy" in text, text)
    with raises(taskfarm.UsageError, match="progress"):
        EX.map(abs, [1], progress="never")


def check_blas_threads():
    limits = EX.submit(os.environ.get, "OPENBLAS_NUM_THREADS").result()
    holds(limits is not None and int(limits) >= 1, limits)


if __name__ == "__main__":
    logging.getLogger("taskfarm.futures").setLevel(logging.CRITICAL + 1)
    EX = Executor()
    run_checks(globals(), expected_world_size(os.environ) or 1)
    EX.shutdown()
