"""Checks of ``taskfarm.Executor`` with groups of workers: who works, and the other faces on the same ranks."""

from __future__ import annotations

import os
import time

import numpy as np
from tf_checks import equal, holds, raises, run_checks
from tf_vm import results

import taskfarm
from taskfarm import Executor, objects
from taskfarm.futures import MPIPoolExecutor, get_comm_workers
from taskfarm.runtime.launching.surroundings import expected_world_size
from taskfarm.runtime.session import current
from taskfarm.vm import MPI

EX: Executor
SIZE = expected_world_size(os.environ) or 1


def nap(seconds):
    time.sleep(seconds)
    return current().rank


def world_rank():
    return current().rank


def fail_to_load():
    raise ValueError("on loading")


class Unloadable:
    def __reduce__(self):
        return fail_to_load, ()


def scaled(array, by):
    array *= by
    return array


def check_members_work_and_controllers_do_not():
    ranks = set(EX.map(nap, [0.02] * 60))
    equal(len(ranks), EX.num_workers)
    equal(ranks, {2, 4, 5})
    equal({future.result() for future in [EX.submit(nap, 0.02) for _ in range(60)]}, {2, 4, 5})


def check_other_faces_reach_all_ranks():
    futures = [EX.submit(nap, 0.01) for _ in range(30)]
    equal(objects.call_all(world_rank), list(range(SIZE)))
    holds(all(future.done() for future in futures), "a call waits for what groups have in hand")
    virtual_machine = MPI()
    equal(results(virtual_machine, virtual_machine.spawnFunction(world_rank)), list(range(1, SIZE)))
    equal(list(EX.map(abs, range(-500, 0))), list(range(500, 0, -1)))


def check_long_items_behind_short_ones():
    n_long = 8 * EX.num_workers
    ranks = list(EX.map(nap, [0.0] * 3000 + [0.1] * n_long))
    equal(len(ranks), 3000 + n_long)
    equal(set(ranks[-n_long:]), {2, 4, 5})  # they were dealt when all seemed short, and are shared out all the same


def check_arrays_of_many_sizes():
    arrays = [np.full(n, 1.5) for n in (0, 10, 5_000, 100_000) * 8]
    for array, result in zip(arrays, EX.map(scaled, arrays, [2.0] * len(arrays)), strict=True):
        holds(np.array_equal(result, 2.0 * array), len(array))
    futures = [EX.submit(scaled, array, 3.0) for array in arrays]
    for array, future in zip(arrays, futures, strict=True):
        holds(np.array_equal(future.result(), 3.0 * array), len(array))


def check_unreadable_items_fail_alone():
    items = [Unloadable() if i == 70 else i for i in range(100)]
    results = EX.map(type, items)
    equal([next(results) for _ in range(70)], [int] * 70)
    with raises(ValueError, match="on loading"):
        next(results)


def check_retries():
    path = os.path.join(os.environ["TF_LOG_DIR"], "attempts")

    def fails_twice(i):
        if i == 7:
            with open(path, "a") as file:
                file.write("x")
            if os.path.getsize(path) < 3:
                raise OSError("again")
        return i

    often = EX.with_options(retries=5, retry_on=OSError)
    equal(list(often.map(fails_twice, range(20))), list(range(20)))
    equal(os.path.getsize(path), 3)


def check_journal():
    log_dir = os.environ["TF_LOG_DIR"]
    path, ran = os.path.join(log_dir, "journal"), os.path.join(log_dir, "ran")

    def note_and_negate(i):
        with open(ran, "a") as file:
            file.write("x")
        return -i

    equal(list(EX.map(note_and_negate, range(50), journal=path)), [-i for i in range(50)])
    equal(list(EX.map(note_and_negate, range(60), journal=path)), [-i for i in range(60)])
    equal(os.path.getsize(ran), 60)


def check_cancelling():
    gate = [EX.submit(nap, 0.3) for _ in range(4 * EX.num_workers)]
    futures = [EX.submit(nap, 0.01) for _ in range(300)]
    cancelled = [future.cancel() for future in futures]
    holds(any(cancelled), "most of them wait here")
    equal([future.cancelled() for future in futures], cancelled)
    holds({future.result() for future in gate} <= {2, 4, 5}, "the others are run")
    results = EX.map(nap, [0.02] * 1000)
    next(results)
    results.close()
    equal(EX.submit(abs, -1).result(), 1)


def check_what_is_refused():
    with raises(taskfarm.errors.UsageError, match="TASKFARM_GROUP_SIZE=0"):
        EX.with_options(ranks=2).submit(abs, -1)
    with raises(taskfarm.errors.UsageError, match="isolate"):
        EX.with_options(timeout_s=1.0).submit(abs, -1)


def check_failing_initializer():
    with Executor(initializer=fail_to_load) as executor:
        with raises(taskfarm.futures.ExecutorBrokenError, match="on loading"):
            executor.submit(abs, 1).result()
        with raises(taskfarm.futures.ExecutorBrokenError):
            list(executor.map(abs, range(100)))
    equal(EX.submit(abs, -1).result(), 1)


def check_shared_data():
    with taskfarm.share(np.arange(100_000.0)) as shared:
        equal(sum(EX.map(lambda i: float(shared.value[i]), range(200))), float(sum(range(200))))
    with taskfarm.share(np.ones(100_000)) as shared:
        equal(sum(EX.map(lambda i: float(shared.value[i]), range(200))), 200.0)


def check_comm_of_the_workers():
    with MPIPoolExecutor() as executor:
        equal(executor.num_workers, SIZE - 3)
        futures = [executor.submit(lambda: get_comm_workers().allreduce(1)) for _ in range(executor.num_workers)]
        equal([future.result() for future in futures], [SIZE - 3] * (SIZE - 3))


def check_fewer_workers():
    with Executor(max_workers=2) as executor:
        equal(executor.num_workers, 2)
        holds(set(executor.map(nap, [0.01] * 30)) <= {2, 4}, "only the first two")


if __name__ == "__main__":
    EX = Executor()
    run_checks(globals(), SIZE)
    EX.shutdown()
