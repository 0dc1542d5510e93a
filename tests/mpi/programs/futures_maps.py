"""Checks of ``taskfarm.Executor``: `map` and its relatives."""

from __future__ import annotations

import asyncio
import concurrent.futures as std
import functools
import gc
import itertools
import logging
import os
import random
import time
import weakref

import numpy as np
from tf_checks import equal, eventually, holds, peak_bytes, raises, run_checks

from taskfarm import Executor
from taskfarm.runtime.launching.surroundings import expected_world_size

EX: Executor
MB = 1 << 20


class Oops(Exception):
    pass


class Unpicklable:
    def __reduce__(self):
        raise ValueError("not this one")


class Unloadable:
    def __reduce__(self):
        return fail_to_load, ()


def fail_to_load():
    raise ValueError("on loading")


class Thing:
    pass


def double(x):
    return 2 * x


def new_thing(_):
    return Thing()


def nap(seconds):
    time.sleep(seconds)
    return seconds


def fail_at_three(x):
    if x == 3:
        raise Oops("three")
    return x


def spoil_two(x):
    return Unpicklable() if x == 2 else x


def poison_two(x):
    return Unloadable() if x == 2 else x


def stop_at_two(x):
    if x == 2:
        raise StopIteration
    return x


def counted(log, n):
    for i in range(n):
        log.append(i)
        yield i


# Results


def check_map_is_like_map():
    for chunksize in (None, 1, 3, 50):
        equal(list(EX.map(pow, range(20), range(20), chunksize=chunksize)), list(map(pow, range(20), range(20))))
        equal(list(EX.map(double, range(100), chunksize=chunksize)), list(map(double, range(100))))
        equal(list(EX.map(double, iter(range(100)), chunksize=chunksize)), list(map(double, range(100))))
        equal(list(EX.map(double, [], chunksize=chunksize)), [])
    equal(list(EX.map(pow, [2, 3, 4], [1, 2])), [2, 9])
    equal(list(EX.map(abs)), [])


def check_large_maps():
    n = 200_000
    equal(list(EX.map(double, range(n))), list(range(0, 2 * n, 2)))
    equal(sum(EX.map(double, range(10, n, 3))), sum(range(20, 2 * n, 6)))
    equal(sum(EX.map(abs, (-i for i in range(n)))), n * (n - 1) // 2)
    equal(sum(EX.map_unordered(abs, range(n))), n * (n - 1) // 2)


def check_starmap_and_unordered():
    equal(list(EX.starmap(pow, [(2, 3), (3, 2)])), [8, 9])
    equal(list(EX.starmap(pow, iter([(i, 2) for i in range(500)]), chunksize=7)), [i * i for i in range(500)])
    equal(sorted(EX.map_unordered(pow, range(50), range(50))), sorted(map(pow, range(50), range(50))))
    if EX.num_workers > 1:
        equal(next(EX.map_unordered(nap, [0.5, 0.0], chunksize=1)), 0.0)


def check_chunks_stay_together():
    ranks = list(EX.map(own_pid, range(1000), chunksize=25))
    equal([len(set(ranks[i : i + 25])) for i in range(0, 1000, 25)], [1] * 40)
    times = [0.0] * 2000 + [0.02] * 50 * EX.num_workers  # long chunks behind short ones, several in one message
    equal(list(EX.map(nap, times, chunksize=10)), times)


def own_pid(_):
    return os.getpid()


def check_closures_and_shared_arguments():
    table = list(range(1000))
    equal(list(EX.map(lambda i: table[i], range(1000))), table)
    shared = np.arange(200_000.0)
    found = EX.map(functools.partial(np.dot, shared), [np.full(200_000, float(i)) for i in range(5)])
    equal([round(float(value)) for value in found], [round(i * shared.sum()) for i in range(5)])


def check_arrays():
    arrays = [np.full((100, 100), float(i)) for i in range(50)]
    for result, array in zip(EX.map(np.negative, arrays), arrays, strict=True):
        holds(np.array_equal(result, -array), "negative")


def check_many_maps_at_once():
    maps = [EX.map(double, range(k, 3000 + k)) for k in range(5)]
    for k, results in enumerate(maps):
        equal(list(results), [2 * i for i in range(k, 3000 + k)])


def check_uneven_tasks():
    rng = random.Random(1)
    times = [rng.choice([0.0, 0.0, 0.0, 0.001, 0.03]) for _ in range(200)]
    equal(list(EX.map(nap, times)), times)
    times = [0.0] * 3000 + [0.1] * 4 * EX.num_workers  # long ones behind short ones, many of them in one message
    ran_by = list(EX.map(nap_and_tell, times))[3000:]
    equal(len(ran_by), 4 * EX.num_workers)
    holds(max(ran_by.count(pid) for pid in set(ran_by)) <= 8, ran_by)


def nap_and_tell(seconds):
    time.sleep(seconds)
    return os.getpid()


# Failures


def check_the_failure_in_its_place():
    for chunksize in (None, 1, 2, 100):
        for source in (range(10), iter(range(10))):
            results = EX.map(fail_at_three, source, chunksize=chunksize)
            equal([next(results) for _ in range(3)], [0, 1, 2])
            with raises(Oops, match="three"):
                next(results)
            with raises(StopIteration):
                next(results)
    results = EX.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    equal([next(results), next(results)], [(0, 1), (0, 1)])
    with raises(ZeroDivisionError):
        next(results)


def check_a_source_that_fails_in_its_place():
    def source():
        yield from range(1000)
        raise Oops("no more")

    for submit_map in (EX.map, EX.map_unordered):
        results = submit_map(double, source())
        equal(sum(next(results) for _ in range(1000)), 999_000)
        with raises(Oops, match="no more"):
            next(results)
        with raises(StopIteration):
            next(results)

    async def collect():
        seen = []
        with raises(Oops, match="no more"):
            async for value in EX.amap(double, source()):
                seen.append(value)
        return seen

    equal(len(asyncio.run(collect())), 1000)


def check_bad_pickles_in_their_place():
    for fn, error in ((spoil_two, "not this one"), (poison_two, "on loading")):
        results = EX.map(fn, range(5))
        equal([next(results), next(results)], [0, 1])
        with raises(ValueError, match=error):
            next(results)
    results = EX.map(type, [1, 2, Unpicklable(), 4])
    equal([next(results), next(results)], [int, int])
    with raises(ValueError, match="not this one"):
        next(results)
    with raises(Exception, match="cannot be pickled"):
        EX.map(Unpicklable().__reduce__, [1])
    equal(list(EX.map(abs, [-1])), [1])


def check_stop_iteration_is_a_failure():
    results = EX.map(stop_at_two, range(5))
    equal([next(results), next(results)], [0, 1])
    with raises(RuntimeError, match="StopIteration"):
        next(results)


def check_timeout():
    began = time.monotonic()
    results = []
    with raises(std.TimeoutError):
        for value in EX.map(nap, [0, 0, 3], timeout=0.5):
            results.append(value)
    equal(results, [0, 0])
    holds(time.monotonic() - began < 2, "it does not wait for the rest")
    equal(list(EX.map(nap, [0, 0], timeout=20)), [0, 0])


def check_bad_arguments():
    for wrong in (0, -1):
        with raises(ValueError, match="chunksize must be >= 1"):
            EX.map(abs, [1], chunksize=wrong)
        with raises(ValueError, match="buffersize must be None or > 0"):
            EX.map(abs, [1], buffersize=wrong)
    with raises(TypeError, match="buffersize must be an integer or None"):
        EX.map(abs, [1], buffersize="2")
    with raises(TypeError):
        EX.map(abs, 5)


# Laziness


def check_reading_ahead_is_bounded():
    log = []
    results = EX.map(nap, (0.001 * (i < 0) for i in counted(log, 10**9)))
    for _ in range(2000):
        next(results)
    holds(len(log) < 10**8, len(log))
    results.close()
    n = len(log)
    time.sleep(0.05)
    equal(len(log), n)
    equal(list(EX.map(abs, [-1])), [1])


def check_slow_sources_are_not_waited_for():
    def slowly():
        for i in range(40):
            yield i
            time.sleep(0.4)

    began = time.monotonic()
    results = EX.map(double, slowly())
    equal(next(results), 0)
    results.close()
    holds(time.monotonic() - began < 10, "the first result does not wait for the last item")


def check_buffersize():
    log = []
    results = EX.map(double, counted(log, 100), buffersize=3)
    equal(len(log), 3)
    equal(next(results), 0)
    holds(len(log) <= 4, log)
    equal(list(results), list(range(2, 200, 2)))
    equal(list(itertools.islice(EX.map(double, itertools.count(), buffersize=5), 20)), list(range(0, 40, 2)))


def check_an_infinite_source():
    results = EX.map(double, itertools.count())
    equal(list(itertools.islice(results, 1000)), list(range(0, 2000, 2)))


def check_results_are_not_kept():
    for thing in EX.map(new_thing, range(10)):
        gone = weakref.ref(thing)
        del thing
        holds(eventually(lambda: gc.collect() >= 0 and gone() is None, "let go"), "let go")  # noqa: B023


def check_memory_stays():
    for _ in EX.map(double, iter(range(300_000))):
        pass
    before = peak_bytes()
    n_bytes = 0
    for block in EX.map(bytes, (100_000 for _ in range(6000))):  # 600 MB of results
        n_bytes += len(block)
    for array in EX.map(np.negative, (np.zeros(MB // 8) for _ in range(600))):  # 600 MB there and back
        n_bytes += array.nbytes
    equal(n_bytes, 600_000_000 + 600 * MB)
    for start in range(0, 10_000, 1000):
        for future in [EX.submit(abs, -i) for i in range(start, start + 1000)]:
            future.result()
    # What is held is bounded (128 MB), what is on its way as well; how much the heap keeps besides varies.
    holds(peak_bytes() - before < 700 * MB, (peak_bytes() - before) / MB)


# The end


def check_results_after_the_executor():
    with Executor() as executor:
        whole = executor.map(double, range(30_000))
        begun = executor.map(double, iter(range(30_000)))
        equal(next(begun), 0)
    equal(list(whole), list(range(0, 60_000, 2)))
    equal(list(begun), list(range(2, 60_000, 2)))


def check_a_map_that_nobody_looks_at_is_run():
    folder = os.environ["TF_LOG_DIR"]
    with Executor() as executor:
        executor.map(functools.partial(touch, folder), range(300))
    equal(sum(name.startswith("touched-") for name in os.listdir(folder)), 300)


def touch(folder, i):
    with open(os.path.join(folder, f"touched-{i}"), "w"):
        pass


def check_an_abandoned_map_is_dropped():
    began = time.monotonic()
    with Executor() as executor:
        results = executor.map(nap, [0.05] * 1000, chunksize=1)
        next(results)
        results.close()
    holds(time.monotonic() - began < 10, "what nobody wants is not run")


if __name__ == "__main__":
    logging.getLogger("taskfarm.futures").setLevel(logging.CRITICAL + 1)
    EX = Executor()
    run_checks(globals(), expected_world_size(os.environ) or 1)
    EX.shutdown()
