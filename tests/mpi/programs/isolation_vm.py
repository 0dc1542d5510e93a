"""Checks of ``vm.MPI(isolate=True)``: tasks that die, messages through the rank, what a child may not do."""

from __future__ import annotations

import ctypes
import os
import signal

import numpy as np
from tf_checks import equal, holds, run_checks
from tf_vm import failure, idle, results, run

from taskfarm import UsageError, WorkerLostError, objects
from taskfarm.vm import MPI, MsgTaskExit, MsgTaskResult

N = 0
VM = None


def check2_a_death_is_a_failed_task():
    for function, args, word in (
        (ctypes.string_at, (0,), "SIGSEGV"),
        (os._exit, (0,), "status 0"),
        (os.kill, None, "SIGKILL"),
    ):
        task = (lambda: os.kill(os.getpid(), signal.SIGKILL)) if args is None else function
        message = failure(VM, VM.spawnFunction(task, args or (), count=1))
        holds(isinstance(message.exception, WorkerLostError), message)
        holds(word in str(message.exception) and word in message.traceback, message)
        idle(VM)
    equal(run(VM, pow, (2, 3)), [8])


def check2_all_die_at_once():
    ids = VM.spawnFunction(os.abort)
    seen = []
    while len(seen) < 2 * len(ids):
        _, message = VM.receiveMessage(20)
        seen.append(type(message))
    equal(sorted(kind.__name__ for kind in seen), ["MsgTaskExit"] * len(ids) + ["MsgTaskResult"] * len(ids))
    holds(MsgTaskExit in seen and MsgTaskResult in seen, seen)
    equal(VM.freeSlots(), N - 1)


def check2_messages_through_the_rank():
    def echo(n):
        MPI.spawnerBarrier()
        objects.launch_event_loop()
        for _ in range(n):
            source, message = MPI.receiveMessage()
            MPI.sendMessage(source, (message, MPI.taskID()))
        return str(MPI.taskID()), MPI.hostID().valid(), MPI.receiveMessage(0.01)

    (task,) = VM.spawnFunction(echo, (3,), count=1)
    for message in (1, "two", np.arange(100_000.0)):
        MPI.sendMessage(task, message)
        source, message_back = VM.receiveMessage(20)
        answer, name = message_back
        equal((source, name), (task, task))
        equal(np.asarray(answer).tolist(), np.asarray(message).tolist())
    (value,) = results(VM, [task])
    equal(value, (str(task), True, ()))


def check3_messages_between_children():
    def first(other):
        MPI.sendMessage(other, np.full(50_000, 3.0))
        return MPI.receiveMessage()[1]

    def second():
        source, array = MPI.receiveMessage()
        MPI.sendMessage(source, float(array.sum()))

    (b,) = VM.spawnFunction(second, count=1)
    (a,) = VM.spawnFunction(first, (b,), count=1)
    values = dict(zip((a, b), results(VM, [a, b]), strict=True))
    equal(values[a], 150_000.0)


def check2_a_death_does_not_upset_the_count_of_messages():
    (task,) = VM.spawnFunction(lambda: MPI.receiveMessage() and os._exit(1), count=1)
    MPI.sendMessage(task, "last")
    failure(VM, [task])
    idle(VM)
    (task,) = VM.spawnFunction(MPI.receiveMessage, count=1)
    try:
        objects.call(abs, 1)  # finds out that the task waits for ever
    except UsageError as exc:
        holds("receiveMessage" in str(exc), exc)
    MPI.sendMessage(task, "now")
    equal([value[1] for value in results(VM, [task])], ["now"])
    objects.call(abs, 1)


def check2_what_a_child_may_not_do():
    handle = objects.call(objects.function_call_manage, list)
    for function, args, word in (
        (lambda: objects.comm, (), "comm"),
        (lambda obj: obj, (handle,), "managed object"),
        (lambda: MPI.sendArray(MPI.parentTaskID(), np.zeros(5)), (), "sendArray"),
    ):
        message = failure(VM, VM.spawnFunction(function, args, count=1))
        holds(isinstance(message.exception, UsageError) and word in str(message.exception), message)
        idle(VM)


def check2_parting_again_does_nothing():
    """Programs that part the ranks at their top do so again where a child imports them."""

    def part():
        MPI.spawnerBarrier()
        objects.launch_event_loop()
        objects.launch_event_loop()
        return "here"

    equal(run(VM, part), ["here"])


def check2_calls_stay_in_the_rank():
    equal(run(VM, pow, (2, 3)), [8])
    objects.call(sees_all_ranks)
    objects.call(abs, 1)


def sees_all_ranks():
    equal(objects.comm.size, N)


if __name__ == "__main__":
    VM = MPI(isolate=True)
    N = objects.size
    run_checks(globals(), N)
    VM.spawnFunction(MPI.receiveMessage)  # the end of the session ends tasks that wait
    MPI.finalize()
