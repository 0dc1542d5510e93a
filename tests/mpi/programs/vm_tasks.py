"""Checks of ``taskfarm.vm``: identifiers, slots, spawning."""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
import socket
import sys
import threading
import time

import numpy as np
from tf_checks import equal, holds, raises, run_checks
from tf_vm import idle, results, run

assert "mpi4py" not in sys.modules
from taskfarm import vm as module  # noqa: E402
from taskfarm.errors import UsageError  # noqa: E402
from taskfarm.vm import MPI, MPIHostID, MPITaskID, MsgTaskExit, MsgTaskResult  # noqa: E402

INERT = "mpi4py" not in sys.modules
HOST = socket.gethostname()
N = 0
VM = None

NAMES = """
    MPI MPIHostID MPITaskID VirtualMachine HostID TaskID Msg MsgTaskExit MsgHostDelete MsgHostAdd MsgTaskResult
    getNumberOfCores localStorageCleaner translateToAbstractPath translateToActualPath
    ParallelLocalStorage ParallelMirroredStorage
""".split()  # noqa: SIM905


# Names and identifiers


def check_import_starts_nothing():
    holds(INERT, "mpi4py was imported by `import taskfarm.vm`")


def check_names_exist():
    import taskfarm.vm.base as base

    equal([name for name in NAMES if not hasattr(module, name)], [])
    equal([name for name in NAMES[3:] if getattr(base, name) != getattr(module, name)], [])
    holds(issubclass(MPI, base.VirtualMachine) and issubclass(MPIHostID, base.HostID), "bases")
    holds(issubclass(MPITaskID, base.TaskID) and issubclass(MsgTaskExit, base.Msg), "bases")


def check_barrier_is_idempotent():
    MPI.spawnerBarrier()
    MPI.spawnerBarrier(timeout=0.1)


def check_identifiers_of_the_spawner():
    equal(MPI.taskID(), MPITaskID(0, 0))
    equal(MPI.parentTaskID(), MPITaskID(-1, -1))
    holds(not MPI.parentTaskID().valid() and not MPI.parentTaskID(), "parent of the spawner")
    equal((MPI.hostID().name, MPI.hostID(MPITaskID(0, 0)).name), (HOST, HOST))
    equal(MPI.hosts(), [MPIHostID(HOST)])


def ask():
    own = MPI.taskID()
    facts = {
        "own": (own.rank, own.number),
        "parent": (MPI.parentTaskID().rank, MPI.parentTaskID().number, MPI.parentTaskID().valid()),
        "host": MPI.hostID().name,
        "lookup": {own: 1, MPITaskID(0, 0): 2}[MPITaskID(own.rank, own.number)],
        "in_set": MPITaskID(own.rank, own.number) in {own} and MPIHostID(MPI.hostID().name) in {MPI.hostID()},
        "hash": hash(own) == hash(MPITaskID(own.rank, own.number)),
        "vmStatus": MPI.vmStatus,
    }
    return own, MPI.hostID(), facts


def check2_identifiers_of_tasks():
    ids = VM.spawnFunction(ask, count=None)
    for task, (own, host, facts) in zip(ids, results(VM, ids), strict=True):
        holds(type(task) is MPITaskID and type(own) is MPITaskID, "types")
        equal(own, task)
        equal({own: 5}[task], 5)
        equal(host, MPIHostID(HOST))
        equal(facts["own"], (task.rank, task.number))
        equal(facts["parent"], (0, 0, True))
        equal((facts["host"], facts["lookup"], facts["in_set"], facts["hash"]), (HOST, 1, True, True))
        equal(facts["vmStatus"], None)
        equal(str(task), f"{task.rank}:{task.number}")


def check2_host_of_a_task():
    (task,) = VM.spawnFunction(time.sleep, args=(0.1,), count=1)
    equal(MPI.hostID(task), MPIHostID(HOST))
    results(VM, [task])


# Slots


def check_slots_of_an_idle_machine():
    equal((MPI.slots(), MPI.freeSlots()), (N, N - 1))
    equal((VM.slots(), VM.freeSlots()), (N, N - 1))
    equal(VM.freeSlotsSet(), set(range(1, N)))
    equal(VM.hostsWithFreeSlots(), {MPIHostID(HOST)} if N > 1 else set())


def check_one_process_spawns_nothing():
    if N == 1:
        equal(VM.spawnFunction(ask, count=3), [])
        equal(VM.receiveMessage(0.1), ())


def check2_slot_is_freed_when_the_exit_is_handed_out():
    free, hosts = VM.freeSlotsSet(), VM.hostsWithFreeSlots()
    (task,) = VM.spawnFunction(lambda: 5, count=1)
    equal(MPI.freeSlots(), N - 2)
    time.sleep(0.3)
    equal(MPI.freeSlots(), N - 2)
    sender, message = VM.receiveMessage(5)
    equal((sender, type(message), message.success, message.returnValue), (task, MsgTaskResult, True, 5))
    equal(MPI.freeSlots(), N - 2)
    holds(task.rank not in free and (N > 2 or not hosts), f"the sets are live: {free} {hosts}")
    sender, message = VM.receiveMessage(5)
    equal((sender, type(message), message.taskID), (task, MsgTaskExit, task))
    equal(MPI.freeSlots(), N - 1)
    equal((free, hosts), (set(range(1, N)), {MPIHostID(HOST)}))


def check2_callers_loop_over_free_slots():
    initial = VM.freeSlots()
    VM.spawnFunction(time.sleep, args=[0.05], count=None, sendBack=False)
    equal(VM.freeSlots(), 0)
    while VM.freeSlots() != initial:
        VM.receiveMessage()


def check2_callers_intersect_the_sets():
    equal(VM.freeSlotsSet() & {1, 99}, {1})
    equal(VM.hostsWithFreeSlots() & {MPIHostID(HOST), MPIHostID("elsewhere")}, {MPIHostID(HOST)})
    equal({MPIHostID(HOST)}.intersection(VM.hostsWithFreeSlots()), {MPIHostID(HOST)})


def check_status_dictionary():
    ids = VM.spawnFunction(time.sleep, args=(0.3,), count=1)
    status = MPI.vmStatus
    host = next(iter(status["hosts"].values()))
    equal(list(status["hosts"]), [HOST])
    equal((sorted(host["slots"]), host["ncpu"]), (list(range(N)), os.cpu_count()))
    busy = {0: 0} | {task.rank: task.number for task in ids}
    equal(sorted(host["freeSlots"]), [r for r in range(N) if r not in busy])
    equal(sorted(status["slots"]), list(range(N)))
    for rank, slot in status["slots"].items():
        equal(getattr(slot["host"], "name", slot["host"]), HOST)
        equal(slot["taskNumber"], busy.get(rank, -1))
        holds(os.path.exists(f"/proc/{slot['pid']}"), slot)
    equal(status["slots"][0]["pid"], os.getpid())
    equal(sorted(status["usedSlots"]), sorted(busy))
    equal(sorted(status["freeSlots"]), [r for r in range(N) if r not in busy])
    equal([getattr(h, "name", h) for h in status["freeHosts"]], [HOST] if N - len(busy) > 0 else [])
    equal({getattr(h, "name", h) for h in status["slot2host"].values()}, {HOST})
    equal(sorted(status["slot2host"]), list(range(N)))
    text = MPI.formatSpawnerConfig().rstrip("\n").split("\n")
    first = re.fullmatch(rf"{re.escape(HOST)} ncpu={os.cpu_count()} free slots: (\[.*\])", text[0])
    holds(first, text)
    equal(json.loads(first[1]), [r for r in range(N) if r not in busy])
    equal(text[1:], [f"\tslot={rank:4d} task={number:4d}" for rank, number in sorted(busy.items())])
    results(VM, ids)


def refuses():
    """Names of those functions that do not work, or not clearly, on a worker."""
    wrong = []
    attempts = {
        "slots": MPI.slots,
        "freeSlots": MPI.freeSlots,
        "hosts": MPI.hosts,
        "formatSpawnerConfig": MPI.formatSpawnerConfig,
        "spawnFunction": lambda: MPI().spawnFunction(len, args=("",)),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except UsageError as exc:
            if not str(exc):
                wrong.append(f"{name}: no text")
        else:
            wrong.append(f"{name}: no error")
    return wrong


def check2_spawner_functions_are_refused_on_workers():
    equal(run(VM, refuses), [[]])


def check2_a_new_machine_in_a_task_does_not_part_again():
    def make():
        inner = MPI()
        MPI.spawnerBarrier()
        return inner.debug, MPI.taskID().rank

    equal(run(VM, make), [(0, 1)])


# Spawning


def check_counts():
    free = N - 1
    for count, expected in ((None, free), (0, 0), (-1, 0), (-5, 0), (1, min(1, free)), (2, min(2, free)), (99, free)):
        ids = VM.spawnFunction(len, args=("abc",), count=count)
        equal((count, len(ids), type(ids)), (count, expected, list))
        equal(results(VM, ids), [3] * expected)


def check2_no_free_slot_gives_an_empty_list():
    ids = VM.spawnFunction(time.sleep, args=(0.2,), count=None)
    equal(VM.spawnFunction(len, args=("",), count=1), [])
    equal(VM.spawnFunction(len, args=("",)), [])
    results(VM, ids)


def check2_lowest_rank_first_and_one_counter():
    first = VM.spawnFunction(len, args=("",))
    equal([task.rank for task in first], list(range(1, N)))
    numbers = [task.number for task in first]
    equal(numbers, list(range(numbers[0], numbers[0] + N - 1)))
    holds(numbers[0] >= 1, numbers)
    results(VM, first)
    (task,) = VM.spawnFunction(len, args=("",), count=1)
    equal((task.rank, task.number), (1, numbers[-1] + 1))
    results(VM, [task])


def check3_busy_slots_are_left_out():
    (busy,) = VM.spawnFunction(time.sleep, args=(0.3,), count=1)
    (other,) = VM.spawnFunction(len, args=("",), count=1)
    equal((busy.rank, other.rank), (1, 2))
    results(VM, [busy, other])


def check2_default_arguments():
    ids = VM.spawnFunction(dict)
    equal(results(VM, ids), [{}] * (N - 1))
    ids = VM.spawnFunction(dict, (), {"a": 1}, 1, None, True)
    equal(results(VM, ids), [{"a": 1}])


def check_targets():
    here = MPI.hosts()
    free = N - 1
    equal(results(VM, VM.spawnFunction(len, args=("ab",), targetList=here)), [2] * free)
    equal(results(VM, VM.spawnFunction(len, args=("ab",), targetList=here * 3)), [2] * free)
    equal(len(results(VM, VM.spawnFunction(len, args=("ab",), targetList=here * 3, count=1))), min(1, free))
    equal(VM.spawnFunction(len, args=("ab",), targetList=[]), [])
    with raises(UsageError, match="not-a-host"):
        VM.spawnFunction(len, args=("ab",), targetList=[MPIHostID("not-a-host")])
    with raises(UsageError, match="not-a-host"):
        VM.spawnFunction(len, args=("ab",), targetList=[*here, MPIHostID("not-a-host")])
    equal(MPI.freeSlots(), free)


class Worker:
    factor = 2

    def __init__(self, x):
        self.x = x

    def times(self, y):
        return self.factor * self.x * y

    @classmethod
    def create(cls, x):
        return cls(x)

    @staticmethod
    def double(x):
        return 2 * x

    def __call__(self, y):
        return self.x + y


def add(a, b=0, *more, c=0):
    return a + b + sum(more) + c


def check2_kinds_of_callables():
    offset = 100

    def closure(x):
        return x + offset

    equal(run(VM, add, [1, 2, 3], {"c": 4}), [10])
    equal(run(VM, closure, [1]), [101])
    equal(run(VM, lambda: "λ"), ["λ"])
    equal(run(VM, Worker(3).times, (5,)), [30])
    equal([w.x for w in run(VM, Worker.create, (5,))], [5])
    equal(run(VM, Worker.double, (5,)), [10])
    equal(run(VM, Worker(3), (5,)), [8])
    equal([w.x for w in run(VM, Worker, (5,))], [5])
    equal(run(VM, functools.partial(add, 1, c=5), (2,)), [8])
    equal(run(VM, "{}!".format, ("a",)), ["a!"])
    equal(run(VM, np.linalg.norm, ([3.0, 4.0],)), [5.0])
    equal(run(VM, os.path.join, ("a", "b")), ["a/b"])


def check2_arguments_are_copies():
    data = {"list": [1]}

    def change(d):
        d["list"].append(2)
        return d

    equal(run(VM, change, (data,)), [{"list": [1, 2]}])
    equal(data, {"list": [1]})


def check2_caller_may_change_arrays_after_spawn():
    arrays = [np.zeros(n) for n in (10, 2_000_000)]
    ids = []
    for array in arrays:
        ids += VM.spawnFunction(lambda a: (time.sleep(0.1), float(a.max()))[1], args=(array,), count=None)
        array[:] = 7.0
        equal(results(VM, ids), [0.0] * (N - 1))
        ids = []


def check2_arrays_arrive_writable():
    def change(a):
        a += 1.0
        return a

    for shape in ((5,), (300, 1000)):
        (value,) = run(VM, change, (np.ones(shape, order="F"),))
        equal((value.shape, float(value.min()), value.flags.writeable), (shape, 2.0, True))


def check2_the_machine_itself_travels():
    """Spawned with and inside arguments; it carries its settings only."""
    wanted = {"debug", "vmIndex", "persistentStorage", "startupDirIndex", "startupDirSuffix", "mirrorList"}

    def look(given):
        return sorted(vars(given)), given.vmIndex, given.taskID().rank, type(given) is MPI

    equal(run(VM, look, (VM,)), [(sorted(wanted), VM.vmIndex, 1, True)])
    equal(set(pickle.loads(pickle.dumps(VM)).__dict__), wanted)
    holds(MPI().vmIndex != VM.vmIndex, "vmIndex is not unique")


def check2_unpicklable_arguments_leak_no_slot():
    lock = threading.Lock()
    attempts = [
        {"function": len, "args": (lock,)},
        {"function": len, "kwargs": {"x": lock}},
        {"function": lambda: lock},
        {"function": lock.acquire},
    ]
    for attempt in attempts:
        with raises(Exception):
            VM.spawnFunction(count=None, **attempt)
        equal(MPI.freeSlots(), N - 1)
    equal(run(VM, len, ("abc",), count=None), [3] * (N - 1))


def check2_not_callable_is_an_error():
    with raises(TypeError, UsageError):
        VM.spawnFunction("not a function", count=1)
    equal(MPI.freeSlots(), N - 1)


if __name__ == "__main__":
    MPI.spawnerBarrier()
    VM = MPI()
    N = MPI.slots()
    run_checks(globals(), N, after_each=lambda: idle(VM))
    VM.finalize()
