"""Checks of ``taskfarm.vm``: messages between spawner and tasks, and between tasks."""

from __future__ import annotations

import threading
import time

import numpy as np
from tf_checks import equal, holds, raises, run_checks
from tf_vm import collect, idle, results, run

from taskfarm.vm import MPI, MPITaskID, MsgTaskExit, MsgTaskResult

N = 0
VM = None


def pause(seconds):
    time.sleep(seconds)


def receive_one(timeout=10.0, source=None):
    return MPI().receiveMessage(timeout, source)


def spawn(function, *args, count=1, **kwargs):
    return VM.spawnFunction(function, args=args, kwargs=kwargs, count=count)


# Waiting


def check_timeouts_without_messages():
    for timeout in (0, 0.0, 0.2, 1e-6):
        start = time.monotonic()
        equal(VM.receiveMessage(timeout), ())
        took = time.monotonic() - start
        holds(timeout <= took < timeout + 0.15, f"receiveMessage({timeout}) took {took}")
    equal(VM.receiveMessage(timeout=0, fromDestination=0), ())
    equal(VM.checkForIncoming(), False)
    equal(VM.checkForIncoming(fromDestination=0), False)


def check2_timeouts_in_a_task():
    def work():
        vm = MPI()
        start = time.monotonic()
        seen = [vm.receiveMessage(0), vm.receiveMessage(0.3), vm.checkForIncoming()]
        return seen, time.monotonic() - start

    ((seen, took),) = run(VM, work)
    equal(seen, [(), (), False])
    holds(0.3 <= took < 0.5, took)


def check2_negative_timeout_waits_for_a_message():
    ids = VM.spawnFunction(pause, args=(0.5,), count=1, sendBack=False)
    start = time.monotonic()
    sender, message = VM.receiveMessage(-1.0)
    equal((sender, type(message)), (ids[0], MsgTaskExit))
    holds(time.monotonic() - start > 0.3, "returned too early")


def check2_spawner_to_task_and_back():
    def echo():
        vm = MPI()
        sender, message = vm.receiveMessage(10)
        return sender == MPI.parentTaskID(), sender, vm.sendMessage(sender, ("echo", message))

    (task,) = spawn(echo)
    holds(VM.sendMessage(task, {"a": [1, 2]}) is True, "sendMessage did not return True")
    sender, message = VM.receiveMessage(10)
    equal((sender, message), (task, ("echo", {"a": [1, 2]})))
    equal(results(VM, [task]), [(True, MPITaskID(0, 0), True)])


def check2_any_object_is_a_message():
    def echo(n):
        vm = MPI()
        for _ in range(n):
            sender, message = vm.receiveMessage(10)
            vm.sendMessage(sender, message)

    messages = [None, 0, False, (), "", [], b"", lambda x: x + 1, np.arange(5), MsgTaskResult(True, 7)]
    (task,) = spawn(echo, len(messages))
    for sent in messages:
        VM.sendMessage(task, sent)
        received = VM.receiveMessage(10)
        holds(type(received) is tuple and len(received) == 2 and received[0] == task, received)
        seen = received[1]
        holds(type(seen) is type(sent), f"{sent!r} came as {seen!r}")
        if callable(sent):
            equal(seen(1), 2)
        elif isinstance(sent, np.ndarray):
            equal(seen.tolist(), sent.tolist())
        elif not isinstance(sent, MsgTaskResult):
            equal(seen, sent)
    results(VM, [task])


def check2_messages_of_one_sender_keep_their_order():
    def talk(n):
        vm = MPI()
        for k in range(n):
            size = (3, 200_000)[k % 7 == 0]
            vm.sendMessage(MPI.parentTaskID(), (k, np.full(size, k)))
        return n

    n = 60
    ids = spawn(talk, n, count=None)
    messages = collect(VM, ids)
    for task in ids:
        equal([k for k, _ in messages[task][:-2]], list(range(n)))
        equal([float(array.max()) for _, array in messages[task][:-2]], [float(k) for k in range(n)])
        equal([type(m) for m in messages[task][-2:]], [MsgTaskResult, MsgTaskExit])


def check2_message_sent_before_the_task_looks():
    def late():
        time.sleep(0.4)
        vm = MPI()
        waiting = vm.checkForIncoming()
        return waiting, vm.receiveMessage(0), vm.receiveMessage(0), vm.checkForIncoming()

    (task,) = spawn(late)
    VM.sendMessage(task, "early")
    equal(results(VM, [task]), [(True, (MPITaskID(0, 0), "early"), (), False)])


# Filters


def check3_filter_by_rank():
    def say(word, wait):
        time.sleep(wait)
        MPI().sendMessage(MPI.parentTaskID(), word)

    (first,) = VM.spawnFunction(say, args=("one", 0.0), count=1, sendBack=False)
    (second,) = VM.spawnFunction(say, args=("two", 0.3), count=1, sendBack=False)
    time.sleep(0.1)
    equal(VM.checkForIncoming(fromDestination=second.rank), False)
    equal(VM.checkForIncoming(fromDestination=first.rank), True)
    equal(VM.receiveMessage(0, fromDestination=second.rank), ())
    equal(VM.receiveMessage(5, fromDestination=second.rank), (second, "two"))
    sender, message = VM.receiveMessage(5, fromDestination=second.rank)
    equal((sender, type(message)), (second, MsgTaskExit))
    start = time.monotonic()
    equal(VM.receiveMessage(0.2, fromDestination=second.rank), ())
    holds(time.monotonic() - start >= 0.2, "the filter cut the time")
    equal(VM.receiveMessage(0), (first, "one"))
    collect(VM, [first])


def check3_filter_in_a_task():
    def listen(rank):
        vm = MPI()
        first = vm.receiveMessage(10, fromDestination=rank)[1]
        return [first, vm.receiveMessage(10, fromDestination=0)[1], vm.receiveMessage(0)]

    (listener,) = spawn(listen, 2)
    VM.sendMessage(listener, "of the spawner")
    (speaker,) = spawn(lambda to: MPI().sendMessage(to, "of rank 2"), listener)
    messages = collect(VM, [listener, speaker])
    equal(messages[listener][0].returnValue, ["of rank 2", "of the spawner", ()])


def check2_incoming_is_true_only_if_a_receive_succeeds():
    VM.spawnFunction(lambda: MPI().sendMessage(MPI.parentTaskID(), 1), count=1, sendBack=False)
    time.sleep(0.4)
    for _ in range(2):
        equal(VM.checkForIncoming(), True)
        equal(VM.checkForIncoming(fromDestination=1), True)
        equal(VM.checkForIncoming(fromDestination=0), False)
        holds(VM.receiveMessage(0), "checkForIncoming was wrong")
    equal(VM.checkForIncoming(), False)


# Wrong addresses


def check2_bad_destinations():
    equal(VM.sendMessage(MPITaskID.bad(), "x"), False)
    equal(VM.sendMessage(MPITaskID(N + 5, 1), "x"), False)
    equal(VM.sendMessage(MPITaskID(1, 10**6), "x"), False)
    (task,) = spawn(len, "abc")
    results(VM, [task])
    equal(VM.sendMessage(task, "too late"), False)


def check2_message_for_an_ended_task_is_dropped():
    """It is not given to the next task on that rank."""
    first, second = None, None
    for _ in range(5):
        (first,) = VM.spawnFunction(pause, args=(0.02,), count=1, sendBack=False)
        VM.sendMessage(first, "for the first")
        collect(VM, [first])
        (second,) = VM.spawnFunction(receive_one, args=(0.1,), count=1)
        equal(results(VM, [second]), [()])


def check2_misaddressed_messages_for_the_spawner_are_dropped():
    def talk(n):
        vm = MPI()
        wrong = [vm.sendMessage(MPITaskID(0, 99), "wrong number") for _ in range(n)]
        vm.sendMessage(MPITaskID(0, 0), "right")
        return wrong[0]

    (task,) = spawn(talk, 20)
    equal(VM.receiveMessage(10), (task, "right"))
    collect(VM, [task])


def check2_deadline_holds_under_stray_traffic():
    """Messages for a task number that is not there arrive all the time: one deadline bounds the receive."""

    def flood(seconds):
        vm = MPI()
        stop = time.monotonic() + seconds
        while time.monotonic() < stop:
            vm.sendMessage(MPITaskID(0, 99), "stray")
            time.sleep(0.001)

    (task,) = spawn(flood, 2.0)
    time.sleep(0.2)
    start = time.monotonic()
    equal(VM.receiveMessage(1.0), ())
    took = time.monotonic() - start
    holds(1.0 <= took < 1.1, f"receiveMessage(1.0) took {took}")
    results(VM, [task])


def check3_deadline_holds_under_other_ranks_traffic():
    def chatter(seconds):
        vm = MPI()
        stop = time.monotonic() + seconds
        n = 0
        while time.monotonic() < stop:
            vm.sendMessage(MPITaskID(0, 0), n)
            n += 1
            time.sleep(0.005)
        return n

    (task,) = spawn(chatter, 1.2)
    time.sleep(0.1)
    start = time.monotonic()
    equal(VM.receiveMessage(0.5, fromDestination=2), ())
    took = time.monotonic() - start
    holds(0.5 <= took < 0.6, took)
    messages = collect(VM, [task])[task]
    n = messages[-2].returnValue
    equal(messages[:-2], list(range(n)))


# Tasks among themselves


def check3_workers_send_to_workers():
    def ring():
        vm = MPI()
        _, neighbour = vm.receiveMessage(10, fromDestination=0)
        vm.sendMessage(neighbour, ("token", MPI.taskID().rank))
        seen = vm.receiveMessage(10)
        return seen[0].rank, seen[1]

    ids = spawn(ring, count=None)
    for task, neighbour in zip(ids, [*ids[1:], ids[0]], strict=True):
        VM.sendMessage(task, neighbour)
    n = len(ids)
    expected = [((k - 1) % n + 1, ("token", (k - 1) % n + 1)) for k in range(n)]
    equal(results(VM, ids), expected)


def check3_two_tasks_send_each_other_100_mb():
    def exchange():
        vm = MPI()
        _, peer = vm.receiveMessage(10, fromDestination=0)
        mine = np.full(12_500_000, float(MPI.taskID().rank))
        vm.sendMessage(peer, mine)
        mine[:] = -1.0
        _, other = vm.receiveMessage(30)
        return other.nbytes, float(other[0]), float(other[-1]), float(other.mean())

    ids = VM.spawnFunction(exchange, count=2)
    VM.sendMessage(ids[0], ids[1])
    VM.sendMessage(ids[1], ids[0])
    equal(results(VM, ids, 30), [(100_000_000, 2.0, 2.0, 2.0), (100_000_000, 1.0, 1.0, 1.0)])


def check2_spawner_and_task_send_each_other_100_mb():
    def exchange():
        vm = MPI()
        vm.sendMessage(MPI.parentTaskID(), np.full(12_500_000, 3.0))
        return float(vm.receiveMessage(30)[1].mean())

    (task,) = spawn(exchange)
    VM.sendMessage(task, np.full(12_500_000, 5.0))
    sender, array = VM.receiveMessage(30)
    equal((sender, float(array.mean()), array.flags.writeable), (task, 3.0, True))
    equal(results(VM, [task], 30), [5.0])


def check2_send_never_blocks_on_a_busy_receiver():
    (task,) = spawn(lambda: (time.sleep(1.0), [MPI().receiveMessage(10)[1].nbytes for _ in range(4)])[1])
    time.sleep(0.1)
    array = np.zeros(1_000_000)
    start = time.monotonic()
    for _ in range(4):
        VM.sendMessage(task, array)
        array += 1.0
    took = time.monotonic() - start
    holds(took < 0.5, f"blocked for {took} s")
    equal(results(VM, [task]), [[8_000_000] * 4])


def check2_message_may_be_changed_after_the_send():
    (task,) = spawn(lambda: (time.sleep(0.3), [MPI().receiveMessage(10)[1].tolist()[:2] for _ in range(6)])[1])
    for size in (2, 5_000, 2_000_000):
        array = np.zeros(size)
        for k in range(2):
            array[:] = k
            VM.sendMessage(task, array)
            array[:] = -1.0
    equal(results(VM, [task]), [[[0.0, 0.0], [1.0, 1.0]] * 3])


def check2_unpicklable_message_is_an_error_and_sends_nothing():
    (task,) = spawn(receive_one)
    with raises(Exception):
        VM.sendMessage(task, threading.Lock())
    VM.sendMessage(task, "good")
    equal(results(VM, [task]), [(MPITaskID(0, 0), "good")])


def check2_many_messages_to_a_busy_receiver():
    def slow(n):
        time.sleep(0.3)
        vm = MPI()
        return [vm.receiveMessage(10)[1] for _ in range(n)]

    (task,) = spawn(slow, 2000)
    for k in range(2000):
        VM.sendMessage(task, k)
    equal(results(VM, [task]), [list(range(2000))])


# Other traffic


def check3_tasks_own_world_traffic_is_untouched():
    """Any tag, any source, nonblocking and collective: user messages on COMM_WORLD and ours never meet."""

    def world(peers):
        from mpi4py import MPI as mpi

        comm, vm = mpi.COMM_WORLD, MPI()
        mine = MPI.taskID().rank
        other = peers[1] if mine == peers[0] else peers[0]
        requests = [comm.isend(("user", mine, tag), dest=other, tag=tag) for tag in (0, 1, 2, 99, 4095)]
        _, word = vm.receiveMessage(10)
        status = mpi.Status()
        seen = sorted(comm.recv(source=mpi.ANY_SOURCE, tag=mpi.ANY_TAG, status=status)[2] for _ in range(5))
        mpi.Request.waitall(requests)
        sub = comm.Create_group(comm.group.Incl(peers))
        total = sub.allreduce(mine)
        sub.Free()
        return word, seen, total, comm.iprobe()

    peers = [1, 2]
    ids = VM.spawnFunction(world, args=(peers,), count=2)
    for task in ids:
        VM.sendMessage(task, "ours")
    equal(results(VM, ids), [("ours", [0, 1, 2, 99, 4095], 3, False)] * 2)


def check2_spawners_own_world_traffic_is_untouched():
    from mpi4py import MPI as mpi

    def answer():
        comm = mpi.COMM_WORLD
        comm.send(("world", comm.recv(source=0, tag=mpi.ANY_TAG)), dest=0, tag=7)
        return "done"

    pending = mpi.COMM_WORLD.irecv(source=mpi.ANY_SOURCE, tag=mpi.ANY_TAG)
    (task,) = spawn(answer)
    mpi.COMM_WORLD.send("question", dest=1, tag=5)
    equal(results(VM, [task]), ["done"])
    equal(pending.wait(), ("world", "question"))


if __name__ == "__main__":
    MPI.spawnerBarrier()
    VM = MPI()
    N = MPI.slots()
    run_checks(globals(), N, after_each=lambda: idle(VM))
    VM.finalize()
