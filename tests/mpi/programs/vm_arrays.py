"""Checks of ``taskfarm.vm``: arrays from the memory of one task into memory that another one owns."""

from __future__ import annotations

import array
import itertools
import time

import numpy as np
from tf_checks import equal, holds, raises, run_checks
from tf_vm import collect, failure, idle, results, run

from taskfarm import objects
from taskfarm.errors import UsageError
from taskfarm.vm import MPI, MPITaskID

N = 0
VM = None
LARGE = 1_000_003  # float64: far above every eager limit
RECORD = np.dtype([("a", "f8"), ("b", ">i4")])
DTYPES = ("f8", "i2", "c16", ">f4", "M8[ns]", "S5", "?", RECORD)
SHAPES = ((), (0,), (0, 3), (7,), (7, 3), (7, 3, 4), (300, 301))


def spawn(function, *args, count=1):
    return VM.spawnFunction(function, args=args, count=count)


def filled(shape, dtype, order="C"):
    return np.array(
        (np.arange(int(np.prod(shape)) * np.dtype(dtype).itemsize) % 101).astype("u1").view(dtype).reshape(shape),
        order=order,
    )


def echo(n, *out):
    """Receive n arrays from anybody into the same memory and send each back to its sender."""
    vm = MPI()
    memory = np.zeros(*out)
    for _ in range(n):
        sender = vm.receiveArray(None, memory)
        holds(vm.sendArray(sender, memory) is True, "the echo was not taken")


def pause(seconds):
    time.sleep(seconds)


def refusal(attempt, *parts):
    with raises(UsageError) as caught:
        attempt()
    for part in parts:
        holds(part in str(caught.exception), f"{part!r} is not in {caught.exception}")


# What arrives


def check2_every_dtype_shape_and_order_there_and_back():
    def work(kinds):
        vm = MPI()
        for dtype, shape, order in kinds:
            memory = np.zeros(shape, dtype, order)
            equal(vm.receiveArray(0, memory), MPI.parentTaskID())
            holds(vm.sendArray(MPI.parentTaskID(), memory), "not taken")

    kinds = list(itertools.product(DTYPES, SHAPES, "CF"))
    (task,) = spawn(work, kinds)
    for dtype, shape, order in kinds:
        sent, back = filled(shape, dtype, order), np.zeros(shape, dtype, order)
        holds(VM.sendArray(task, sent) is True, "not taken")
        equal(VM.receiveArray(task, back), task)
        holds(sent.tobytes() == back.tobytes(), f"{dtype} {shape} {order}")
    results(VM, [task])


def check2_the_memory_is_the_receivers_own_and_the_senders_may_change():
    def work():
        vm = MPI()
        whole = np.zeros(3 * LARGE)
        middle = whole[LARGE : 2 * LARGE]
        address = middle.ctypes.data
        vm.receiveArray(0, middle)
        first = middle.ctypes.data == address and not whole[:LARGE].any() and not whole[2 * LARGE :].any()
        return first and bool((middle == np.arange(LARGE)).all())

    (task,) = spawn(work)
    sent = np.arange(float(LARGE))
    VM.sendArray(task, sent)
    sent[:] = -1
    equal(results(VM, [task]), [True])


def check2_many_in_a_row_keep_their_order():
    n = 300
    (task,) = spawn(echo, n, 20_000)
    sent, back = np.zeros(20_000), np.zeros(20_000)
    for k in range(n):
        sent[:] = k
        holds(VM.sendArray(task, sent), k)
        sent[:] = -1
        equal(VM.receiveArray(None, back), task)
        holds((back == k).all(), k)
    results(VM, [task])


def check3_from_task_to_task():
    def work(n):
        vm = MPI()
        _, peer = vm.receiveMessage(10)
        mine, memory = np.full(LARGE, float(MPI.taskID().rank)), np.zeros(LARGE)
        for _ in range(n):
            if MPI.taskID().rank < peer.rank:
                ok = vm.sendArray(peer, mine), vm.receiveArray(peer, memory)
            else:
                ok = vm.receiveArray(peer, memory), vm.sendArray(peer, mine)
            holds(set(ok) == {True, peer}, ok)
        return set(memory.tolist()) == {float(peer.rank)}

    first, second = spawn(work, 5, count=2)
    VM.sendMessage(first, second)
    VM.sendMessage(second, first)
    equal(results(VM, [first, second]), [True, True])


def check3_a_ring_of_all_ranks():
    def pass_on():
        vm = MPI()
        _, right = vm.receiveMessage(10)
        memory = np.zeros(LARGE)
        vm.receiveArray(None, memory)
        memory += 1
        return vm.sendArray(right, memory)

    ids = spawn(pass_on, count=None)
    for task, right in zip(ids, [*ids[1:], MPI.taskID()], strict=True):
        VM.sendMessage(task, right)
    memory = np.zeros(LARGE)
    holds(VM.sendArray(ids[0], memory), "not taken")
    equal(VM.receiveArray(ids[-1], memory), ids[-1])
    equal(set(memory.tolist()), {float(len(ids))})
    equal(results(VM, ids), [True] * len(ids))


def check3_source_chooses():
    def work(value):
        vm = MPI()
        return vm.sendArray(MPI.parentTaskID(), np.full(LARGE, value))

    memory = np.zeros(LARGE)
    for choose in (lambda task: task, lambda task: task.rank):
        ids = [spawn(work, 1.0)[0], spawn(work, 2.0)[0]]
        for task, value in ((ids[1], 2.0), (ids[0], 1.0)):
            equal(VM.receiveArray(choose(task), memory), task)
            equal(set(memory.tolist()), {value})
        equal(results(VM, ids), [True, True])
    ids = spawn(work, 3.0, count=None)
    senders = {VM.receiveArray(None, memory) for _ in ids}
    equal(senders, set(ids))
    results(VM, ids)


def check2_large_messages_pass_an_array_that_nobody_claims():
    def work():
        vm = MPI()
        seen = []
        for _ in range(5):
            sender, message = vm.receiveMessage(10)
            seen.append((sender == MPI.parentTaskID(), float(message.sum())))
        seen.append(vm.checkForIncoming())
        seen.append(vm.receiveMessage(0))
        memory = np.zeros(LARGE)
        seen.append(vm.receiveArray(0, memory, 0) is None)
        vm.sendMessage(MPI.parentTaskID(), "now")
        vm.receiveArray(0, memory)
        return [*seen, float(memory.sum())]

    (task,) = spawn(work)
    equal(VM.sendArray(task, np.ones(LARGE), 0.2), False)
    for k in range(5):
        VM.sendMessage(task, np.full(300_000, float(k)))
    equal(VM.receiveMessage(10), (task, "now"))
    holds(VM.sendArray(task, np.ones(LARGE)), "not taken")
    ((*sums, more, message, nothing, total),) = results(VM, [task])
    equal(sums, [(True, 300_000.0 * k) for k in range(5)])
    equal((more, message, nothing, total), (False, (), True, float(LARGE)))


def check2_arrays_are_no_messages():
    def work():
        return MPI().sendArray(MPI.parentTaskID(), np.ones(5))

    (task,) = spawn(work)
    time.sleep(0.2)
    equal(VM.checkForIncoming(), False)
    equal(VM.receiveMessage(0.1), ())
    memory = np.zeros(5)
    equal(VM.receiveArray(task, memory), task)
    equal(results(VM, [task]), [True])


# Memory that does not fit


MISFITS = [
    (np.zeros(LARGE), np.zeros(LARGE + 1), "shape"),
    (np.zeros(LARGE), np.zeros(LARGE, "f4"), "dtype"),
    (np.zeros(5), np.zeros(5, ">f8"), "dtype"),
    (np.zeros((40, 50)), np.zeros((40, 50), order="F"), "order"),
    (np.zeros((40, 50)), np.zeros((50, 40), order="F"), "shape"),
    (np.zeros(4, RECORD), np.zeros(4, [("a", "f8"), ("c", ">i4")]), "dtype"),
]


def check2_both_sides_raise_where_memory_does_not_fit_and_go_on():
    def receive(memories):
        vm = MPI()
        texts = []
        for memory in memories:
            try:
                vm.receiveArray(0, memory)
            except UsageError as exc:
                texts.append(str(exc))
            if memory.tobytes().strip(b"\0"):
                texts.append("memory was written to")
        final = np.zeros(LARGE)
        vm.receiveArray(None, final)
        return texts, float(final.sum())

    (task,) = spawn(receive, [out for _, out, _ in MISFITS])
    for sent, out, what in MISFITS:
        refusal(lambda sent=sent: VM.sendArray(task, sent), "array has shape", f"{what} ", str(out.shape), str(task))
    VM.sendArray(task, np.ones(LARGE))
    ((texts, total),) = results(VM, [task])
    equal(total, float(LARGE))
    equal(len(texts), len(MISFITS))
    for text, (sent, out, _) in zip(texts, MISFITS, strict=True):
        holds(all(part in text for part in ("receiveArray", "0:0", str(sent.shape), str(out.shape))), text)


def check2_one_dimension_has_no_order():
    def work():
        memory = np.zeros((6, 1), order="F")
        MPI().receiveArray(0, memory)
        return memory.ravel().tolist()

    (task,) = spawn(work)
    VM.sendArray(task, np.arange(6.0).reshape(6, 1))
    equal(results(VM, [task]), [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])


def check2_a_long_description_is_cut_not_lost():
    many = np.dtype([(f"a_field_with_a_long_name_{k}", "f8") for k in range(100)])

    def work(dtype):
        try:
            MPI().receiveArray(0, np.zeros(3, dtype))
        except UsageError as exc:
            return str(exc)

    (task,) = spawn(work, many)
    refusal(lambda: VM.sendArray(task, np.zeros(4)), "shape (3,)", "a_long_name_0")
    holds("shape (4,)" in results(VM, [task])[0], "not told")


# Time limits


def check2_nothing_comes_in_time():
    def work():
        vm = MPI()
        memory = np.full(5, 7.0)
        start = time.monotonic()
        seen = [vm.receiveArray(source, memory, timeout) for source in (None, 0) for timeout in (0, 0.2)]
        return seen, time.monotonic() - start, memory.tolist()

    ((seen, took, memory),) = run(VM, work)
    equal((seen, memory), ([None] * 4, [7.0] * 5))
    holds(0.4 <= took < 0.7, took)


def check2_a_sender_gives_up_in_time_while_the_receiver_computes():
    def work():
        vm = MPI()
        start = time.monotonic()
        while time.monotonic() < start + 0.8:
            pass
        first = vm.receiveArray(0, np.zeros(LARGE), 0.3)
        memory = np.zeros(LARGE)
        vm.receiveArray(0, memory)
        return first, float(memory[0])

    (task,) = spawn(work)
    sent = np.ones(LARGE)
    for timeout in (0.0, 0.2):
        start = time.monotonic()
        equal(VM.sendArray(task, sent, timeout), False)
        holds(timeout <= time.monotonic() - start < timeout + 0.2, "not in time")
        sent += 1
    time.sleep(1.2)
    equal(VM.sendArray(task, sent), True)
    equal(results(VM, [task]), [(None, 3.0)])


def check2_either_both_or_none_succeed_however_claims_and_time_limits_cross():
    n = 400  # with limits from 20 us to 80 ms, some of which are too short, and some long enough, on any machine

    def work(n):
        vm = MPI()
        memory = np.zeros(3000)
        received = []
        for k in range(n):
            if vm.receiveArray(0, memory, 2e-5 * 4 ** (k % 7)) is not None:
                received.append(memory[0])
                holds((memory == memory[0]).all(), "torn")
        while vm.receiveArray(0, memory, 0.5) is not None:
            received.append(memory[0])
        return received

    (task,) = spawn(work, n)
    taken = []
    for k in range(n):
        if VM.sendArray(task, np.full(3000, float(k)), 2e-5 * 4 ** (3 * k % 7)):
            taken.append(float(k))
    (received,) = results(VM, [task])
    equal(received, taken)
    holds(taken, "nothing was ever received")


def check3_the_same_between_many():
    def work(peers, n):
        vm = MPI()
        _, peers = vm.receiveMessage(10)
        me = MPI.taskID()
        memory = np.zeros(3000)
        taken, received = [], []
        others = [peer for peer in peers if peer != me]
        for k in range(n):
            dest = others[k % len(others)]
            if vm.sendArray(dest, np.full(3000, float(k)), (k * me.number % 13) * 2e-5):
                taken.append((dest.rank, float(k)))
            sender = vm.receiveArray(None, memory, (k * me.number % 7) * 2e-5)
            if sender is not None:
                received.append((sender.rank, memory[0]))
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            sender = vm.receiveArray(None, memory, 0.05)
            if sender is not None:
                received.append((sender.rank, memory[0]))
        return taken, received

    ids = spawn(work, None, 300, count=None)
    for task in ids:
        VM.sendMessage(task, ids)
    found = results(VM, ids, 20)
    sent = sorted((task.rank, *item) for task, (taken, _) in zip(ids, found, strict=True) for item in taken)
    got = sorted((src, task.rank, k) for task, (_, received) in zip(ids, found, strict=True) for src, k in received)
    equal(got, sent)


def check3_two_that_both_send_first_give_up():
    def work():
        vm = MPI()
        _, peer = vm.receiveMessage(10)
        return vm.sendArray(peer, np.ones(10), 0.4)

    first, second = spawn(work, count=2)
    VM.sendMessage(first, second)
    VM.sendMessage(second, first)
    equal(results(VM, [first, second]), [False, False])


def check2_a_sender_that_waits_for_long_rests():
    def work():
        used = time.process_time()
        ok = MPI().sendArray(MPI.parentTaskID(), np.ones(LARGE))
        return ok, time.process_time() - used

    (task,) = spawn(work)
    time.sleep(2.0)
    memory = np.zeros(LARGE)
    equal(VM.receiveArray(task, memory), task)
    ((ok, used),) = results(VM, [task])
    holds(ok and used < 0.4, f"used {used} s of CPU in 2 s")


def check2_a_receiver_that_waits_for_long_rests():
    def work():
        used = time.process_time()
        sender = MPI().receiveArray(None, np.zeros(LARGE))
        return sender == MPI.parentTaskID(), time.process_time() - used

    (task,) = spawn(work)
    time.sleep(2.0)
    holds(VM.sendArray(task, np.ones(LARGE)), "not taken")
    ((ok, used),) = results(VM, [task])
    holds(ok and used < 0.4, f"used {used} s of CPU in 2 s")


# Tasks that end


def check2_a_receiver_that_ends_releases_the_sender():
    def boom():
        time.sleep(0.3)
        raise ValueError("boom")

    for function, args in ((pause, (0.0,)), (pause, (0.3,)), (boom, ())):
        (task,) = spawn(function, *args)
        equal(VM.sendArray(task, np.ones(LARGE)), False)
        collect(VM, [task])
        equal(VM.sendArray(task, np.ones(LARGE)), False)


def check3_a_receiver_that_ends_releases_another_task():
    def work():
        vm = MPI()
        _, peer = vm.receiveMessage(10)
        return vm.sendArray(peer, np.ones(LARGE)), vm.sendArray(peer, np.ones(3))

    (task,) = spawn(work)
    (peer,) = spawn(pause, 0.4)
    VM.sendMessage(task, peer)
    equal(results(VM, [task, peer]), [(False, False), None])


def check2_tasks_that_never_were():
    for task in (MPITaskID.bad(), MPITaskID(N, 1), MPITaskID(1, 10**6), MPITaskID(0, 1)):
        equal(VM.sendArray(task, np.ones(3)), False)

    def work(rank):
        vm = MPI()
        mine = MPI.taskID()
        gone = [MPITaskID.bad(), MPITaskID(rank, 0), MPITaskID(mine.rank, mine.number + 1), MPITaskID(0, 5)]
        return [vm.sendArray(task, np.ones(3), 5.0) for task in gone]

    equal(run(VM, work, args=(N - 1,)), [[False] * 4])


def check2_an_array_for_a_coming_task_waits_for_it():
    (task,) = spawn(pause, 0.2)
    collect(VM, [task])

    def early(number):
        return MPI().sendArray(MPITaskID(1, number), np.arange(5.0))

    def late():
        memory = np.zeros(5)
        return MPI().receiveArray(None, memory), memory.tolist()

    if N > 2:
        (hold,) = VM.spawnFunction(pause, args=(0.5,), count=1)
        (sender,) = spawn(early, hold.number + 2)
        collect(VM, [hold])
        (receiver,) = spawn(late)
        equal((receiver.rank, receiver.number), (1, hold.number + 2))
        equal(results(VM, [sender, receiver]), [True, (sender, [0.0, 1.0, 2.0, 3.0, 4.0])])


def check2_a_sender_that_fails_first_releases_the_spawner():
    def boom(seconds):
        time.sleep(seconds)
        raise ValueError("boom")

    memory = np.full(5, 3.0)
    for source in (lambda task: task, lambda task: task.rank, lambda task: None):
        for seconds in (0.0, 0.3):
            (task,) = spawn(boom, seconds)
            equal(VM.receiveArray(source(task), memory), None)
            holds("boom" in str(failure(VM, [task]).exception), "other failure")
        equal(VM.receiveArray(source(task), memory), None)
    equal(memory.tolist(), [3.0] * 5)


def check2_the_spawner_waits_while_others_may_send():
    def late():
        time.sleep(0.4)
        return MPI().sendArray(MPI.parentTaskID(), np.ones(5))

    ids = [spawn(pause, 0.1)[0] if N > 2 else None, spawn(late)[0]]
    equal(VM.receiveArray(None, np.zeros(5)), ids[1])
    collect(VM, [task for task in ids if task is not None])


# Wrong use


def check_wrong_arguments():
    fine = np.zeros(4)
    other = MPITaskID(N - 1, 10**6)
    refusal(lambda: VM.sendArray(0, fine), "destination=0", "MPITaskID")
    refusal(lambda: VM.sendArray(MPITaskID(0, 0), fine), "calling task")
    refusal(lambda: VM.sendArray(other, [1.0]), "array (builtins.list)", "offers no memory")
    refusal(lambda: VM.sendArray(other, np.zeros((4, 4))[::2]), "array", "not contiguous", "ascontiguousarray(array)")
    refusal(lambda: VM.sendArray(other, np.array([{}])), "array has dtype object")
    refusal(lambda: VM.sendArray(other, None), "array (builtins.NoneType)")
    for source in (0, MPITaskID(0, 0)):
        refusal(lambda source=source: VM.receiveArray(source, fine), "source", "calling task")
    for source in (-1, N, "1", MPITaskID.bad()):
        refusal(lambda source=source: VM.receiveArray(source, fine), "source=", "neither a rank")
    refusal(lambda: VM.receiveArray(None, b"abc"), "out (bytes)", "read-only")
    refusal(lambda: VM.receiveArray(None, np.zeros((4, 4))[:, 1]), "out", "not contiguous")


def check2_wrong_use_in_a_task():
    def work():
        vm, texts = MPI(), []
        for attempt in (
            lambda: vm.sendArray(MPI.taskID(), np.zeros(3)),
            lambda: vm.receiveArray(MPI.taskID(), np.zeros(3)),
            lambda: vm.receiveArray(MPI.taskID().rank, np.zeros(3)),
        ):
            try:
                texts.append(attempt())
            except UsageError as exc:
                texts.append("calling task" in str(exc))
        return texts

    equal(run(VM, work), [[True] * 3])


def check_one_rank_alone():
    if N > 1:
        return
    refusal(lambda: VM.receiveArray(None, np.zeros(3)), "calling task")
    equal(VM.sendArray(MPITaskID(1, 1), np.zeros(3)), False)


def check2_inside_a_call():
    def attempt(task):
        texts = []
        for use in (lambda: MPI.sendArray(task, np.zeros(3)), lambda: MPI.receiveArray(None, np.zeros(3))):
            try:
                texts.append(use())
            except UsageError as exc:
                texts.append("inside a collective call" in str(exc))
        return texts

    equal(objects.call_all(attempt, MPITaskID(0, 0)), [[True, True]] * N)


def check2_a_call_names_tasks_that_wait_for_ever():
    def sends():
        return MPI().sendArray(MPI.parentTaskID(), np.ones(LARGE))

    def receives():
        memory = np.zeros(LARGE)
        return MPI().receiveArray(0, memory) == MPI.parentTaskID() and float(memory.sum())

    memory = np.zeros(LARGE)
    (task,) = spawn(sends)
    refusal(lambda: objects.call(len, ()), f"task {task}", "sendArray")
    equal(VM.receiveArray(task, memory), task)
    equal(results(VM, [task]), [True])
    (task,) = spawn(receives)
    refusal(lambda: objects.call(len, ()), f"task {task}", "receiveArray")
    equal(VM.sendArray(task, memory), True)
    equal(results(VM, [task]), [float(LARGE)])
    equal(objects.call(len, ()), 0)


def check2_withdrawn_offers_do_not_upset_the_search_for_such_tasks():
    def work():
        vm = MPI()
        vm.receiveMessage(10)
        for timeout in (0.0, 1e-4, 0.05):
            vm.sendArray(MPI.parentTaskID(), np.ones(5), timeout)
        return vm.receiveMessage(-1)[1]

    (task,) = spawn(work)
    VM.sendMessage(task, "go")
    for timeout in (0.0, 1e-4, 0.05):
        VM.sendArray(task, np.ones(5), timeout)
    refusal(lambda: objects.call(len, ()), f"task {task}")
    VM.sendMessage(task, "on")
    equal(results(VM, [task]), ["on"])


# What offers memory


class Interface:
    def __init__(self, inner):
        self.inner = inner
        self.__array_interface__ = inner.__array_interface__


class Capsule:
    def __init__(self, inner):
        self.inner = inner

    def __dlpack__(self, **kwargs):
        return self.inner.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.inner.__dlpack_device__()


def check2_other_providers_of_memory():
    (task,) = spawn(echo, 8, 6, "u1")
    sent = bytes(range(6))
    targets = [bytearray(6), memoryview(bytearray(6)), array.array("B", bytes(6)), Interface(np.zeros(6, "u1"))]
    targets += [np.zeros(6, "u1")] * 4
    sources = [sent, bytearray(sent), memoryview(sent), array.array("B", sent), Interface(np.frombuffer(sent, "u1"))]
    sources += [Capsule(np.array(list(sent), "u1")), np.frombuffer(sent, "u1"), np.array(list(sent), "u1")]
    for source, target in zip(sources, targets, strict=True):
        holds(VM.sendArray(task, source), source)
        equal(VM.receiveArray(task, target), task)
        equal(bytes(target.inner if isinstance(target, Interface) else target), sent)
    results(VM, [task])


if __name__ == "__main__":
    objects.launch_event_loop()
    if objects.rank0:
        VM = MPI()
        N = MPI.slots()
        run_checks(globals(), N, after_each=lambda: idle(VM))
        VM.finalize()
