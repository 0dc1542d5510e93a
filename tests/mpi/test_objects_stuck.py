"""``taskfarm.objects``: a failure that strands other ranks in a collective ends the job, soon and with one error."""

from __future__ import annotations

import pytest
from harness import Launch, Result

PROGRAM = """
    import sys, time
    import numpy as np
    from mpi4py import MPI
    from taskfarm import objects

    def before_collective(failing, what):
        comm = objects.comm
        if objects.rank == failing:
            raise LookupError(f"told to fail on rank {failing}")
        COLLECTIVES[what](comm)
        return objects.rank

    COLLECTIVES = {
        "barrier": lambda comm: comm.Barrier(),
        "bcast": lambda comm: comm.bcast("x", root=failing_root),
        "allreduce": lambda comm: comm.allreduce(1),
        "Allreduce": lambda comm: comm.Allreduce(np.ones(3), np.ones(3)),
        "gather": lambda comm: comm.gather(comm.rank, root=0),
        "recv": lambda comm: comm.recv(source=failing_root, tag=1),
        "ssend": lambda comm: comm.ssend(np.ones(3), dest=failing_root, tag=1),
        "Request": lambda comm: comm.irecv(source=failing_root, tag=1).wait(),
        "Ibarrier": lambda comm: comm.Ibarrier().Wait(),
        "dup": lambda comm: comm.Dup(),
        "split": lambda comm: comm.Split(comm.rank % 2),
        "world": lambda comm: MPI.COMM_WORLD.Barrier(),
    }
    failing_root = int(sys.argv[1])
    objects.launch_event_loop()
    if not objects.rank0:
        sys.exit(0)
    objects.call(len, ())
"""
CALL = "    objects.call(before_collective, int(sys.argv[1]), sys.argv[2])\n"
SOON = {"TASKFARM_STUCK_COMM_S": "0.5"}  # most tests do not wait for the two seconds of the default
LIMIT_S = 12.0  # start of the job included; the promise is 5 s from the failure on, on a machine that is not crowded


def verdict(result: Result, rank: int) -> None:
    """One error names rank, exception and place; the status says that a collective call failed."""
    assert result.status not in (0, -1), result.describe()
    assert "LookupError" in result.stderr and f"told to fail on rank {rank}" in result.stderr, result.describe()
    assert f"rank {rank}" in result.stderr.replace(f"told to fail on rank {rank}", ""), result.describe()
    assert "before_collective" in result.stderr, result.describe()
    assert result.stderr.count("Traceback (most recent call last)") <= 1, result.describe()
    assert result.elapsed_s < LIMIT_S, result.describe()


@pytest.mark.parametrize("what", ["barrier", "allreduce"])
def test_worker_fails_before_a_collective(run_mpi: Launch[Result], what: str) -> None:
    """Rank 0 and the other workers wait in a method of `comm`: the job ends with status 75 within five seconds."""
    result = run_mpi(PROGRAM + CALL, 4, args=["2", what], timeout_s=20)
    verdict(result, 2)
    assert result.status == 75, result.describe()


@pytest.mark.parametrize("what", ["Allreduce", "gather", "bcast", "recv", "ssend"])
def test_worker_fails_before_any_collective(run_mpi: Launch[Result], what: str) -> None:
    """The same for collectives on objects and buffers, and for messages from and to the rank that failed."""
    result = run_mpi(PROGRAM + CALL, 4, args=["2", what], env=SOON, timeout_s=20)
    verdict(result, 2)
    assert result.status == 75, result.describe()


@pytest.mark.parametrize("what", ["Request", "dup"])
def test_worker_fails_before_other_waits_on_comm(run_mpi: Launch[Result], what: str) -> None:
    """The same for requests made by `comm` and for new communicators made from it."""
    result = run_mpi(PROGRAM + CALL, 4, args=["2", what], env=SOON | {"TASKFARM_STUCK_S": "1"}, timeout_s=20)
    verdict(result, 2)


@pytest.mark.parametrize("what", ["barrier", "bcast"])
def test_rank0_fails_before_a_collective(run_mpi: Launch[Result], what: str) -> None:
    """Workers wait in a method of `comm` for rank 0, whose program ends by its exception."""
    result = run_mpi(PROGRAM + CALL, 4, args=["0", what], env=SOON, timeout_s=20)
    assert result.status != 0 and "told to fail on rank 0" in result.stderr, result.describe()
    assert result.elapsed_s < LIMIT_S, result.describe()


def test_rank0_fails_before_a_collective_and_goes_on(run_mpi: Launch[Result]) -> None:
    """Workers can never come back: rank 0's next call ends the job instead of hanging."""
    source = (
        PROGRAM
        + "    try:\n        objects.call(before_collective, 0, 'barrier')\n    except LookupError:\n        pass\n"
    )
    result = run_mpi(
        source + "    objects.call(len, ())\n    print('not reached')\n", 4, args=["0"], env=SOON, timeout_s=20
    )
    assert result.status != 0 and "told to fail on rank 0" in result.stderr, result.describe()
    assert result.elapsed_s < LIMIT_S + 2, result.describe()


@pytest.mark.parametrize("launcher", ["taskfarm run", "objects"])
def test_status_of_rank0_with_stuck_workers(run_mpi: Launch[Result], launcher: str) -> None:
    """`sys.exit(7)` of rank 0 while workers are stuck: under our own launchers the status is 7."""
    source = (
        PROGRAM
        + """
    try:
        objects.call(before_collective, 0, "barrier")
    except LookupError:
        sys.exit(7)
    """
    )
    result = run_mpi(source, 4, args=["0"], launcher=launcher, timeout_s=20)
    assert result.status == 7, result.describe()
    assert result.elapsed_s < LIMIT_S + 2, result.describe()


@pytest.mark.parametrize("mode", ["wait", "deferred"])
def test_two_ranks_one_fails(run_mpi: Launch[Result], mode: str) -> None:
    """With two ranks, in the two modes that report, rank 0 alone is left in the collective."""
    result = run_mpi(PROGRAM + CALL, 2, args=["1", "barrier"], env=SOON | {"TASKFARM_ON_ERROR": mode}, timeout_s=20)
    verdict(result, 1)
    assert result.status == 75, result.describe()


def test_workers_are_stuck_and_rank0_is_not_in_the_collective(run_mpi: Launch[Result]) -> None:
    """Rank 0's part is over and its program works on; two workers wait for a third that failed: the job ends."""
    source = (
        PROGRAM
        + """
    def work():
        if objects.rank == 3:
            raise LookupError("told to fail on rank 3: before_collective")
        if objects.rank:
            objects.comm.recv(source=3)
    objects.call(work)
    time.sleep(15)
    """
    )
    result = run_mpi(source, 4, args=["3"], env=SOON, timeout_s=20)
    verdict(result, 3)


def test_stuck_in_a_collective_that_is_not_ours(run_mpi: Launch[Result]) -> None:
    """Ranks wait in a collective of ``COMM_WORLD``: a warning, and the end after ``TASKFARM_STUCK_S``."""
    result = run_mpi(PROGRAM + CALL, 4, args=["2", "world"], env={"TASKFARM_STUCK_S": "3"}, timeout_s=25)
    assert result.status not in (0, -1) and "told to fail on rank 2" in result.stderr, result.describe()
    assert 3 < result.elapsed_s < 15, result.describe()


def test_failed_inside_the_collective(run_mpi: Launch[Result]) -> None:
    """A worker whose own data cannot be sent fails inside the collective method: the same end."""
    source = (
        PROGRAM
        + """
    def work():
        import threading
        mine = threading.Lock() if objects.rank == 1 else 5
        return objects.comm.allgather(mine)
    objects.call(work)
    """
    )
    result = run_mpi(source, 4, args=["1"], env=SOON, timeout_s=20)
    assert result.status == 75 and "rank 1" in result.stderr and "lock" in result.stderr, result.describe()
    assert result.elapsed_s < LIMIT_S, result.describe()


def test_collective_in_a_method_of_a_managed_object(run_mpi: Launch[Result]) -> None:
    """The place that the error names is the user's method, also through `method_call`."""
    source = (
        PROGRAM
        + """
    class Part:
        def before_collective(self):
            if objects.rank == 1:
                raise LookupError("told to fail on rank 1")
            return objects.comm.allreduce(1)
    oid = objects.call(objects.function_call_manage, Part)
    objects.call(objects.method_call, oid, "before_collective")
    """
    )
    result = run_mpi(source, 2, args=["1"], env=SOON, timeout_s=20)
    verdict(result, 1)
    assert "prog.py" in result.stderr
