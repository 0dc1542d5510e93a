"""Checks of both faces in one program: tasks and collective calls over the same ranks."""

from __future__ import annotations

import sys
import time

import numpy as np
from tf_checks import equal, holds, raises, run_checks
from tf_vm import collect, failure, idle, results, run

from taskfarm import objects
from taskfarm.errors import UsageError
from taskfarm.vm import MPI, MsgTaskExit, MsgTaskResult

N = 0
VM = None


class Part:
    def __init__(self, offset):
        self.value = offset + objects.rank

    def add(self, x):
        self.value += x
        return self.value


def make_parts(offset=100):
    return objects.call(objects.function_call_manage, Part, offset)


def check_calls_and_tasks_alternate():
    for k in range(5):
        equal(objects.call_all(lambda k=k: (objects.rank, k)), [(r, k) for r in range(N)])
        ids = VM.spawnFunction(lambda k=k: (objects.rank, k))
        equal(results(VM, ids), [(r, k) for r in range(1, N)])


def check_slots_agree_with_ranks():
    equal((MPI.slots(), objects.size), (N, N))
    ids = VM.spawnFunction(lambda: (MPI.taskID().rank, objects.rank, objects.size, objects.rank0, objects.parallel))
    equal(results(VM, ids), [(r, r, N, False, True) for r in range(1, N)])


def check2_object_id_maps_to_the_ranks_own_part():
    oid = make_parts()
    ids = VM.spawnFunction(lambda part: part.value, args=(oid,))
    equal(results(VM, ids), [100 + r for r in range(1, N)])
    ids = VM.spawnFunction(lambda part=None: part.value, kwargs={"part": oid})
    equal(results(VM, ids), [100 + r for r in range(1, N)])
    ids = VM.spawnFunction(lambda part: part.add(1000), args=(oid,))
    results(VM, ids)
    equal(objects.call_all(objects.method_call, oid, "add", 0), [100] + [1100 + r for r in range(1, N)])


def check2_object_id_maps_at_top_level_only():
    oid = make_parts()
    ids = VM.spawnFunction(lambda box: type(box[0]).__name__, args=([oid],))
    equal(results(VM, ids), ["ObjectId"] * (N - 1))


def check2_unknown_object_id_fails_the_task():
    oid = make_parts()
    objects.call(objects.remove_object, oid)
    message = failure(VM, VM.spawnFunction(lambda part: part.value, args=(oid,), count=1))
    holds(str(int(oid)) in message.traceback, message.traceback)


def check2_handle_that_dies_after_the_spawn_stays_for_the_task():
    """The task was spawned before the handle died: it still finds its part."""
    ids = VM.spawnFunction(lambda part: (time.sleep(0.3), part.value)[1], args=(make_parts(),))
    equal(results(VM, ids), [100 + r for r in range(1, N)])


def check2_call_with_tasks_outstanding_waits_for_them():
    """`call` serves messages until every task has exited, then runs; the messages are delivered afterwards."""
    ids = VM.spawnFunction(lambda: (time.sleep(0.5), objects.rank)[1])
    free = VM.freeSlots()
    start = time.monotonic()
    equal(objects.call(lambda: objects.comm.allreduce(1)), N)
    holds(time.monotonic() - start > 0.4, "the call did not wait for the tasks")
    equal(VM.freeSlots(), free)
    equal(results(VM, ids), list(range(1, N)))


def check2_call_serves_tasks_that_send_much():
    """Large messages of running tasks are received while `call` waits, and kept in order."""

    def talk():
        own = MPI()
        for k in range(5):
            own.sendMessage(MPI.parentTaskID(), np.full(500_000, k))
        return objects.rank

    ids = VM.spawnFunction(talk)
    equal(objects.call_all(lambda: objects.rank), list(range(N)))
    messages = collect(VM, ids)
    for task in ids:
        equal([float(a[0]) for a in messages[task][:5]], [0.0, 1.0, 2.0, 3.0, 4.0])
        equal([type(m) for m in messages[task][5:]], [MsgTaskResult, MsgTaskExit])


def check3_call_serves_tasks_that_talk_to_each_other():
    def exchange():
        own = MPI()
        _, peer = own.receiveMessage(10, fromDestination=0)
        own.sendMessage(peer, np.zeros(200_000))
        return own.receiveMessage(10)[1].nbytes

    ids = VM.spawnFunction(exchange, count=2)
    VM.sendMessage(ids[0], ids[1])
    VM.sendMessage(ids[1], ids[0])
    equal(objects.call(lambda: objects.comm.allreduce(1)), N)
    equal(results(VM, ids), [1_600_000] * 2)


def check2_call_with_a_task_that_waits_for_a_message():
    """Nothing can end the wait: a clear error that names the task; after a message all goes on."""
    (task,) = VM.spawnFunction(lambda: MPI().receiveMessage(-1)[1], count=1)
    time.sleep(0.2)
    before = objects._object_counter
    start = time.monotonic()
    with raises(UsageError, match=str(task)):
        objects.call(objects.function_call_manage, list)
    holds(time.monotonic() - start < 3.0, "the error came late")
    equal(objects._object_counter, before)
    VM.sendMessage(task, "go on")
    equal(objects.call_all(lambda: 1), [1] * N)
    equal(results(VM, [task]), ["go on"])


def check2_call_right_after_such_a_spawn():
    (task,) = VM.spawnFunction(lambda: MPI().receiveMessage(-1)[1], count=1)
    with raises(UsageError, match=str(task)):
        objects.call(len, ())
    VM.sendMessage(task, "go on")
    equal(results(VM, [task]), ["go on"])


def check3_one_waits_one_works():
    """The error comes when the last working task is done, not before its message could come."""

    def work(peer):
        time.sleep(0.5)
        MPI().sendMessage(peer, "from the other task")

    (waiting,) = VM.spawnFunction(lambda: MPI().receiveMessage(-1)[1], count=1)
    (working,) = VM.spawnFunction(work, args=(waiting,), count=1)
    equal(objects.call(lambda: objects.comm.allreduce(1)), N)
    messages = collect(VM, [waiting, working])
    equal(messages[waiting][0].returnValue, "from the other task")


def check2_task_that_waits_with_a_timeout_is_waited_for():
    (task,) = VM.spawnFunction(lambda: MPI().receiveMessage(0.7), count=1)
    equal(objects.call_all(lambda: 1), [1] * N)
    equal(results(VM, [task]), [()])


def attempts():
    """Which of the forbidden things work inside a call or a task."""
    wrong = []
    for name, attempt in (
        ("call", lambda: objects.call(len, ())),
        ("spawnFunction", lambda: MPI().spawnFunction(len, args=("",), count=1)),
    ):
        try:
            attempt()
        except UsageError as exc:
            if not str(exc):
                wrong.append(f"{name}: no text")
        else:
            wrong.append(f"{name}: no error")
    return wrong


def check2_no_spawn_and_no_call_inside_a_task():
    equal(run(VM, attempts, count=None), [[]] * (N - 1))


def check2_no_spawn_and_no_receive_inside_a_call():
    def inside():
        wrong = []
        for name, attempt in (
            ("spawnFunction", lambda: MPI().spawnFunction(len, args=("",), count=1)),
            ("receiveMessage", lambda: MPI().receiveMessage(0)),
        ):
            try:
                attempt()
            except UsageError as exc:
                if not str(exc):
                    wrong.append(f"{name}: no text")
            else:
                wrong.append(f"{name}: no error")
        return wrong

    equal(objects.call_all(inside), [[]] * N)


def check2_failing_task_between_calls():
    (task,) = VM.spawnFunction(lambda: 1 // 0, count=1)
    equal(objects.call_all(lambda: 1), [1] * N)
    holds(failure(VM, [task]).success is False, "result")
    objects.call(lambda: 1 // 0 if objects.rank == 1 else None)
    time.sleep(0.3)
    from taskfarm.errors import RemoteError

    with raises(RemoteError):
        objects.call(len, ())
    equal(run(VM, len, ("abc",)), [3])


def check2_comm_in_tasks():
    """Tasks that run at the same time may talk over `comm`; calls see nothing of it."""

    def talk():
        comm = objects.comm
        if comm.rank == 1:
            comm.send("between tasks", dest=1 % (N - 1) + 1, tag=3)
        if comm.rank == 1 % (N - 1) + 1:
            return comm.recv(source=1, tag=3)
        return None

    if N > 2:
        ids = VM.spawnFunction(talk)
        equal(results(VM, ids)[1], "between tasks")
    equal(objects.call_all(lambda: objects.comm.allreduce(1)), [N] * N)


def check2_handle_death_while_tasks_run():
    """Finalizers queue; the removal goes out with a later call."""
    (task,) = VM.spawnFunction(time.sleep, args=(0.3,), count=1)
    oid = make_parts()
    number = int(oid)
    del oid
    results(VM, [task])
    equal(objects.call_all(lambda i: i in objects._managed_objects, number), [False] * N)


def check_loop_state():
    equal(objects.event_loop_settings()["auto_launch"], False)
    equal(objects._event_loop_running, True)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "vm":
        MPI.spawnerBarrier()
        objects.launch_event_loop()
    else:
        objects.launch_event_loop()
        if not objects.rank0:
            sys.exit(0)
        MPI.spawnerBarrier()
    VM = MPI()
    N = MPI.slots()
    run_checks(globals(), N, after_each=lambda: idle(VM))
    VM.finalize()
