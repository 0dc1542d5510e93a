"""Checks of ``Executor(isolate=True)``: tasks that die, hang, leak; time limits, retries, killing, what a child is."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from tf_checks import equal, eventually, holds, raises, run_checks

import taskfarm
from taskfarm import Executor, TaskTimeoutError, UsageError, WorkerLostError, task_comm
from taskfarm.runtime.launching.surroundings import expected_world_size

EX: Executor
LIMIT_S = 20
FOLDER = tempfile.mkdtemp() if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == "0" else ""


def die(how):
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "memory":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))
        hog = ctypes.CDLL(None).malloc
        hog.restype = ctypes.c_void_p
        while True:
            ctypes.memset(hog(1 << 24), 1, 1 << 24)  # fails at last, and the memory at 0 is nobody's
    else:
        os.kill(os.getpid(), getattr(signal, how))


def die_at(x, bad, how):
    if x == bad:
        die(how)
    return x


def die_n_times(path, n, x=0):
    with open(path, "a+b") as file:
        file.write(b".")
        if file.tell() <= n:
            file.close()
            os.kill(os.getpid(), signal.SIGKILL)
    return x


def raise_n_times(path, n):
    with open(path, "a+b") as file:
        file.write(b".")
        if file.tell() <= n:
            raise KeyError("not yet")
    return file.name


def fresh_path():
    handle, path = tempfile.mkstemp(dir=FOLDER)
    os.close(handle)
    return path


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def note_pid_and_sleep(path):
    with open(path, "w") as file:
        file.write(f"{os.getpid()} {subprocess.Popen(['sleep', '1000']).pid} ")
    time.sleep(1000)


def noted_pids(path):
    return eventually(lambda: open(path).read().endswith(" ") and open(path).read(), "pids were noted").split()


# Deaths


def check_every_death_costs_attempts():
    for how, word in (("segfault", "SIGSEGV"), ("exit", "status 3"), ("SIGKILL", "SIGKILL"), ("SIGABRT", "SIGABRT")):
        with raises(WorkerLostError, match=f"2 times.*attempt 1, rank .*{word}.*attempt 2, rank") as caught:
            EX.with_options(retries=1).submit(die, how).result(LIMIT_S)
        holds(set(caught.exception.ranks) <= set(range(1, EX.num_workers + 1)), caught.exception.ranks)
    equal(EX.submit(pow, 2, 5).result(LIMIT_S), 32)


def check_a_task_that_leaks():
    with raises(WorkerLostError, match="once"):
        EX.with_options(retries=0).submit(die, "memory").result(LIMIT_S)
    equal(EX.submit(pow, 2, 5).result(LIMIT_S), 32)


def check_what_a_task_has_started_dies_with_it():
    """Also what has left its process group, and what that has started."""

    def start_and_die(path):
        script = f"sleep 1000 & echo $! $$ >> {path}; wait"
        subprocess.Popen(["sh", "-c", script], start_new_session=True)
        while os.path.getsize(path) == 0:
            time.sleep(0.01)
        os._exit(3)

    path = fresh_path()
    with raises(WorkerLostError):
        EX.with_options(retries=0).submit(start_and_die, path).result(LIMIT_S)
    with open(path) as file:
        pids = file.read().split()
    holds(len(pids) == 2, pids)
    eventually(lambda: not any(is_alive(pid) for pid in pids), "nothing is left of the task")


def check_a_child_that_nobody_can_hear():
    def close_and_sleep():
        os.closerange(3, 4096)
        time.sleep(1000)

    with raises(WorkerLostError, match="had closed the descriptors"):
        EX.with_options(retries=0).submit(close_and_sleep).result(LIMIT_S)
    equal(EX.submit(pow, 2, 5).result(LIMIT_S), 32)


def check_large_and_odd_exceptions():
    class Odd(Exception):
        def __str__(self):
            raise RuntimeError

    def throw(kind):
        raise Odd if kind == "odd" else kind("x" * 3_000_000)

    with raises(ValueError, match="x" * 1000):
        EX.submit(throw, ValueError).result(LIMIT_S)
    for kind in (SystemExit, KeyboardInterrupt, GeneratorExit):
        holds(type(EX.submit(throw, kind).exception(LIMIT_S)) is kind, kind)
    holds(EX.submit(throw, "odd").exception(LIMIT_S) is not None, "an exception without words")
    with raises(TypeError, match="pickle"):
        EX.submit(threading.Lock).result(LIMIT_S)
    equal(EX.submit(pow, 2, 5).result(LIMIT_S), 32)


def check_three_retries_by_default():
    path = fresh_path()
    equal(EX.submit(die_n_times, path, 3, 7).result(LIMIT_S), 7)
    equal(os.path.getsize(path), 4)
    path = fresh_path()
    with raises(WorkerLostError, match="4 times"):
        EX.submit(die_n_times, path, 100).result(LIMIT_S)
    equal(os.path.getsize(path), 4)


def check_only_the_guilty_item_fails():
    items = EX.with_options(retries=1).map(die_at, range(200), [117] * 200, ["SIGKILL"] * 200)
    equal([next(items) for _ in range(117)], list(range(117)))
    with raises(WorkerLostError, match="2 times"):
        next(items)
    equal(sorted(EX.map_unordered(pow, range(200), [1] * 200)), list(range(200)))


def check_a_map_with_deaths_is_whole():
    paths = [fresh_path() if x % 40 == 7 else os.devnull for x in range(200)]
    times = [1 if x % 40 == 7 else -1 for x in range(200)]
    equal(list(EX.map(die_n_times, paths, times, range(200))), list(range(200)))


def check_exceptions_are_retried_if_asked():
    with raises(KeyError):
        EX.submit(raise_n_times, fresh_path(), 1).result(LIMIT_S)
    path = fresh_path()
    patient = EX.with_options(retries=2, retry_on=LookupError)
    equal(patient.submit(raise_n_times, path, 2).result(LIMIT_S), path)
    with raises(KeyError):
        patient.submit(raise_n_times, fresh_path(), 3).result(LIMIT_S)
    with raises(ZeroDivisionError):
        patient.submit(divmod, 1, 0).result(LIMIT_S)


def check_initializers_run_in_every_child():
    def initialize(value):
        sys.modules["math"].tau_of_the_test = value

    with Executor(initializer=initialize, initargs=(5,)) as executor:
        for _ in range(2):
            executor.with_options(retries=0).submit(die, "SIGKILL").exception(LIMIT_S)
        function = executor.submit(getattr, sys.modules["math"], "tau_of_the_test")
        equal(function.result(LIMIT_S), 5)


def check_functions_survive_what_tasks_do_to_them():
    table = np.zeros(100_000)

    def spoil(x):
        seen = float(table[0])
        table[:] = x
        if x == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return seen

    with raises(WorkerLostError):
        list(EX.with_options(retries=1).map(spoil, [0], chunksize=1))
    equal(set(EX.map(spoil, [0.0] * 0 + [1.0], chunksize=1)), {0.0})


# Time limits, killing


def check_time_limits():
    began = time.monotonic()
    with raises(TaskTimeoutError, match=r"timeout_s=0\.3"):
        EX.with_options(timeout_s=0.3).submit(time.sleep, 1000).result(LIMIT_S)
    holds(time.monotonic() - began < 5, "soon")
    naps = [0.0] * 20 + [1000.0] + [0.0] * 20
    results = EX.map(time.sleep, naps, timeout_s=0.5)
    equal([next(results) for _ in range(20)], [None] * 20)
    with raises(TaskTimeoutError):
        next(results)
    equal(EX.with_options(timeout_s=10).submit(pow, 2, 3).result(LIMIT_S), 8)
    holds(issubclass(TaskTimeoutError, TimeoutError), "the built-in error")


def check_many_short_items_are_not_one_long_one():
    equal(list(EX.map(time.sleep, [0.02] * 40, timeout_s=0.5)), [None] * 40)


def check_time_limits_are_retried_if_asked():
    path = fresh_path()

    def slow_at_first(path):
        with open(path, "a+b") as file:
            file.write(b".")
        if os.path.getsize(path) == 1:
            time.sleep(1000)
        return os.path.getsize(path)

    view = EX.with_options(timeout_s=0.3, retry_on=TaskTimeoutError)
    equal(view.submit(slow_at_first, path).result(LIMIT_S), 2)


def check_killing_a_running_task():
    path = fresh_path()
    future = EX.submit(note_pid_and_sleep, path)
    pids = noted_pids(path)
    holds(not future.cancel(), "a running task is not cancelled")
    called = threading.Event()
    future.add_done_callback(lambda future: called.set())
    holds(future.cancel(force=True) and future.cancelled() and future.done(), "but it can be killed")
    holds(called.wait(LIMIT_S), "callbacks are called")
    with raises(taskfarm.futures.CancelledError):
        future.result(LIMIT_S)
    eventually(lambda: not any(is_alive(pid) for pid in pids), "the task's processes are gone")
    equal(list(EX.map(abs, range(50))), list(range(50)))
    equal(EX.submit(abs, -1).result(LIMIT_S), 1)


def check_wrong_options():
    for option in ({"timeout_s": 0}, {"timeout_s": "soon"}, {"retries": -1}, {"retries": 1.5}, {"retry_on": 3}):
        with raises(taskfarm.UsageError, match=next(iter(option))):
            EX.with_options(**option)


# Journals


def note_call(path, x):
    with open(path, "a") as file:
        file.write(f"{x} ")
    return -x


def calls_in(path):
    with open(path) as file:
        return [int(word) for word in file.read().split()]


def check_a_journal_of_maps_of_all_kinds():
    path, ran = fresh_path() + ".db", fresh_path()

    async def negated(items, **options):
        return [value async for value in EX.amap(note_call, [ran] * len(items), items, **options)]

    keyed = {"journal": path, "key": lambda _, x: x}
    equal(asyncio.run(negated(range(0, 40, 2), **keyed)), [-x for x in range(0, 40, 2)])
    equal(asyncio.run(negated(range(40), **keyed)), [-x for x in range(40)])
    equal(sorted(calls_in(ran)), list(range(40)))
    ran = fresh_path()
    with Executor(journal=fresh_path() + ".db") as executor:

        async def first_of_two():
            results = executor.amap(note_call, [ran] * 2, [1, 2])
            async for value in results:
                await results.aclose()
                return value

        for _ in range(3):
            equal(asyncio.run(first_of_two()), -1)
        equal(executor.submit(note_call, ran, 7).result(LIMIT_S), -7)
        equal(executor.submit(note_call, ran, 7).result(LIMIT_S), -7)
    equal((calls_in(ran).count(1), calls_in(ran).count(7)), (1, 1))
    view = EX.with_options(retries=0)
    for _ in range(2):
        equal(list(view.map(note_call, [ran] * 3, [71, 72, 73], **keyed)), [-71, -72, -73])
    equal(calls_in(ran).count(72), 1)
    for mapping in (EX.map, view.map):
        equal(list(mapping(functools.partial(note_call, ran), range(80, 83), journal=path + "2")), [-80, -81, -82])
    equal(calls_in(ran).count(81), 1)
    with raises(UsageError, match="are not kept"):
        EX.with_options(ranks_in=1).map(note_call, [ran], [1], **keyed)
    with raises(ZeroDivisionError):
        asyncio.run(anext_of(EX.amap(divmod, [1], [0], journal=path)))


async def anext_of(results):
    return await results.__anext__()


def check_a_journal_is_not_for_the_inside_of_tasks():
    def inside():
        with Executor() as executor:
            return list(executor.map(abs, [1], journal="nested.db"))

    with raises(UsageError, match="inside a task there is no journal"):
        EX.submit(inside).result(LIMIT_S)
    with raises(UsageError, match="inside a task there is no journal"):
        EX.submit(lambda: Executor(journal="nested.db")).result(LIMIT_S)


# What a child is


def check_arrays_are_the_receivers_own():
    array = np.arange(300_000.0)
    equal(float(EX.submit(np.sum, array).result(LIMIT_S)), float(array.sum()))
    for i in range(6):
        array[:] = i
        result = EX.submit(np.add, array, 0.5).result(LIMIT_S)
        equal((float(result[0]), float(result[-1]), result.flags.writeable), (i + 0.5, i + 0.5, True))
        result[:] = 9
    many = [np.full(5000, float(i)) for i in range(300)]
    equal([float(a[0]) for a in EX.map(np.negative, many)], [-float(i) for i in range(300)])
    kept = [EX.submit(np.full, 50_000, float(i)).result(LIMIT_S) for i in range(20)]
    equal([float(a[-1]) for a in kept], [float(i) for i in range(20)])


def check_mpi_does_not_start_in_a_child():
    def look():
        from mpi4py import MPI

        return MPI.Is_initialized(), os.getpid(), os.getcwd(), sys.path[0]

    started, pid, folder, first = EX.submit(look).result(LIMIT_S)
    equal((started, folder, first), (False, os.getcwd(), sys.path[0]))
    holds(pid != os.getpid(), "another process")


def check_standard_input_is_empty():
    """A task does not read from the terminal, or wait for a pipe that never ends."""
    equal(EX.submit(lambda: sys.stdin.read()).result(LIMIT_S), "")
    with raises(EOFError):
        EX.submit(input).result(LIMIT_S)


def check_the_child_stays():
    n = EX.num_workers
    equal(len(set(EX.map(lambda _: os.getpid(), range(100)))) <= n, True)


def check_forks_of_tasks_do_not_matter():
    def fork():
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        return os.waitpid(pid, 0)[1]

    equal(EX.submit(fork).result(LIMIT_S), 0)


def check_an_executor_inside():
    def inside():
        with Executor() as executor:
            return list(executor.map(abs, range(-5, 0)))

    equal(EX.submit(inside).result(LIMIT_S), [5, 4, 3, 2, 1])


def check_a_placed_task_runs_in_the_rank():
    """It has MPI, and what lives there; so it cannot be killed."""
    child = EX.with_options(retries=0).submit(os.getpid).result(LIMIT_S)
    view = EX.with_options(ranks_in=1)
    rank = view.submit(os.getpid).result(LIMIT_S)
    holds(rank != child, "not in a child")
    equal(view.submit(lambda: os.getpid()).result(LIMIT_S), rank)  # a function that the rank has not had
    equal(EX.submit(lambda: 7).result(LIMIT_S), 7)
    with raises(UsageError, match="timeout_s=1: a task with ranks, hosts or tags"):
        EX.with_options(ranks_in=1, timeout_s=1).submit(abs, 1)
    if (expected_world_size(os.environ) or 1) > 2:
        equal(EX.with_options(ranks=2).submit(lambda: task_comm().allreduce(1)).result(LIMIT_S), 2)


def check_shared_data_in_a_child():
    with taskfarm.share(np.arange(100_000.0)) as shared:
        equal(EX.submit(lambda: float(shared.value.sum())).result(LIMIT_S), 4999950000.0)
        equal(list(EX.map(lambda i: float(shared.value[i]), range(50))), [float(i) for i in range(50)])


if __name__ == "__main__":
    EX = Executor(isolate=True)
    run_checks(globals(), expected_world_size(os.environ) or 1)
    EX.shutdown()
    import shutil

    shutil.rmtree(FOLDER)
