"""The table of faults, second part: signals and death. Nothing hangs, and no process is left over."""

from __future__ import annotations

import os
import signal
import time

import pytest
from fault_programs import FACES, OBJECTS, VM
from harness import Job, Launch, Result, is_openmpi

# ^C


WAITS = {
    "sleep": "    note('ready', os.getpid())\n    time.sleep(60)\n",
    "receiveMessage": "    note('ready', os.getpid())\n    vm.receiveMessage(-1)\n",
    "receiveMessage with tasks": (
        "    vm.spawnFunction(time.sleep, args=(60,))\n    note('ready', os.getpid())\n    vm.receiveMessage(-1)\n"
    ),
    "wait mode": (
        "    note('ready', os.getpid())\n    with objects.on_error('wait'):\n"
        "        objects.call(lambda: time.sleep(60) if objects.rank else 0)\n"
    ),
    "call_all": "    note('ready', os.getpid())\n    objects.call_all(lambda: time.sleep(60) if objects.rank else 0)\n",
    "collective": (
        "    note('ready', os.getpid())\n"
        "    objects.call(lambda: (time.sleep(60) if objects.rank else 0, objects.comm.allreduce(1)))\n"
    ),
}


def waiting_program(where: str) -> str:
    return (VM if "receiveMessage" in where else OBJECTS) + WAITS[where]


@pytest.mark.parametrize("where", list(WAITS))
def test_interrupt_of_rank0(start_mpi: Launch[Job], where: str) -> None:
    """SIGINT to rank 0, wherever it waits, ends all ranks within seconds with a status that is not 0."""
    job = start_mpi(waiting_program(where), 4, env={"TASKFARM_STUCK_S": "5"})
    pid = int(job.wait_for_log("ready"))
    time.sleep(0.3)
    start = time.monotonic()
    os.kill(pid, signal.SIGINT)
    result = job.finish(timeout_s=25)
    assert time.monotonic() - start < 12, result.describe()
    assert result.status != 0, result.describe()
    if where != "collective":  # there Python cannot act before the collective comes back
        assert "KeyboardInterrupt" in result.stderr, result.describe()


@pytest.mark.parametrize("where", ["sleep", "receiveMessage with tasks"])
def test_interrupt_of_the_launcher(start_mpi: Launch[Job], where: str) -> None:
    """^C at the terminal: SIGINT to mpiexec ends everything with a status that is not 0."""
    job = start_mpi(waiting_program(where), 4)
    job.wait_for_log("ready")
    start = time.monotonic()
    os.kill(job.launcher_pid, signal.SIGINT)
    result = job.finish(timeout_s=25)
    assert result.status != 0 and time.monotonic() - start < 12, result.describe()


@pytest.mark.parametrize("face", ["sleep", "receiveMessage"])
def test_interrupt_of_the_whole_group(start_mpi: Launch[Job], face: str) -> None:
    """A terminal sends ^C to every process of the group at once."""
    job = start_mpi(waiting_program(face), 4)
    job.wait_for_log("ready")
    os.killpg(job.launcher_pid, signal.SIGINT)
    assert job.finish(timeout_s=25).status != 0


@pytest.mark.parametrize("launcher", ["taskfarm run", "objects"])
def test_interrupt_under_our_own_launchers(start_mpi: Launch[Job], launcher: str) -> None:
    """SIGINT to the launcher process of ``taskfarm run`` and of ``-m taskfarm.objects``."""
    job = start_mpi(waiting_program("sleep"), 4, launcher=launcher)
    job.wait_for_log("ready")
    os.kill(job.launcher_pid, signal.SIGINT)
    assert job.finish(timeout_s=25).status != 0


@FACES
def test_interrupt_of_idle_workers(run_mpi: Launch[Result], face: str) -> None:
    """SIGINT to idle workers: no message is lost in a hang; the job either goes on rightly or ends cleanly."""
    use = (
        "    assert objects.call_all(lambda: objects.comm.allreduce(1)) == [4] * 4\n"
        if face is OBJECTS
        else "    vm.spawnFunction(len, args=('ab',))\n    assert len(drain()) == 2 * initial\n"
    )
    body = f"""
    for pid in pids[1:]:
        os.kill(pid, signal.SIGINT)
    time.sleep(0.5)
{use}
    print("went on rightly")
    """
    result = run_mpi(face + body, 4, timeout_s=20)
    assert result.elapsed_s < 15
    assert (result.status == 0) == ("went on rightly" in result.stdout), result.describe()


def test_interrupt_of_a_working_worker(run_mpi: Launch[Result]) -> None:
    """SIGINT to a worker in a task: the task fails or the job ends with a status that is not 0; no hang."""
    body = """
    vm.spawnFunction(time.sleep, args=(30,), count=1)
    time.sleep(0.3)
    os.kill(pids[1], signal.SIGINT)
    messages = drain()
    assert [m.success for _, m in messages if type(m) is MsgTaskResult] == [False]
    print("reported")
    vm.finalize()
    """
    result = run_mpi(VM + body, 4, timeout_s=25)
    assert result.elapsed_s < 15
    assert result.status != 0 or "reported" in result.stdout, result.describe()


def test_second_signal_during_the_end(start_mpi: Launch[Job]) -> None:
    """An impatient user sends ^C twice."""
    job = start_mpi(waiting_program("receiveMessage with tasks"), 4)
    job.wait_for_log("ready")
    for _ in range(2):
        os.kill(job.launcher_pid, signal.SIGINT)
        time.sleep(0.2)
    assert job.finish(timeout_s=25).status != 0


def test_termination_of_the_launcher(start_mpi: Launch[Job]) -> None:
    """SIGTERM to mpiexec, as a batch system sends it."""
    job = start_mpi(waiting_program("sleep"), 4)
    job.wait_for_log("ready")
    os.kill(job.launcher_pid, signal.SIGTERM)
    assert job.finish(timeout_s=25).status != 0


# Death


@FACES
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSEGV])
def test_killed_idle_worker(run_mpi: Launch[Result], face: str, sig: int) -> None:
    """An idle worker that dies ends the job promptly, with a status that is not 0."""
    body = f"    os.kill(pids[2], {int(sig)})\n    time.sleep(20)\n"
    result = run_mpi(face + body, 4, timeout_s=25)
    assert result.status != 0 and result.elapsed_s < 15, result.describe()


@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_task_that_kills_its_process(run_mpi: Launch[Result], how: str) -> None:
    """A task that takes its process with it ends the job promptly, with a status that is not 0."""
    body = f"    def die():\n        {how}\n    vm.spawnFunction(die, count=1)\n    drain()\n    time.sleep(20)\n"
    result = run_mpi(VM + body, 4, timeout_s=25)
    assert result.status != 0 and result.elapsed_s < 15, result.describe()


def test_worker_that_dies_in_a_call(run_mpi: Launch[Result]) -> None:
    """A worker killed in a collective call ends the job promptly, with a status that is not 0."""
    body = """
    objects.call(lambda: (os.kill(os.getpid(), 9) if objects.rank == 1 else 0, objects.comm.allreduce(1)))
    """
    result = run_mpi(OBJECTS + body, 4, timeout_s=25)
    assert result.status != 0 and result.elapsed_s < 15, result.describe()


@FACES
def test_killed_rank0(start_mpi: Launch[Job], face: str) -> None:
    """The death of rank 0 leaves no worker behind."""
    job = start_mpi(face + "    note('ready', os.getpid())\n    time.sleep(60)\n", 4)
    os.kill(int(job.wait_for_log("ready")), signal.SIGKILL)
    assert job.finish(timeout_s=25).status != 0


@pytest.mark.skipif(
    is_openmpi(), reason="Open MPI 5 itself leaves a rank that sleeps behind when its launcher is killed"
)
def test_killed_launcher(start_mpi: Launch[Job]) -> None:
    """Even when mpiexec itself is killed no rank stays behind for long."""
    job = start_mpi(waiting_program("sleep"), 4)
    job.wait_for_log("ready")
    os.kill(job.launcher_pid, signal.SIGKILL)
    job.finish(timeout_s=25)


def test_worker_whose_main_program_fails_before_the_loop(run_mpi: Launch[Result]) -> None:
    """A worker that raises before it enters its loop: the job ends with its traceback."""
    source = """
        from taskfarm import objects
        if objects.rank == 1:
            raise ImportError("missing on this host")
        objects.launch_event_loop()
        if objects.rank0:
            objects.call(lambda: objects.comm.allreduce(1))
    """
    result = run_mpi(source, 4, timeout_s=25)
    assert result.status != 0 and "missing on this host" in result.stderr, result.describe()
    assert result.elapsed_s < 15, result.describe()


def test_worker_that_leaves_before_the_loop(run_mpi: Launch[Result]) -> None:
    """A worker that ends its program normally without entering the loop: an error that names it, or an end; no hang."""
    source = """
        import sys
        from taskfarm import objects
        if objects.rank == 1:
            sys.exit(0)
        objects.launch_event_loop()
        if objects.rank0:
            objects.call(lambda: objects.comm.allreduce(1))
    """
    result = run_mpi(source, 4, env={"TASKFARM_OPEN_S": "3"}, timeout_s=30)
    assert result.status != 0, result.describe()
    assert "1" in result.stderr and result.elapsed_s < 20, result.describe()
