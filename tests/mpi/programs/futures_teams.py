"""Checks of tasks that need several ranks, or particular ones: communicator, failures, objects, placement, ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
import time

import numpy as np
from mpi4py import MPI
from tf_checks import equal, eventually, holds, raises, run_checks

from taskfarm import Executor, ObjectId, UsageError, as_completed, objects, task_comm
from taskfarm.runtime.executor import team_desk
from taskfarm.runtime.launching.surroundings import expected_world_size

EX: Executor
N_RANKS = expected_world_size(os.environ) or 1
TIDY_S = 5.0  # the ranks of a failed task wait for each other so long, if something is missing
LIMIT_S = 20.0  # a rank that waits for one that has failed would wait for ever


def team(**options):
    return EX.with_options(ranks=2, **options)


def ranks_of(*args, **kwargs):
    comm = task_comm()
    return MPI.COMM_WORLD.rank, comm.rank, comm.size, args, kwargs


def total(value):
    return task_comm().allreduce(value * (task_comm().rank + 1))


def nap(seconds):
    time.sleep(seconds)
    return MPI.COMM_WORLD.rank


def usual_calls():
    """What programs do with a communicator, compared with what it must give."""
    comm = task_comm()
    rank, size, other = comm.rank, comm.size, 1 - comm.rank
    out = np.zeros(3)
    comm.Allreduce(np.full(3, rank + 1.0), out)
    equal(out.tolist(), [3.0] * 3)
    array = np.arange(4.0) * (rank + 1)
    comm.Bcast(array, root=1)
    equal(array.tolist(), [0.0, 2.0, 4.0, 6.0])
    into = np.zeros(100_000)
    comm.Sendrecv(np.full(100_000, rank + 1.0), other, 1, into, other, 1)
    equal(into[-1], other + 1.0)
    requests = [comm.Irecv(into, other, 2), comm.Isend(np.full(100_000, rank + 5.0), other, 2)]
    MPI.Request.Waitall(requests)
    equal(into[0], other + 5.0)
    comm.Sendrecv_replace(into, other, 3, other, 3)
    equal(into[0], rank + 5.0)
    equal(comm.allgather(lambda: rank)[other](), other)
    equal(comm.bcast({"from": rank}, root=1), {"from": 1})
    equal(comm.scatter(["a", "b"] if rank == 0 else None), "ab"[rank])
    equal(comm.gather(rank, root=1), [0, 1] if rank == 1 else None)
    equal(comm.alltoall([(rank, 0), (rank, 1)]), [(0, rank), (1, rank)])
    equal(
        (comm.allreduce(2), comm.reduce(2), comm.scan(2), comm.exscan(2)),
        (4, [4, None][rank], 2 + 2 * rank, [None, 2][rank]),
    )
    request = comm.isend(["x", rank], other, 4)
    equal(comm.recv(source=other, tag=4), ["x", other])
    request.wait()
    equal(comm.sendrecv(rank, other, 5, None, other, 5), other)
    cart = comm.Create_cart([size], periods=[True])
    equal(cart.allreduce(1), size)
    part = comm.Split(rank, 0)
    equal(part.size, 1)
    comm.Barrier()
    comm.Send(buf=into, dest=MPI.PROC_NULL)
    requests, statuses = [comm.Isend(buf=into, dest=other), comm.Irecv(buf=np.zeros(100_000), source=other)], []
    type(requests[0]).Waitall(requests, statuses)
    equal([len(statuses), statuses[1].Get_source()], [2, other])
    copy, request = comm.Idup()
    request.Wait()
    equal(copy.allreduce(1), size)
    return isinstance(comm, MPI.Intracomm)


def fail_while_others(how):
    """Rank 1 raises while rank 0 waits for it."""
    comm = task_comm()
    if comm.rank == 1:
        time.sleep(0.02)
        raise ValueError(how)
    small, large = np.zeros(10), np.zeros(1_000_000)
    if how == "Waitall":
        MPI.Request.Waitall([comm.Irecv(small, 1, 7), comm.Isend(np.ones(3), 1, 8)])
        comm.Barrier()
    waits = {
        "Barrier": comm.Barrier,
        "Allreduce": lambda: comm.Allreduce(np.ones(10), small),
        "Gather": lambda: comm.Gather(np.ones(10), np.zeros(20)),
        "allreduce": lambda: comm.allreduce(1),
        "bcast": lambda: comm.bcast(None, root=1),
        "Split": lambda: comm.Split(0),
        "Recv": lambda: comm.Recv(small, 1, 5),
        "recv": lambda: comm.recv(source=1),
        "Send": lambda: comm.Send(large, 1),
        "Sendrecv": lambda: comm.Sendrecv(large, 1, 0, large, 1, 0),
        "Probe": lambda: comm.Probe(1),
        "Irecv": lambda: comm.Irecv(small, 1, 7).Wait(),
        "irecv": lambda: comm.irecv(source=1).wait(),
        "cart": lambda: comm.Create_cart([2]),
        "iprobe": lambda: comm.iprobe(source=1),
        "Iprobe": lambda: comm.Iprobe(1),
    }
    while True:
        with contextlib.suppress(Exception):  # the end of the task is none
            waits[how]()


WAYS = [
    "Barrier", "Allreduce", "Gather", "allreduce", "bcast", "Split", "Recv", "recv", "Send", "Sendrecv", "Probe",
    "Irecv", "irecv", "cart", "Waitall", "iprobe", "Iprobe",
]  # fmt: skip


def fail_at_once(code):
    comm = task_comm()
    if comm.rank == 0:
        sys.exit(code)
    comm.Barrier()


def fail_to_send():
    comm = task_comm()
    return comm.bcast((yield_ for yield_ in [1]), root=0) if comm.rank == 0 else comm.bcast(None, root=0)


def receive_too_little(how):
    """Start a receive that is too short for its message, and perhaps wait for it."""
    comm = task_comm()
    if comm.rank == 0:
        comm.Send(np.zeros(100), 1)  # more of them Open MPI 5.0.11 writes past the end of the receiver's memory
    else:
        request = comm.Irecv(np.zeros(1), 0)
        if how == "left":
            time.sleep(0.05)
            raise ValueError(how)
        request.Wait()


def fail_to_begin(how):
    """Rank 0 cannot begin what the others wait for."""
    comm = task_comm()
    if comm.rank == 0:
        if how == "send":
            comm.send((item for item in [1]), 1)
        elif how == "Isend":
            comm.Isend("no buffer", 1)
        else:
            comm.Split("no integer")
    comm.allreduce(1)


def fail_after(how):
    """Fail on all ranks, just after an operation that some of them may be through with before the others."""
    comm = task_comm()
    many, few = np.zeros((comm.size, 3)), np.zeros(3)
    if how == "Gather":
        comm.Gather(few, many if comm.rank == 0 else None)
    else:
        comm.Scatter(many if comm.rank == 0 else None, few)
    raise ValueError(how)


def fail_to_return():
    task_comm().Barrier()
    return (item for item in [1])


def leave_messages():
    comm = task_comm()
    if comm.rank == 0:
        comm.send("stale", 1, 3)
        comm.isend("stale, too", 1, 3)


def leave_messages_and_fail():
    comm = task_comm()
    if comm.rank == 0:
        comm.send("stale", 1, 3)
        comm.Isend(np.ones(1_000_000), 1, 4)
        raise ValueError("left")
    comm.Barrier()


def sees_a_message():
    comm = task_comm()
    comm.Barrier()
    return comm.iprobe()


def make_parts(offset):
    comm = task_comm()
    return objects.manage_object(np.full(4, offset + comm.rank))


def make_parts_and_fail():
    make_parts(0)
    raise ValueError("no object")


def part_of(part, other=None):
    comm = task_comm()
    return MPI.COMM_WORLD.rank, comm.allreduce(float(part.sum())), None if other is None else float(other[0])


def count_objects():
    return len(objects._managed_objects)


def slow_part(seconds):
    time.sleep(seconds * task_comm().rank)
    return MPI.COMM_WORLD.rank


# Everywhere


def check_one_rank_has_a_communicator_of_its_own():
    if N_RANKS == 1:
        with raises(UsageError, match="no communicator"):
            EX.submit(ranks_of).result()
    else:
        equal(EX.submit(ranks_of, 1).result()[1:3], (0, 1))


def check_several_ranks_need_mpi():
    if N_RANKS == 1:
        with raises(UsageError, match="taskfarm run"):
            team().submit(ranks_of)


def check_what_can_never_run_is_refused():
    with raises(UsageError, match="tags=\\['abacus'\\].*can ever run.*tags of ranks: "):
        EX.with_options(tags="abacus").submit(nap, 0)
    with raises(UsageError, match="no worker is on nowhere"):
        EX.with_options(hosts="nowhere").submit(nap, 0)
    with raises(UsageError, match="ranks_in=\\[0\\]"):
        EX.with_options(ranks_in=0).submit(nap, 0)
    with raises(UsageError, match="timeout_s=1: a task with ranks, hosts or tags"):
        EX.with_options(ranks_in=1, timeout_s=1).submit(nap, 0)
    with raises(UsageError, match="ranks=99"):
        EX.with_options(ranks=99).submit(nap, 0)
    with raises(UsageError, match="color"):
        EX.with_options(color=1)


def check_placed_tasks_of_one_rank():
    last = EX.num_workers
    view = EX.with_options(ranks_in=last, tags="even" if last % 2 == 0 else "odd")
    equal(view.submit(pow, 2, 10).result(), 1024)
    equal(list(view.map(divmod, [7, 8], [2, 2])), [(3, 1), (4, 0)])
    equal(sorted(view.map_unordered(abs, [-1, -2])), [1, 2])
    equal(list(view.starmap(pow, [(2, 3), (3, 2)])), [8, 9])
    equal(EX.with_options(results="all").submit(abs, -1).result(), [1])
    with raises(ZeroDivisionError):
        view.submit(divmod, 1, 0).result()
    with raises(UsageError, match="chunksize"):
        view.map(abs, [1], chunksize=7)


def check_views_in_an_event_loop():
    async def run():
        view = EX.with_options(ranks_in=1)
        return await view.asubmit(abs, -2), [value async for value in view.amap(abs, range(-3, 0))]

    equal(asyncio.run(run()), (2, [3, 2, 1]))


def check_inside_a_task_there_are_no_others():
    with raises(UsageError, match="inside a task"):
        EX.submit(submit_inside).result()


def submit_inside():
    with Executor() as executor:
        return executor.with_options(ranks=2).submit(abs, 1).result()


# On several ranks


def check3_a_team_runs_the_same_call():
    equal(
        [row[1:] for row in team(results="all").submit(ranks_of, 1, a=2).result()],
        [(0, 2, (1,), {"a": 2}), (1, 2, (1,), {"a": 2})],
    )
    first = team().submit(ranks_of).result()
    equal(first[1:3], (0, 2))
    equal([team().submit(total, n).result() for n in range(5)], [0, 3, 6, 9, 12])
    equal(list(team().map(total, range(20))), [3 * n for n in range(20)])


def check3_the_communicator_is_whole():
    holds(all(team(results="all").submit(usual_calls).result()), "an Intracomm")


def check3_arrays_travel():
    array = np.arange(200_000.0)
    future = team(results="all").submit(np.multiply, array, 2.0)
    array[:] = 0.0
    for result in future.result():
        equal(float(result[-1]), 399_998.0)
        holds(result.flags.writeable, "the receiver's own")


def check3_a_failure_ends_the_task_on_all_ranks():
    for how in WAYS:
        with raises(ValueError, match=how):
            team().submit(fail_while_others, how).result(LIMIT_S)
        equal(team().submit(total, 1).result(LIMIT_S), 3)


def check3_failures_of_every_kind():
    with raises(SystemExit, match="3"):
        team().submit(fail_at_once, 3).result(LIMIT_S)
    with raises(TypeError, match="pickle"):
        team().submit(fail_to_send).result(LIMIT_S)
    with raises(TypeError, match="pickle"):
        team().submit(fail_to_return).result(LIMIT_S)
    with raises(Exception, match="Unloadable"):
        team().submit(abs, Unloadable()).result(LIMIT_S)
    equal(team().submit(total, 1).result(LIMIT_S), 3)


class Unloadable:
    def __reduce__(self):
        return explode, ()


def explode():
    raise ValueError("Unloadable")


def check3_a_receive_that_is_too_short_ends_its_task_alone():
    for how in ("left", "waited for"):
        with raises(ValueError, MPI.Exception):
            team().submit(receive_too_little, how).result(LIMIT_S)
        equal(team().submit(total, 1).result(LIMIT_S), 3)


def free_communicator(how):
    comm = task_comm()
    copy = comm.Dup()
    getattr(copy, how)()
    getattr(comm, how)()


def check3_no_task_frees_the_communicator_of_the_next():
    for how in ("Free", "Disconnect"):
        with raises(UsageError, match="goes with its task"):
            team().submit(free_communicator, how).result(LIMIT_S)
        with raises(UsageError, match="goes with its task"):
            EX.submit(free_communicator, how).result(LIMIT_S)
        equal(team().submit(total, 1).result(LIMIT_S), 3)
        equal(EX.submit(total, 1).result(LIMIT_S), 1)


def check3_what_cannot_begin_leaves_nothing_behind():
    for how in ("send", "Isend", "Split"):
        with raises(TypeError, RuntimeError, BufferError):
            team().submit(fail_to_begin, how).result(LIMIT_S)
        start = time.monotonic()
        equal(team().submit(total, 1).result(LIMIT_S), 3)
        holds(time.monotonic() - start < TIDY_S, f"{how}: the ranks have waited for what never comes")


def check4_failures_in_the_middle_of_an_operation_are_tidied_up():
    wide = EX.with_options(ranks=3)
    start = time.monotonic()
    for n in range(60):
        with raises(ValueError, match="(Gather|Scatter)"):
            wide.submit(fail_after, ("Gather", "Scatter")[n % 2]).result(LIMIT_S)
    wide.submit(total, 1).result(LIMIT_S)
    holds(time.monotonic() - start < TIDY_S, "some ranks have begun what others have not")


def check3_failures_use_nothing_up():
    before = MPI.COMM_WORLD.Get_attr(MPI.TAG_UB)
    for _ in range(300):
        with raises(SystemExit):
            team().submit(fail_at_once, 1).result(LIMIT_S)
    equal(team().submit(total, 1).result(LIMIT_S), 3)
    equal(MPI.COMM_WORLD.Get_attr(MPI.TAG_UB), before)


def check3_failures_are_repeated_if_asked():
    """On all ranks, whichever of them raised, with the others in the middle of a collective operation."""

    def raise_n_times(path, n, kind):
        comm = task_comm()
        if comm.rank == 1:
            with open(path, "a+b") as file:
                file.write(b".")
                if file.tell() <= n:
                    raise kind("not yet")
        return comm.allreduce(1)

    view = team(retries=2, retry_on=LookupError)
    for n, kind in ((2, KeyError), (3, KeyError), (1, OSError)):
        handle, path = tempfile.mkstemp()
        os.close(handle)
        future = view.submit(raise_n_times, path, n, kind)
        if n == 2:
            equal(future.result(), 2)
        else:
            with raises(kind, match="not yet"):
                future.result()
        equal(os.path.getsize(path), {2: 3, 3: 3, 1: 1}[n])
        os.unlink(path)


def check3_messages_of_one_task_do_not_reach_the_next():
    team().submit(leave_messages).result(LIMIT_S)
    equal(team(results="all").submit(sees_a_message).result(LIMIT_S), [False, False])
    with raises(ValueError, match="left"):
        team().submit(leave_messages_and_fail).result(LIMIT_S)
    equal(team(results="all").submit(sees_a_message).result(LIMIT_S), [False, False])


def check4_teams_that_overlap():
    pairs = [(1, 2), (2, 3), (1, 3)]
    team_desk.MAX_TEAMS = 2  # communicators are freed on the way
    futures = [team(ranks_in=pair, results="all").submit(ranks_of) for _ in range(10) for pair in pairs]
    for index, future in enumerate(futures):
        equal(tuple(row[0] for row in future.result(LIMIT_S)), pairs[index % 3])


def check4_wide_and_narrow_tasks_share_the_workers():
    narrow = [EX.submit(nap, 0.005) for _ in range(200)]
    wide = [EX.with_options(ranks=2 + n % 2, results="all").submit(slow_part, 0.005) for n in range(12)]
    equal(len(set(wide[0].result(LIMIT_S))), 2)
    holds(not all(future.done() for future in narrow), "wide tasks did not wait for all narrow ones")
    for n, future in enumerate(wide):
        equal(len(set(future.result(LIMIT_S))), 2 + n % 2)
    holds({future.result(LIMIT_S) for future in as_completed(narrow)} <= set(range(1, N_RANKS)), "ran on workers")


def check3_waiting_tasks_can_be_cancelled():
    running = team().submit(slow_part, 0.3)
    waiting = [EX.with_options(ranks=EX.num_workers).submit(total, n) for n in range(3)]
    holds(waiting[1].cancel(), "it waits")
    equal(waiting[0].result(LIMIT_S) > -1, True)
    holds(running.done() and waiting[2].result(LIMIT_S) > 0, "the others ran")


def check3_shutdown_waits_or_cancels():
    executor = Executor()
    view = executor.with_options(ranks=2)
    futures = [view.submit(slow_part, 0.02) for _ in range(6)]
    executor.shutdown()
    holds(all(future.result() for future in futures), "all were run")
    executor = Executor()
    futures = [executor.with_options(ranks=executor.num_workers).submit(slow_part, 0.1) for _ in range(6)]
    executor.shutdown(cancel_futures=True)
    holds(all(future.done() for future in futures) and futures[-1].cancelled(), "the last had not begun")


def check3_an_executor_uses_its_own_workers():
    with Executor(max_workers=2) as executor:
        with raises(UsageError, match="2 workers"):
            executor.with_options(ranks=3).submit(ranks_of)
        equal([row[0] for row in executor.with_options(ranks=2, results="all").submit(ranks_of).result()], [1, 2])


def check3_a_failing_initializer_breaks_the_executor():
    from taskfarm import ExecutorBrokenError

    executor = Executor(initializer=fail_on_rank_2)
    with raises(ExecutorBrokenError, match="not here"):
        executor.with_options(ranks=2, ranks_in=[1, 2]).submit(ranks_of).result(LIMIT_S)
    executor.shutdown()


def fail_on_rank_2():
    if MPI.COMM_WORLD.rank == 2:
        raise RuntimeError("not here")


# Objects


def check3_objects_live_where_they_were_made():
    handle = team().submit(make_parts, 10).result()
    holds(isinstance(handle, ObjectId) and len(handle.ranks) == 2, handle)
    values = team(results="all").submit(part_of, handle).result()
    equal([value[0] for value in values], list(handle.ranks))
    equal({value[1] for value in values}, {84.0})
    alone = EX.with_options(ranks_in=handle.ranks[1]).submit(part_of, other=handle, part=np.ones(1)).result()
    equal((alone[0], alone[2]), (handle.ranks[1], 11.0))
    first = list(EX.with_options(ranks_in=handle.ranks[0], results="all").submit(count_objects).result())
    del handle, values
    team().submit(total, 1).result()
    equal(EX.with_options(ranks_in=1, results="all").submit(count_objects).result()[0] < first[0] + 1, True)


def check3_objects_go_with_their_handle_and_with_a_failure():
    counts = lambda: [EX.with_options(ranks_in=rank).submit(count_objects).result() for rank in (1, 2)]  # noqa: E731
    before = counts()
    view = team(ranks_in=[1, 2])
    handles = [view.submit(make_parts, n).result() for n in range(3)]
    equal(counts(), [n + 3 for n in before])
    with raises(ValueError, match="no object"):
        view.submit(make_parts_and_fail).result(LIMIT_S)
    equal(counts(), [n + 3 for n in before])
    del handles
    eventually(lambda: counts() == before, "the objects are gone")


def check3_objects_of_calls_are_arguments_too():
    handle = objects.call(objects.function_call_manage, np.full, 2, 3.0)
    equal({value[1] for value in team(results="all").submit(part_of, handle).result()}, {12.0})
    objects.call(objects.remove_object, handle)


def check4_an_object_elsewhere_is_named():
    handle = team(ranks_in=[1, 2]).submit(make_parts, 1).result()
    with raises(UsageError, match="it is on ranks \\[1, 2\\]"):
        EX.with_options(ranks_in=3).submit(part_of, handle).result()


if __name__ == "__main__":
    logging.getLogger("taskfarm.futures").setLevel(logging.CRITICAL + 1)
    os.environ["TASKFARM_RANK_TAGS"] = "odd=1,3,5,7;even=2,4,6,8"
    EX = Executor()
    run_checks(globals(), N_RANKS)
    EX.shutdown()
