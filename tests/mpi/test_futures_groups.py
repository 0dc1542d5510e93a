"""``taskfarm.Executor`` with groups of workers: the same promises, and what only groups have to keep."""

from __future__ import annotations

import os
import signal

import pytest
from checklist import Checklist, cases
from harness import Job, Launch, Result

GROUPS = {"TASKFARM_GROUP_SIZE": "3"}
N = 6  # two groups: rank 1 feeds rank 2, and rank 3 the ranks 4 and 5
PROGRAMS = {"futures_tasks.py": 5, "futures_groups.py": N}
CASES = [(program, n, name) for program, size in PROGRAMS.items() for n, name in cases(program, (size,))]


@pytest.mark.parametrize(("program", "n", "name"), CASES)
def test_promise_with_groups(checklist: Checklist, program: str, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(program, n, name, env=GROUPS)


ENDS = """
    import os, sys, time
    from taskfarm import Executor
    def nap(seconds):
        time.sleep(seconds)
        return seconds
    def note(name):
        open(os.path.join(os.environ["TF_LOG_DIR"], name), "w").write("here")
"""


def test_exit_without_shutdown(run_mpi: Launch[Result]) -> None:
    """A program that ends without shutdown first has all its tasks run, in all groups."""
    body = """
    executor = Executor()
    futures = [executor.submit(nap, 0.02) for _ in range(60)]
    futures[-1].add_done_callback(lambda future: print("last", future.result(), flush=True))
    """
    assert "last 0.02" in run_mpi(ENDS + body, N, env=GROUPS).check(0).stdout


def test_exception_in_the_program(run_mpi: Launch[Result]) -> None:
    """An exception that nobody catches ends the job, whatever groups still have in hand."""
    body = """
    executor = Executor()
    futures = [executor.submit(nap, 0.2) for _ in range(1000)]
    time.sleep(0.5)
    raise ValueError("of the program")
    """
    result = run_mpi(ENDS + body, N, env=GROUPS | {"TASKFARM_LEAVE_S": "1"})
    assert result.status != 0 and "ValueError: of the program" in result.stderr and result.elapsed_s < 20


def test_interrupt(start_mpi: Launch[Job]) -> None:
    """^C in the middle of a map over groups: KeyboardInterrupt in the program, then the end, soon."""
    body = """
    def note_and_nap(i):
        time.sleep(0.05)
        if i == 3:
            note("began")
    with Executor() as executor:
        note("pid-" + str(os.getpid()))
        list(executor.map(note_and_nap, range(2000)))
    """
    job = start_mpi(ENDS + body, N, env=GROUPS)
    job.wait_for_log("began")
    os.kill(next(int(path.name[4:]) for path in job.log_dir.glob("pid-*")), signal.SIGINT)
    result = job.finish(timeout_s=20)
    assert "KeyboardInterrupt" in result.stderr and result.status != 0, result.describe()
