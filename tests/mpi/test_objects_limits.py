"""``taskfarm.objects.time_limit``: a call that does not end in time ends the job, and says where the ranks are."""

from __future__ import annotations

import pytest
from harness import Launch, Result

PROGRAM = """
    import ctypes, sys, time
    from taskfarm import objects

    def part(limit_s, *ranks):
        if objects.rank in ranks:
            stay(limit_s)

    def stay(limit_s):
        if objects.rank == 2:
            objects.comm.recv(source=0, tag=5)
        time.sleep(1000)

    def hold_the_lock(rank):
        if objects.rank == rank:
            ctypes.PyDLL(None).sleep(1000)

    objects.launch_event_loop()
    if not objects.rank0:
        sys.exit(0)
    objects.call(len, ())
"""
END_S = 15.0  # start of the job included


def test_ranks_that_stay(run_mpi: Launch[Result]) -> None:
    """Workers that are in a call when its time is over: status 75; the error names the call, them, their lines."""
    source = PROGRAM + (
        "    with objects.time_limit(0.5):\n"
        "        objects.call(part, 0.5, 1, 2)\n"
        "        print('went on', flush=True)\n"
        "        objects.call_all(len, ())\n"
        "    print('not reached', flush=True)\n"
    )
    result = run_mpi(source, 4, timeout_s=30)
    assert result.status == 75, result.describe()
    assert "went on" in result.stdout and "not reached" not in result.stdout, result.describe()
    assert "call 2 (__main__.part) has not ended on all ranks after its 0.5 s" in result.stderr, result.describe()
    assert "rank 1 is at work" in result.stderr and "time.sleep(1000)" in result.stderr, result.describe()
    assert "rank 2 is inside comm.recv" in result.stderr and "in stay" in result.stderr, result.describe()
    assert "in run_within" not in result.stderr, result.describe()
    assert result.elapsed_s < END_S, result.describe()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_be_asked(run_mpi: Launch[Result], rank: int) -> None:
    """A rank in C code that holds the interpreter's lock shows its stack, and the job ends, even if it is rank 0."""
    source = PROGRAM + f"    with objects.time_limit(0.5):\n        objects.call_all(hold_the_lock, {rank})\n"
    result = run_mpi(source, 2, timeout_s=30)
    assert result.status not in (0, -1), result.describe()
    assert "in hold_the_lock" in result.stderr, result.describe()
    if rank:
        assert result.status == 75 and "rank 1 does not answer" in result.stderr, result.describe()
    assert result.elapsed_s < END_S, result.describe()


def test_calls_that_end_in_time(run_mpi: Launch[Result]) -> None:
    """Calls that are over in time, with failures or without, end nothing; behind the block there is no limit."""
    source = (
        PROGRAM
        + """
    def fail():
        raise LookupError("told to")

    with objects.time_limit(0.5):
        for _ in range(2000):
            objects.call(len, ())
        try:
            objects.call_all(fail)
        except LookupError as exc:
            print("raised", exc)
        with objects.time_limit(None):
            objects.call(time.sleep, 0.7)
        objects.call_all(len, ())
    objects.call(time.sleep, 0.8)
    print("values", objects.call_all(abs, -3), flush=True)
    """
    )
    result = run_mpi(source, 3, timeout_s=30).check(0)
    assert "raised told to" in result.stdout and "values [3, 3, 3]" in result.stdout, result.describe()
    assert not result.stderr.strip(), result.describe()


def test_one_rank(run_mpi: Launch[Result]) -> None:
    """A program that runs alone is ended in the same way."""
    source = PROGRAM + "    with objects.time_limit(0.3):\n        objects.call(part, 0.3, 0)\n"
    result = run_mpi(source, 1, timeout_s=30)
    assert result.status == 75 and "call (__main__.part) has not ended after its 0.3 s" in result.stderr
    assert "time.sleep(1000)" in result.stderr and result.elapsed_s < END_S, result.describe()
