"""The harness itself: it sees hangs and left-over processes, and leaves nothing behind."""

from __future__ import annotations

import pytest
from harness import Job, Launch, Result


@pytest.mark.parametrize("n", [1, 2, 4])
def test_ranks_of_a_job(run_mpi: Launch[Result], n: int) -> None:
    """The mpiexec beside the interpreter starts one world of `n` ranks."""
    source = """
        import os
        from mpi4py import MPI
        rank = MPI.COMM_WORLD.rank
        open(f"{os.environ['TF_LOG_DIR']}/rank-{rank}.log", "w").write(f"{rank} of {MPI.COMM_WORLD.size}")
    """
    result = run_mpi(source, n, timeout_s=20).check(0)
    assert [result.log(f"rank-{r}.log") for r in range(n)] == [f"{r} of {n}" for r in range(n)]


def test_a_hang_is_seen_and_killed(start_mpi: Launch[Job]) -> None:
    """A job that does not end fails the test with the place it hangs at, and is gone afterwards."""
    source = """
        import time
        from mpi4py import MPI
        def hang_here():
            time.sleep(1000)
        hang_here()
    """
    job = start_mpi(source, 2)
    with pytest.raises(pytest.fail.Exception, match="hang: still running after 2(?s:.*)hang_here"):
        job.finish(timeout_s=2)
    assert job.processes() == {}


def test_a_left_over_process_is_seen_and_killed(start_mpi: Launch[Job]) -> None:
    """Also a process that started a session of its own is found by its environment."""
    source = """
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    """
    job = start_mpi(source, 1, launcher="plain")
    with pytest.raises(pytest.fail.Exception, match="processes left over"):
        job.finish(timeout_s=20)
    assert job.processes() == {}


def test_a_wrong_status_is_a_failure(run_mpi: Launch[Result]) -> None:
    """`check` compares the status of the launcher and shows the output."""
    result = run_mpi("import sys; print('seen', flush=True); sys.exit(5)", 1, timeout_s=20)
    result.check(5)
    with pytest.raises(pytest.fail.Exception, match="(?s)expected status 0.*status 5.*seen"):
        result.check(0)
