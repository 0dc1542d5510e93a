"""Checks of ``taskfarm.vm``: what comes back from tasks, and tasks that fail."""

from __future__ import annotations

import os
import sys
import threading
import time

import numpy as np
from tf_checks import cpu_seconds, equal, holds, raises, run_checks
from tf_vm import collect, failure, idle, results, run

from taskfarm import UsageError, task_comm
from taskfarm.vm import MPI, MsgTaskExit, MsgTaskResult

N = 0
VM = None


# What comes back


def check2_send_back_variants():
    for send_back, expected in ((True, 5), (False, None), (None, None), ("yes", None), ([1], None)):
        ids = VM.spawnFunction(lambda: 5, count=1, sendBack=send_back)
        messages = collect(VM, ids)[ids[0]]
        if not send_back:
            equal([type(m) for m in messages], [MsgTaskExit])
        else:
            equal([type(m) for m in messages], [MsgTaskResult, MsgTaskExit])
            equal((messages[0].success, messages[0].returnValue), (True, expected))
        equal(messages[-1].taskID, ids[0])


def check2_failing_task_without_send_back():
    for send_back in (False, None):
        ids = VM.spawnFunction(lambda: 1 // 0, count=1, sendBack=send_back)
        equal([type(m) for m in collect(VM, ids)[ids[0]]], [MsgTaskExit])
    ids = VM.spawnFunction(lambda: 1 // 0, count=1, sendBack="other")
    equal(failure(VM, ids).success, False)


def check2_results_of_all_kinds():
    for value in (None, 0, "", [], {"a": np.arange(3).tolist()}, (1, 2), b"x", float("inf")):
        equal(run(VM, lambda v: v, (value,)), [value])
    (function,) = run(VM, lambda: lambda x: x + 1)
    equal(function(1), 2)


def check2_messages_can_be_compared_by_class():
    assert len(VM.spawnFunction(lambda: 1, count=1)) == 1
    seen = []
    while True:
        _, message = VM.receiveMessage(10)
        if type(message) is MsgTaskResult:
            seen.append("result")
        elif type(message) is MsgTaskExit:
            break
    equal(seen, ["result"])


# Tasks that fail


def misbehave(how):
    if how == "raise":
        raise ValueError("told to fail")
    if how == "exit":
        sys.exit(3)
    if how == "exit 0":
        sys.exit(0)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "generator exit":
        raise GeneratorExit
    if how == "recursion":
        return misbehave(how)
    if how == "unpicklable result":
        return threading.Lock()
    if how == "unloadable result":
        return OnlyDumps()
    if how == "unpicklable exception":
        exc = ValueError("told to fail")
        exc.lock = threading.Lock()
        raise exc
    if how == "unloadable exception":
        raise Awkward("told to fail", 5)
    raise AssertionError(how)


class Awkward(Exception):
    def __init__(self, text, code):
        super().__init__(text)


class OnlyDumps:
    """Loads everywhere but on the spawner (or, with `elsewhere`, only there)."""

    def __init__(self, elsewhere=False):
        self.elsewhere = elsewhere

    def __reduce__(self):
        return load_if, (self.elsewhere,)


def load_if(elsewhere):
    from taskfarm.vm import MPI

    if (MPI.taskID().rank == 0) != elsewhere:
        raise ValueError("does not load here")
    return "loaded"


def check2_every_kind_of_failure_is_reported():
    kinds = ["raise", "exit", "exit 0", "interrupt", "generator exit", "recursion"]
    kinds += ["unpicklable result", "unloadable result", "unpicklable exception", "unloadable exception"]
    for kind in kinds:
        message = failure(VM, VM.spawnFunction(misbehave, args=(kind,), count=1))
        holds(isinstance(message.traceback, str) and message.traceback, f"{kind}: no traceback")
        if kind not in ("unpicklable result", "unloadable result"):
            holds("misbehave" in message.traceback, f"{kind}: {message.traceback}")
        equal(MPI.freeSlots(), N - 1)
        equal(run(VM, len, ("abc",)), [3])


def check2_failure_carries_the_exception():
    message = failure(VM, VM.spawnFunction(misbehave, args=("raise",), count=1))
    holds(
        isinstance(message.exception, ValueError) and str(message.exception) == "told to fail", repr(message.exception)
    )
    holds("ValueError: told to fail" in message.traceback and "vm_results.py" in message.traceback, message.traceback)
    message = failure(VM, VM.spawnFunction(misbehave, args=("exit",), count=1))
    holds(isinstance(message.exception, SystemExit) and message.exception.code == 3, repr(message.exception))
    (task,) = VM.spawnFunction(lambda: 1, count=1)
    good = collect(VM, [task])[task][0]
    equal((good.exception, good.traceback), (None, None))


def check2_arguments_that_do_not_load():
    message = failure(VM, VM.spawnFunction(len, args=(OnlyDumps(elsewhere=True),), count=1))
    holds("does not load here" in message.traceback, message.traceback)
    ids = VM.spawnFunction(len, args=(OnlyDumps(elsewhere=True),), count=None)
    messages = collect(VM, ids)
    equal([[type(m) for m in messages[task]] for task in ids], [[MsgTaskResult, MsgTaskExit]] * (N - 1))


def check2_function_that_is_not_there():
    with open("tf_vanishing.py", "w") as file:
        file.write("def f():\n    return 1\n")
    sys.path.insert(0, os.getcwd())
    import tf_vanishing

    os.remove("tf_vanishing.py")
    sys.path.remove(os.getcwd())
    message = failure(VM, VM.spawnFunction(tf_vanishing.f, count=1))
    holds("tf_vanishing" in message.traceback, message.traceback)


def check3_one_fails_while_others_work():
    def work():
        if MPI.taskID().rank == 1:
            raise ValueError("only here")
        return MPI.taskID().rank

    ids = VM.spawnFunction(work)
    messages = collect(VM, ids)
    equal([messages[task][0].success for task in ids], [False] + [True] * (N - 2))


def check2_many_failures_leak_nothing():
    for _ in range(50):
        ids = VM.spawnFunction(misbehave, args=("raise",), count=None)
        collect(VM, ids)
    equal(MPI.freeSlots(), N - 1)


# Many tasks, waiting


def check2_many_small_tasks():
    done, started, wanted = [], 0, 400
    running = set()
    while len(done) < wanted:
        while MPI.freeSlots() and started < wanted:
            running.update(VM.spawnFunction(lambda k: k * k, args=(started,), count=1))
            started += 1
        sender, message = VM.receiveMessage(10)
        if type(message) is MsgTaskResult:
            done.append(message.returnValue)
        else:
            running.discard(sender)
    while running:
        sender, message = VM.receiveMessage(10)
        running.discard(sender)
    equal(sorted(done), [k * k for k in range(wanted)])


def check2_tasks_run_in_the_main_thread():
    equal(run(VM, lambda: threading.current_thread() is threading.main_thread()), [True])


def check2_waiting_uses_no_cpu():
    pids = [MPI.vmStatus["slots"][r]["pid"] for r in range(1, N)]
    (task,) = VM.spawnFunction(lambda: MPI().receiveMessage(30), count=1)
    time.sleep(0.3)
    before = [cpu_seconds(pid) for pid in pids]
    own = cpu_seconds(os.getpid())
    equal(VM.receiveMessage(2.0), ())
    used = [(cpu_seconds(os.getpid()) - own) / 2.0]
    used += [(cpu_seconds(pid) - b) / 2.0 for pid, b in zip(pids, before, strict=True)]
    VM.sendMessage(task, "go on")
    results(VM, [task])
    holds(max(used) < 0.01, f"share of a core, rank 0 waits in receiveMessage, rank 1's task too, others idle: {used}")


def check2_output_of_a_task_is_flushed_at_its_end():
    path = os.path.join(os.environ["TF_LOG_DIR"], "flushed.txt")

    def redirect(target):
        sys.stdout = open(target, "w")  # noqa: SIM115
        print("text without newline", end="")

    run(VM, redirect, (path,))
    with open(path) as file:
        equal(file.read(), "text without newline")
    run(VM, lambda: setattr(sys, "stdout", sys.__stdout__))


# Groups


def group_sum(value):
    comm = task_comm()
    return comm.size, comm.rank, comm.allreduce(value * (comm.rank + 1)), MPI.taskID().rank


def group_failure(rank):
    comm = task_comm()
    if comm.rank == rank:
        raise ValueError("one of the group")
    comm.Barrier()


def check3_a_group_runs_together():
    for _ in range(3):
        ids = VM.spawnGroup(group_sum, 2, (10,))
        equal(len(ids), 2)
        messages = collect(VM, ids)
        equal([type(m) for m in messages[ids[0]]], [MsgTaskResult, MsgTaskExit])
        equal(messages[ids[0]][0].returnValue, (2, 0, 30, ids[0].rank))
        equal([type(m) for m in messages[ids[1]]], [MsgTaskExit])
    values = results(VM, VM.spawnGroup(group_sum, 2, kwargs={"value": 1}, sendBack="all"))
    equal([value[:3] for value in values], [(2, 0, 3), (2, 1, 3)])


def check3_a_group_needs_its_slots():
    with raises(UsageError, match="nranks=99"):
        VM.spawnGroup(group_sum, 99)
    with raises(UsageError, match="nranks=0"):
        VM.spawnGroup(group_sum, 0)
    busy = VM.spawnFunction(time.sleep, (0.2,), count=MPI.freeSlots() - 1)
    equal(VM.spawnGroup(group_sum, 2, (1,)), [])
    results(VM, busy)


def check3_a_failure_ends_the_group():
    for rank in (0, 1):
        ids = VM.spawnGroup(group_failure, 2, (rank,), sendBack="all")
        failed = [collected[0] for collected in collect(VM, ids).values()]
        equal([message.success for message in failed], [False, False])
        holds("one of the group" in failed[1 - rank].traceback, failed)
    equal(len(results(VM, VM.spawnGroup(group_sum, 2, (1,), sendBack="all"))), 2)


if __name__ == "__main__":
    MPI.spawnerBarrier()
    VM = MPI()
    N = MPI.slots()
    run_checks(globals(), N, after_each=lambda: idle(VM))
    VM.finalize()
