"""Tasks in processes of their own: the promises stand in ``programs/isolation_*.py``, how jobs begin and end, here."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
from checklist import Checklist, cases
from harness import Job, Launch, Result, is_openmpi

TASKS = "isolation_tasks.py"
MACHINE = "isolation_vm.py"


@pytest.mark.parametrize(("n", "name"), cases(TASKS, (3,) if is_openmpi() else (1, 3)))  # 1: without MPI
def test_promise_of_the_executor(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(TASKS, n, name)


@pytest.mark.parametrize(("n", "name"), cases(MACHINE, (3,)))
def test_promise_of_the_virtual_machine(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(MACHINE, n, name)


def test_whoever_starts_mpi_first(run_mpi: Launch[Result]) -> None:
    """A program that imports mpi4py.MPI first isolates its tasks under `taskfarm run --isolate`, all the same."""
    program = """
    import os
    from mpi4py import MPI
    from taskfarm import Executor
    with Executor() as executor:
        print("error", executor.with_options(retries=0).submit(os._exit, 5).exception(), flush=True)
        print("value", executor.submit(pow, 2, 5).result(), flush=True)
    """
    result = run_mpi(program, 2, launcher="taskfarm run --isolate").check(0)
    assert "status 5" in result.stdout and "value 32" in result.stdout, result.describe()


def test_too_late(run_mpi: Launch[Result]) -> None:
    """Where MPI has started, a request for isolation is refused once, with the cure; a variable's only warns."""
    program = """
    from mpi4py import MPI
    from taskfarm import Executor
    import logging, sys
    executor = Executor(isolate=True if sys.argv[1:] else None)
    print("value", executor.submit(pow, 2, 5).result(), flush=True)
    """
    result = run_mpi(program, 2, args=["asked"])
    assert result.status != 0 and result.stderr.count("UsageError: isolate: ") == 1, result.describe()
    assert "taskfarm run --isolate" in result.stderr, result.describe()
    result = run_mpi(program, 2, env={"TASKFARM_ISOLATE": "1"}).check(0)
    assert result.stderr.count("TASKFARM_ISOLATE=1 has no effect") == 1 and "value 32" in result.stdout


@pytest.mark.parametrize(("who", "number"), [("rank", signal.SIGKILL), ("launcher", signal.SIGINT)])
def test_nothing_is_left(start_mpi: Launch[Job], who: str, number: int) -> None:
    """Whoever is killed or interrupted in the middle of a task: no process stays, not even what the task started."""
    program = """
    import os, subprocess, time
    from taskfarm import Executor
    def work():
        subprocess.Popen(["sleep", "1000"])
        with open(os.path.join(os.environ["TF_LOG_DIR"], "began"), "w") as file:
            file.write(str(os.getppid()))
        time.sleep(1000)
    executor = Executor(isolate=True)
    executor.submit(work).result()
    """
    job = start_mpi(program, 2, env={"TASKFARM_LEAVE_S": "0.5"})
    server = int(job.wait_for_log("began"))
    with open(f"/proc/{server}/stat") as file:
        rank = int(file.read().rpartition(")")[2].split()[1])
    os.kill(rank if who == "rank" else job.launcher_pid, number)
    assert job.finish(timeout_s=30).status != 0


@pytest.mark.parametrize("options", ["", "--survive"])
def test_the_fork_server_is_killed(run_mpi: Launch[Result], options: str) -> None:
    """A rank whose fork server is gone can run nothing: it ends with one clear line, as a rank that died."""
    program = """
    import os, signal, time
    from taskfarm import Executor
    def work():
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)
    with Executor() as executor:
        print("error", executor.with_options(retries=0, ranks=1).submit(work).exception(), flush=True)
        print("value", executor.submit(pow, 2, 5).result(), flush=True)
    """
    result = run_mpi(program, 3, launcher=f"taskfarm run --isolate {options}".strip(), timeout_s=30)
    assert "the fork server of this rank's task children is gone" in result.stderr, result.describe()
    assert "Traceback" not in result.stderr, result.describe()
    if options:
        assert result.status == 0 and "value 32" in result.stdout, result.describe()
    else:
        assert result.status not in (0, -1) and "value" not in result.stdout, result.describe()


def test_an_interrupt_ends_the_task(start_mpi: Launch[Job]) -> None:
    """An interrupt that a worker gets reaches the task that runs in its child, as it would in the rank."""
    program = """
    import os, time
    from taskfarm import Executor
    def work():
        with open(os.path.join(os.environ["TF_LOG_DIR"], "began"), "w") as file:
            file.write(str(os.getppid()))
        time.sleep(1000)
    with Executor(isolate=True) as executor:
        print("ended", type(executor.submit(work).exception()).__name__, flush=True)
        print("value", executor.submit(pow, 2, 5).result(), flush=True)
    """
    job = start_mpi(program, 2)
    server = int(job.wait_for_log("began"))
    with open(f"/proc/{server}/stat") as file:
        os.kill(int(file.read().rpartition(")")[2].split()[1]), signal.SIGINT)
    result = job.finish(timeout_s=30).check(0)
    assert "ended KeyboardInterrupt" in result.stdout and "value 32" in result.stdout


def test_a_journal_survives_the_death_of_everything(start_mpi: Launch[Job], run_mpi: Launch[Result]) -> None:
    """After the launcher and all ranks were killed, the same program computes only what is missing."""
    program = """
    import os, sys, time
    from taskfarm import Executor
    log = os.path.join(os.environ["TF_LOG_DIR"], "ran")
    def work(x):
        with open(log, "a") as file:
            file.write(f"{x} ")
        time.sleep(0.01)
        return x * x
    with Executor() as executor:
        total = 0
        for value in executor.map(work, range(200), journal=sys.argv[1]):
            total += value
            if value > 60 * 60:
                open(os.path.join(os.environ["TF_LOG_DIR"], "half"), "w").write("here")
        print("total", total, flush=True)
    """
    job = start_mpi(program, 3, args=["../run.db"])
    job.wait_for_log("half")
    for pid in [job.launcher_pid, *job.processes()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    first = job.finish(timeout_s=30)
    result = run_mpi(program, 3, args=["../run.db"]).check(0)
    assert f"total {sum(x * x for x in range(200))}" in result.stdout
    ran, again = len(first.log("ran").split()), len(result.log("ran").split())
    assert ran >= 60 and again <= 200 - 40 and ran + again >= 200, (ran, again)  # the last 50 ms may be missing
