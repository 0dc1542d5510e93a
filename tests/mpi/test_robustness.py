"""Uses that nobody forbids: exceptions out of the blue, phases around the loop, many ranks, child processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

import pytest
from fault_programs import OBJECTS, VM
from harness import Job, Launch, Result, mpiexec_path

ALARM = """
    class Alarm(Exception):
        pass
    def ring(*_):
        raise Alarm("the time is up")
"""


def test_alarm_in_a_task_is_its_failure(run_mpi: Launch[Result]) -> None:
    """A signal handler that raises in the user's code of a task fails the task; the worker lives on."""
    body = """
    def work():
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        time.sleep(20)
    vm.spawnFunction(work)
    messages = [m for _, m in drain() if type(m) is MsgTaskResult]
    assert [m.success for m in messages] == [False] * initial
    assert all("the time is up" in m.traceback for m in messages)
    vm.spawnFunction(len, args=("ab",))
    assert [m.returnValue for _, m in drain() if type(m) is MsgTaskResult] == [2] * initial
    vm.finalize()
    """
    assert run_mpi(VM + ALARM + body, 4, timeout_s=20).check(0).elapsed_s < 15


@pytest.mark.parametrize(
    "face_and_wait",
    [
        (OBJECTS, "objects.call_all(lambda: time.sleep(1.0) if objects.rank else 0)"),
        (VM, "vm.spawnFunction(time.sleep, args=(1.0,)), vm.receiveMessage(30)"),
    ],
    ids=["objects", "vm"],
)
def test_alarm_of_the_program_ends_the_job(run_mpi: Launch[Result], face_and_wait: tuple[str, str]) -> None:
    """A signal handler of rank 0 that raises while it waits: the traceback, status 1, no hang."""
    face, wait = face_and_wait
    body = f"    signal.signal(signal.SIGALRM, ring)\n    signal.setitimer(signal.ITIMER_REAL, 0.3)\n    {wait}\n"
    result = run_mpi(face + ALARM + body, 4, timeout_s=20).check(1)
    assert "Alarm: the time is up" in result.stderr and result.elapsed_s < 15, result.describe()


def test_interrupt_that_the_program_survives(start_mpi: Launch[Job]) -> None:
    """A program that catches the KeyboardInterrupt of a waiting call goes on with right values."""
    body = """
    try:
        note("ready", os.getpid())
        objects.call_all(lambda: time.sleep(1.5 if objects.rank else 0))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    assert objects.call_all(lambda: objects.rank) == [0, 1, 2, 3]
    objects.quit()
    """
    job = start_mpi(OBJECTS + body, 4)
    pid = int(job.wait_for_log("ready"))
    time.sleep(0.3)
    os.kill(pid, signal.SIGINT)
    assert "interrupted" in job.finish(timeout_s=20).check(0).stdout


def test_comm_before_and_after_the_loop(run_mpi: Launch[Result]) -> None:
    """`comm` serves programs in which all ranks work before the loop and after `quit`; launching again does nothing."""
    source = """
        from taskfarm import objects
        assert objects.comm.bcast(lambda: 5, root=0)() == 5
        assert objects.comm.allreduce(1) == objects.size
        objects.launch_event_loop()
        if objects.rank0:
            assert objects.call_all(lambda: objects.comm.allreduce(1)) == [objects.size] * objects.size
            objects.quit()
        assert objects.comm.gather(objects.rank, root=0) == (list(range(objects.size)) if objects.rank0 else None)
        objects.launch_event_loop()
        objects.comm.Barrier()
    """
    run_mpi(source, 4, timeout_s=20).check(0)


@pytest.mark.parametrize("end", ["objects.quit()", "pass"])
def test_accepted_work_is_done_before_the_end(run_mpi: Launch[Result], end: str) -> None:
    """A call that rank 0 has left is finished by the workers, also when `quit` or the end of the program follows."""
    body = f"""
    def work():
        if objects.rank:
            time.sleep(1.2)
        note(f"done-{{objects.rank}}", "done")
    objects.call(work)
    objects.call(work)
    {end}
    """
    result = run_mpi(OBJECTS + body, 2, timeout_s=20).check(0)
    assert result.log("done-1") == "done" and result.elapsed_s > 2.4


def test_many_more_ranks_than_cores(run_mpi: Launch[Result]) -> None:
    """Eight ranks on a small machine: calls, tasks and messages between all of them."""
    source = """
        import sys
        from taskfarm import objects
        from taskfarm.vm import MPI, MsgTaskResult
        objects.launch_event_loop()
        if not objects.rank0:
            sys.exit(0)
        n = objects.size
        assert objects.call_all(lambda: objects.comm.allreduce(1)) == [n] * n
        vm = MPI()
        def ring():
            own = MPI()
            _, neighbour = own.receiveMessage(30, fromDestination=0)
            own.sendMessage(neighbour, b"x" * 100_000)
            return len(own.receiveMessage(30)[1])
        ids = vm.spawnFunction(ring)
        for task, neighbour in zip(ids, [*ids[1:], ids[0]]):
            vm.sendMessage(task, neighbour)
        values = []
        while vm.freeSlots() < n - 1:
            message = vm.receiveMessage(30)[1]
            if type(message) is MsgTaskResult:
                values.append(message.returnValue)
        assert values == [100_000] * (n - 1)
        for k in range(50):
            objects.call(lambda x: x, bytes(50_000))
        assert objects.call_all(lambda: 1) == [1] * n
    """
    run_mpi(source, 8, timeout_s=60).check(0)


def test_child_processes_in_tasks_and_calls(run_mpi: Launch[Result]) -> None:
    """Tasks and calls may start programs and fork; the child's end is no end of the rank."""
    body = """
    import subprocess
    def child():
        text = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True).stdout
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return int(text)
    for _ in range(2):
        vm.spawnFunction(child)
        values = [m.returnValue for _, m in drain() if type(m) is MsgTaskResult]
        assert values == [42] * initial, values
    vm.finalize()
    """
    run_mpi(VM + body, 2, timeout_s=30).check(0)


def test_load_that_exits(run_mpi: Launch[Result]) -> None:
    """Arguments and results whose loading raises SystemExit or KeyboardInterrupt are failures like any other."""
    body = """
    class Trap:
        def __init__(self, name, on_worker):
            self.state = name, on_worker
        def __reduce__(self):
            return spring, self.state
    def spring(name, on_worker):
        if (MPI.taskID().rank != 0) == on_worker:
            raise {"exit": SystemExit, "interrupt": KeyboardInterrupt}[name](5)
        return Trap(name, on_worker)
    for name in ("exit", "interrupt"):
        vm.spawnFunction(lambda x: 1, args=(Trap(name, True),), count=1)
        assert [m.success for _, m in drain() if type(m) is MsgTaskResult] == [False]
        vm.spawnFunction(lambda make: make(), args=(lambda name=name: Trap(name, False),), count=1)
        assert [m.success for _, m in drain() if type(m) is MsgTaskResult] == [False]
    vm.finalize()
    """
    run_mpi(VM + body, 2, timeout_s=20).check(0)


def test_tasks_that_change_their_process(run_mpi: Launch[Result]) -> None:
    """Signal handlers, limits, default pickling and random state that a task changes do not disturb the worker."""
    body = """
    def disturb():
        import copyreg, pickle, random, socket
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        socket.setdefaulttimeout(0.001)
        sys.setrecursionlimit(200)
        sys.path.clear()
        os.environ.clear()
        sys.modules.pop("taskfarm.vm", None)
        threading.excepthook = None
        return "disturbed"
    vm.spawnFunction(disturb)
    drain()
    vm.spawnFunction(sum, args=([1, 2],))
    assert [m.returnValue for _, m in drain() if type(m) is MsgTaskResult] == [3] * initial
    vm.finalize()
    """
    run_mpi(VM + body, 2, timeout_s=20).check(0)


def test_warnings_as_errors(run_mpi: Launch[Result]) -> None:
    """A program under ``python -W error`` sees no warning of ours."""

    def launcher(n: int, target: Sequence[str]) -> list[str]:
        return [mpiexec_path(), "-n", str(n), sys.executable, "-W", "error", *target]

    body = """
    assert objects.call_all(lambda: objects.comm.allreduce(1)) == [4] * 4
    oid = objects.call(objects.function_call_manage, list)
    del oid
    objects.quit()
    """
    assert run_mpi(OBJECTS + body, 4, launcher=launcher, timeout_s=20).check(0).stderr == ""


def test_nothing_of_ours_is_left_on_disk(run_mpi: Launch[Result]) -> None:
    """Neither a normal end nor an abort leaves files of ours in shared memory or the temporary folder."""

    def ours() -> set[str]:
        return {name for folder in ("/dev/shm", "/tmp") for name in os.listdir(folder) if "taskfarm-bell" in name}

    before = ours()
    for status, end in ((0, "    objects.quit()\n"), (1, "    raise ValueError\n")):
        run_mpi(OBJECTS + end, 4, env={"TMPDIR": None}, timeout_s=20).check(status)
    deadline = time.monotonic() + 3  # another job on this machine may be starting
    while left := ours() - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
