"""Checks of ``taskfarm.share`` on one host: values, memory, and when it is given back."""

from __future__ import annotations

import builtins
import functools
import gc
import os
import pickle
import threading
import time

import numpy as np
from tf_checks import equal, eventually, holds, raises, run_checks

import taskfarm
from taskfarm import Executor, UsageError, objects, vm
from taskfarm.runtime.launching.surroundings import expected_world_size

EX: Executor
MB = 1 << 20


def read(handle, at):
    return float(handle.value[at])


def total(handle):
    return float(handle.value.sum())


def spoil(handle):
    handle.value[0] = 1


def fill(handle, row):
    handle.value[row] = row
    return os.getpid()


def share_inside():
    return taskfarm.share(np.zeros(10))


def handle_back(handle):
    return [handle]


def pss_with(handle=None):
    """Proportional set size of this process in bytes: of a page that n processes share, each has one n-th."""
    if handle is not None:
        handle.value.max()
    time.sleep(0.3)  # so that every worker gets one of these tasks
    with open("/proc/self/smaps_rollup") as file:
        return os.getpid(), next(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))


def blocks_of(pid):
    """How many blocks of shared memory a process has mapped."""
    with open(f"/proc/{pid}/maps") as file:
        return len({line.split()[4] for line in file if "taskfarm-" in line and "memfd:" in line})


def worker_pids():
    return {pid for pid, _ in EX.map(lambda _: pss_with(), range(EX.num_workers), chunksize=1)}


def pss_of_all(handle=None):
    """Return the memory of all processes of the job, each page once; the workers have read `handle` then."""
    fn = functools.partial(lambda handle, _: pss_with(handle), handle)
    found = dict(EX.map(fn, range(EX.num_workers), chunksize=1))
    equal(len(found), EX.num_workers)
    return sum(found.values()) + pss_with()[1]


def check_value_is_the_same_everywhere():
    data = {"x": np.arange(100_000.0), "f": np.ones((300, 200), order="F"), "text": "abc", "small": np.arange(3)}
    with taskfarm.share(data) as shared:
        for value in (shared.value, EX.submit(lambda handle: handle.value, shared).result()):
            equal(value["text"], "abc")
            holds(all(np.array_equal(value[name], data[name]) for name in ("x", "f", "small")), "equal arrays")
        holds(shared.value is shared.value, "one object per process")
        holds(shared.value["f"].flags.f_contiguous, "order is kept")


def check_arrays_are_read_only():
    with taskfarm.share(np.zeros(100_000)) as shared:
        with raises(ValueError, match="read-only"):
            shared.value[0] = 1
        with raises(ValueError, match="read-only"):
            EX.submit(spoil, shared).result()
        equal(EX.submit(read, shared, 0).result(), 0.0)


def check_arrays_without_buffers_are_shared_too():
    np.save("array.npy", np.arange(100_000))
    arrays = {
        "file": np.load("array.npy", mmap_mode="r"),
        "dates": np.arange(100_000).astype("M8[s]"),
        "masked": np.ma.masked_less(np.arange(100_000), 5),
    }
    for name, array in arrays.items():
        with taskfarm.share(array) as shared:
            holds(EX.submit(is_shared, shared).result(), name)
            holds(np.array_equal(shared.value, array), name)


def is_shared(handle):
    return not (handle.value.data if hasattr(handle.value, "mask") else handle.value).flags.writeable


def check_what_was_shared_may_change():
    array = np.zeros(100_000)
    with taskfarm.share(array) as shared:
        array[:] = 1
        equal(EX.submit(total, shared).result(), 0.0)


def check_handle_is_tiny():
    with taskfarm.share(np.zeros(MB)) as shared:
        holds(len(pickle.dumps(shared)) < 300, len(pickle.dumps(shared)))
        holds(len(pickle.dumps(functools.partial(read, shared))) < 400, "also inside of other things")
        holds(pickle.loads(pickle.dumps(shared)) is shared, "the same handle in the same process")
        equal(np.asarray(shared).shape, (MB,))


def check_map_with_a_handle_in_its_function():
    shared = taskfarm.share(np.arange(100_000.0))
    equal(list(EX.map(functools.partial(read, shared), range(200))), [float(i) for i in range(200)])


def check_handles_among_the_items():
    handles = (taskfarm.share(np.full(10_000, i)) for i in range(20))
    equal(list(EX.map(read, handles, range(20))), [float(i) for i in range(20)])


def check_task_keeps_a_handle_that_nobody_else_holds():
    futures = [EX.submit(total, taskfarm.share(np.full(10_000, i))) for i in range(30)]
    results = EX.map(functools.partial(read, taskfarm.share(np.arange(10_000))), range(50))
    gc.collect()
    equal([future.result() for future in futures], [10_000.0 * i for i in range(30)])
    equal(list(results), [float(i) for i in range(50)])


def check_executor_keeps_the_handles_of_its_initializer():
    with Executor(EX.num_workers, initializer=remember, initargs=(taskfarm.share(np.arange(10.0)),)) as executor:
        gc.collect()
        equal(list(executor.map(recall, range(10))), [float(at) for at in range(10)])


def remember(handle):
    builtins.remembered = handle.value


def recall(at):
    return float(builtins.remembered[at])


def check_handle_comes_back_as_itself():
    with taskfarm.share(np.zeros(10)) as shared:
        holds(EX.submit(handle_back, shared).result()[0] is shared, "the same handle")


def check_memory_is_held_once():
    size = 64 * MB
    pss_of_all()
    before = pss_of_all()
    with taskfarm.share(np.ones(size // 8)) as shared:
        growth = pss_of_all(shared) - before
        # Memory that other checks have left may be given back meanwhile.
        holds(size - 8 * MB < growth < size + 24 * MB, f"{growth / MB:.1f} MB more for {size / MB:.0f} MB")


def check_memory_is_given_back_with_the_last_handle():
    pids = worker_pids()
    array = np.arange(100_000.0)
    shared = taskfarm.share(array)
    kept = shared.value[10:20]
    pss_of_all(shared)
    equal([blocks_of(pid) for pid in pids], [1] * len(pids))
    number = shared._number
    del shared
    gc.collect()
    equal(EX.submit(abs, -1).result(), 1)  # whatever is next sends the word
    eventually(lambda: all(not blocks_of(pid) for pid in pids), "workers have let go")
    fds = [
        os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")
    ]
    holds(sum(f"taskfarm-{number:x}" in name for name in fds) <= 1, fds)  # of the array that is still there
    equal(kept.tolist(), list(np.arange(10.0, 20.0)))


def check_release_at_once():
    shared = taskfarm.share(np.arange(100_000.0))
    pids = worker_pids()
    pss_of_all(shared)
    shared.release()
    eventually(lambda: all(not blocks_of(pid) for pid in pids), "workers have let go")
    with raises(UsageError, match="released"):
        _ = shared.value
    with raises(UsageError, match="is gone"):
        EX.submit(total, shared).result()


def check_thousand_handles_leave_nothing():
    before = len(os.listdir("/proc/self/fd"))
    for i in range(1000):
        with taskfarm.share(np.full(5_000, i)) as shared:
            if i % 50 == 0:
                equal(EX.submit(read, shared, 0).result(), float(i))
    gc.collect()
    equal(len(os.listdir("/proc/self/fd")), before)


def check_tasks_write_parts():
    rows = 4 * EX.num_workers
    with taskfarm.shared_array((rows, 20_000), int) as out:
        holds(not out.value.any(), "zeros")
        list(EX.map(functools.partial(fill, out), range(rows)))
        equal(out.value.sum(axis=1).tolist(), [20_000 * row for row in range(rows)])
        with taskfarm.shared_array(3, np.int8) as small:
            EX.submit(fill, small, 2).result()
            equal(small.value.tolist(), [0, 0, 2])


def check2_calls_and_tasks_of_the_other_faces():
    with taskfarm.share(np.arange(100_000.0)) as shared:
        equal(objects.call_all(read, shared, 5), [5.0] * expected_world_size(os.environ))
        farm = vm.MPI()
        farm.spawnFunction(read, (shared, 6), count=1)
        message = farm.receiveMessage()[1]
        equal((message.success, message.returnValue), (True, 6.0))
        farm.receiveMessage()
    with raises(UsageError, match="released"):
        objects.call(read, shared, 5)


def check_handles_of_other_threads_are_kept():
    found = []

    def work(i):
        found.append(EX.submit(total, taskfarm.share(np.full(5_000, i))).result() == 5_000.0 * i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(found, [True] * 8)


def check_not_in_tasks():
    with raises(UsageError, match="by the program on rank 0"):
        EX.submit(share_inside).result()


def check_no_python_objects_in_written_arrays():
    with raises(UsageError, match="Python objects"):
        taskfarm.shared_array(10, object)


def check_no_negative_shape():
    for shape in (-1, (2, -3)):
        with raises(UsageError, match="negative"):
            taskfarm.shared_array(shape)
    equal([taskfarm.shared_array(shape).value.shape for shape in (0, (), (2, 0))], [(0,), (), (2, 0)])


def check_too_little_memory_is_said():
    with raises(UsageError, match="no shared memory"):
        taskfarm.shared_array(1 << 44, np.int8)
    with taskfarm.share(b"all is well") as shared:
        equal(shared.value, b"all is well")


if __name__ == "__main__":
    FIRST = taskfarm.share(np.arange(10_000))  # the ranks part here, and not where the executor is made
    EX = Executor(max_workers=None if expected_world_size(os.environ) else 2)
    assert EX.submit(read, FIRST, 7).result() == 7.0
    del FIRST
    run_checks(globals(), expected_world_size(os.environ) or 1)
    EX.shutdown()
