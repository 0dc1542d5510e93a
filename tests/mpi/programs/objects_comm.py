"""Checks of ``taskfarm.objects.comm``: a real communicator for what pickle cannot carry, free of other traffic."""

from __future__ import annotations

import gc
import pickle
import sys
import time

import numpy as np
from mpi4py import MPI
from tf_checks import equal, holds, raises, run_checks

from taskfarm import objects


def values(fn, *args):
    return objects.call_all(fn, *args)


def check_comm_is_an_mpi4py_communicator():
    def look():
        comm = objects.comm
        same = MPI.Comm.Compare(comm, MPI.COMM_WORLD) in (MPI.IDENT, MPI.CONGRUENT)
        return isinstance(comm, MPI.Intracomm), same, comm.Get_rank() == objects.rank, comm.Get_size() == objects.size

    equal(values(look), [(True,) * 4] * objects.size)


def check_comm_serves_c_codes():
    def use():
        comm = objects.comm
        holds(MPI._addressof(comm) != 0 and isinstance(comm.py2f(), int), "handle")
        dup = comm.Dup()
        half = comm.Split(color=comm.rank % 2, key=comm.rank)
        total = dup.allreduce(comm.rank)
        sizes = half.size
        dup.Free()
        half.Free()
        return total, sizes

    n = objects.size
    equal(values(use), [(n * (n - 1) // 2, (n + 1 - r % 2) // 2) for r in range(n)])


def check_pickler_of_mpi4py_is_untouched():
    def look():
        try:
            MPI.pickle.dumps(lambda: 1)
        except (pickle.PicklingError, AttributeError):
            return "plain pickle"
        return "changed"

    equal(values(look), ["plain pickle"] * objects.size)


def check_collectives_carry_closures():
    n = objects.size

    def rank_use():
        offset = 10
        comm = objects.comm
        seen = {"bcast": comm.bcast(lambda: offset, root=0)()}
        gathered = comm.gather(lambda r=comm.rank: r + offset, root=0)
        seen["gather"] = [f() for f in gathered] if comm.rank == 0 else gathered
        jobs = [lambda r=r: r * offset for r in range(comm.size)] if comm.rank == 0 else None
        seen["scatter"] = comm.scatter(jobs, root=0)()
        seen["allgather"] = [f() for f in comm.allgather(lambda r=comm.rank: r)]
        seen["alltoall"] = [f() for f in comm.alltoall([lambda r=comm.rank, d=d: (r, d) for d in range(comm.size)])]
        return seen

    for rank, seen in enumerate(values(rank_use)):
        equal(seen["bcast"], 10)
        equal(seen["gather"], [r + 10 for r in range(n)] if rank == 0 else None)
        equal(seen["scatter"], rank * 10)
        equal(seen["allgather"], list(range(n)))
        equal(seen["alltoall"], [(r, rank) for r in range(n)])


def check_reductions_carry_closures():
    def use():
        comm = objects.comm

        def joined(a, b):
            return lambda: a() + b()

        def mine(r=comm.rank):
            return [r]

        total = comm.allreduce(mine, op=joined)
        partial = comm.scan(mine, op=joined)
        root = comm.reduce(mine, op=joined, root=0)
        before = comm.exscan(mine, op=joined)
        number = comm.allreduce(comm.rank + 1)
        return total(), partial(), root() if comm.rank == 0 else None, before() if comm.rank else None, number

    n = objects.size
    for r, (total, partial, root, before, number) in enumerate(values(use)):
        equal(sorted(total), list(range(n)))
        equal(sorted(partial), list(range(r + 1)))
        equal(root and sorted(root), list(range(n)) if r == 0 else None)
        equal(before and sorted(before), list(range(r)) if r else None)
        equal(number, n * (n + 1) // 2)


def check2_point_to_point_carries_closures():
    secret = 7

    def use():
        comm = objects.comm
        right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        request = comm.isend(lambda r=comm.rank: r + secret, dest=right, tag=3)
        first = comm.recv(source=left, tag=3)()
        request.wait()
        pending = comm.irecv(source=left, tag=4)
        comm.send(lambda r=comm.rank: r * secret, dest=right, tag=4)
        second = pending.wait()()
        third = comm.sendrecv(lambda r=comm.rank: -r, dest=right, sendtag=5, source=left, recvtag=5)()
        request = comm.issend(lambda: secret, dest=right, tag=6)
        message = comm.mprobe(source=left, tag=6)
        fourth = message.recv()()
        request.wait()
        return first, second, third, fourth

    n = objects.size
    equal(values(use), [((r - 1) % n + 7, (r - 1) % n * 7, -((r - 1) % n), 7) for r in range(n)])


def check_buffer_methods():
    def use():
        comm = objects.comm
        total = np.empty(3)
        comm.Allreduce(np.full(3, comm.rank + 1.0), total)
        rows = np.empty((comm.size, 2)) if comm.rank == 0 else None
        comm.Gather(np.array([comm.rank, 1.0]), rows, root=0)
        word = np.zeros(4)
        comm.Bcast(np.arange(4.0) if comm.rank == 0 else word, root=0)
        comm.Barrier()
        return float(total[0]), None if rows is None else rows[:, 0].tolist(), word.tolist() if comm.rank else None

    n = objects.size
    total = n * (n + 1) / 2
    expected = [
        (total, [float(r) for r in range(n)] if r == 0 else None, [0.0, 1.0, 2.0, 3.0] if r else None) for r in range(n)
    ]
    equal(values(use), expected)


def check2_status_and_wildcards_work():
    def use():
        comm = objects.comm
        if comm.rank:
            comm.send(("from", comm.rank), dest=0, tag=10 + comm.rank)
            return None
        seen = []
        for _ in range(comm.size - 1):
            status = MPI.Status()
            message = comm.recv(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG, status=status)
            seen.append((message, status.Get_source(), status.Get_tag()))
        return sorted(seen)

    expected = [(("from", r), r, 10 + r) for r in range(1, objects.size)]
    equal(objects.call(use), expected)


def check2_own_traffic_never_runs_on_comm():
    """A wildcard receive of the user stays open over calls, handles and arrays, and gets only the user's message."""
    request = objects.comm.irecv(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG)
    world = MPI.COMM_WORLD.irecv(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG)
    for k in range(30):
        oid = objects.call(objects.function_call_manage, dict, key=k)
        values(len, "abc")
        objects.call(len, np.zeros(50_000))
        del oid
        holds(not request.test()[0] and not world.test()[0], "our own message arrived at the user's receive")

    def send():
        if objects.rank == 1:
            objects.comm.send("user's own", dest=0, tag=77)
            MPI.COMM_WORLD.send("world", dest=0, tag=78)

    objects.call(send)
    equal((request.wait(), world.wait()), ("user's own", "world"))


def check2_handle_that_dies_during_a_users_bcast():
    """The removal of the handle is never taken for the user's data."""
    handles = [objects.call(objects.function_call_manage, list) for _ in range(20)]
    numbers = [int(h) for h in handles]

    def use(mine):
        seen = []
        for i in range(20):
            if objects.rank == 0:
                mine.pop()
                gc.collect()
            seen.append(objects.comm.bcast(("data", i) if objects.rank == 0 else None, root=0))
        return seen

    equal(values(use, handles), [[("data", i) for i in range(20)]] * objects.size)
    values(len, ())
    equal(values(lambda ids: [i for i in ids if i in objects._managed_objects], numbers), [[]] * objects.size)


def check2_comm_is_replaced_after_a_divergence():
    """Workers finish a small gather that rank 0 never enters: the next gather gets no stale data."""

    def diverge():
        if objects.rank == 0:
            raise KeyError("rank 0 fails before the gather")
        objects.comm.gather(("stale", objects.rank), root=0)

    old = objects.comm
    with raises(KeyError):
        objects.call(diverge)
    seen = objects.call(lambda: objects.comm.gather(("fresh", objects.rank), root=0))
    equal(seen, [("fresh", r) for r in range(objects.size)])
    holds(objects.comm is not old, "comm is the old one")
    equal(values(lambda: objects.comm.allreduce(1)), [objects.size] * objects.size)


def check2_comm_is_replaced_after_a_worker_diverged():
    from taskfarm.errors import RemoteError

    def diverge():
        if objects.rank == objects.size - 1:
            raise KeyError("worker fails before its receive")
        if objects.rank == 0:
            objects.comm.send("stale", dest=objects.size - 1, tag=1)

    old = objects.comm
    objects.call(diverge)
    time.sleep(0.3)
    with raises(RemoteError, match="worker fails before its receive"):
        values(len, ())

    def exchange():
        if objects.rank == 0:
            objects.comm.send("fresh", dest=objects.size - 1, tag=1)
        elif objects.rank == objects.size - 1:
            return objects.comm.recv(source=0, tag=1)
        return None

    equal(values(exchange)[-1], "fresh")
    holds(objects.comm is not old, "comm is the old one")


def check2_comm_stays_the_same_when_nothing_diverges():
    old = objects.comm
    objects.call(lambda: setattr(sys, "taskfarm_old", objects.comm))
    for _ in range(3):
        objects.call(lambda: objects.comm.allreduce(1))
    equal(values(lambda: objects.comm is sys.taskfarm_old), [True] * objects.size)
    holds(objects.comm is old, "comm changed")


def check_no_users_message_is_left():
    equal(values(lambda: objects.comm.iprobe() or MPI.COMM_WORLD.iprobe()), [False] * objects.size)


if __name__ == "__main__":
    objects.launch_event_loop()
    if objects.rank0:
        run_checks(globals(), objects.size)
        objects.quit()
