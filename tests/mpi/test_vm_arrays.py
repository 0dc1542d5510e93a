"""``taskfarm.vm``: arrays into memory that the receiver owns. Most promises stand in ``programs/vm_arrays.py``."""

from __future__ import annotations

import os
import signal
import time

import pytest
from checklist import Checklist, cases
from fault_programs import VM
from harness import Job, Launch, Result

PROGRAM = "vm_arrays.py"


@pytest.mark.parametrize(("n", "name"), cases(PROGRAM))
def test_promise(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(PROGRAM, n, name)


WAITS = {
    "sendArray": "vm.sendArray(task, np.ones(10**6))",
    "sendArray with a limit": "vm.sendArray(task, np.ones(10**6), 60)",
    "receiveArray": "vm.receiveArray(None, np.ones(10**6))",
    "receiveArray from one": "vm.receiveArray(task, np.ones(10**6))",
}
DIRECTIONS = {
    "send": ("vm.receiveArray(0, memory)", "vm.sendArray(task, large)"),
    "receive": ("vm.sendArray(MPI.parentTaskID(), memory)", "vm.receiveArray(task, large)"),
}


@pytest.mark.parametrize("wait", list(WAITS))
def test_interrupt(start_mpi: Launch[Job], wait: str) -> None:
    """^C ends the wait of the main program, which ends the job with a status that is not 0."""
    source = (
        VM
        + f"    task = vm.spawnFunction(time.sleep, args=(60,))[0]\n    note('ready', os.getpid())\n    {WAITS[wait]}\n"
    )
    job = start_mpi(source, 3, env={"TASKFARM_LEAVE_S": "0.5"})
    pid = int(job.wait_for_log("ready"))
    time.sleep(0.3)
    start = time.monotonic()
    os.kill(pid, signal.SIGINT)
    result = job.finish(timeout_s=25)
    assert result.status != 0 and "KeyboardInterrupt" in result.stderr, result.describe()
    assert time.monotonic() - start < 12, result.describe()


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_interrupts_that_are_caught(start_mpi: Launch[Job], direction: str) -> None:
    """Interrupts in the middle of waits and of transfers leave everything in order: the next transfer works."""
    theirs, ours = DIRECTIONS[direction]
    source = (
        VM
        + f"""
    def work(n):
        vm = MPI()
        done = 0
        memory = np.zeros(10**6)
        while done < n:
            time.sleep(0.002)
            done += bool({theirs})
        return done
    task, = vm.spawnFunction(work, args=(150,), count=1)
    large = np.ones(10**6)
    interrupted = 0
    note('ready', os.getpid())
    while True:
        try:
            while not vm.checkForIncoming():
                {ours}
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            break
        except KeyboardInterrupt:
            interrupted += 1
    note('over', interrupted)
    result = vm.receiveMessage()[1]
    print(result.success, result.returnValue, interrupted > 0)
    vm.receiveMessage()
    vm.finalize()
    """
    )
    job = start_mpi(source, 2)
    pid = int(job.wait_for_log("ready"))
    for _ in range(40):
        time.sleep(0.013)
        if (job.log_dir / "over").exists():
            break
        os.kill(pid, signal.SIGINT)
    result = job.finish(timeout_s=40).check(0)
    assert result.stdout.split() == ["True", "150", "True"], result.describe()


@pytest.mark.parametrize("end", ["vm.finalize()", "pass", "sys.exit(3)"])
@pytest.mark.parametrize(
    "wait",
    [
        "vm.sendArray(MPI.parentTaskID(), np.ones(10**6))",
        "vm.receiveArray(None, np.ones(10**6), 60)",
        "vm.sendArray(MPITaskID(1, 99), np.ones(10**6))",
    ],
)
def test_the_end_of_the_session(run_mpi: Launch[Result], wait: str, end: str) -> None:
    """Tasks that wait for the other half of a transfer do not keep the job from its end."""
    source = VM + f"    def work():\n        vm = MPI()\n        {wait}\n    vm.spawnFunction(work)\n    {end}\n"
    result = run_mpi(source, 3, timeout_s=20)
    assert result.status == (3 if "3" in end else 0), result.describe()
    assert result.elapsed_s < 15 and "Traceback" not in result.stderr, result.describe()


@pytest.mark.parametrize("other", ["vm.receiveArray(0, np.zeros(10**6))", "time.sleep(60)"])
def test_death_of_the_receiver(start_mpi: Launch[Job], other: str) -> None:
    """If a rank is killed, before or in the middle of transfers, the job ends; nobody waits for it."""
    source = (
        VM
        + f"""
    def work():
        vm = MPI()
        while True:
            {other}
    task = vm.spawnFunction(work, count=1)[0]
    note('ready', pids[1])
    while True:
        vm.sendArray(task, np.ones(10**6))
    """
    )
    job = start_mpi(source, 3)
    pid = int(job.wait_for_log("ready"))
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    assert job.finish(timeout_s=25).status != 0


def test_without_a_doorbell_and_without_spinning(run_mpi: Launch[Result]) -> None:
    """A sender and a receiver that sleep are found by polling where no bell reaches them."""
    source = (
        VM
        + """
    def work():
        vm = MPI()
        memory = np.zeros(10**5)
        for _ in range(3):
            time.sleep(0.3)
            vm.receiveArray(0, memory)
            time.sleep(0.3)
            vm.sendArray(MPI.parentTaskID(), memory)
    task, = vm.spawnFunction(work, count=1)
    memory = np.zeros(10**5)
    for k in range(3):
        vm.sendArray(task, np.full(10**5, float(k)))
        time.sleep(0.5)
        vm.receiveArray(task, memory)
        assert set(memory.tolist()) == {k}
    vm.finalize()
    """
    )
    result = run_mpi(source, 2, env={"TASKFARM_DOORBELL": "0", "TASKFARM_SPIN": "0"}, timeout_s=20).check(0)
    assert result.elapsed_s < 15, result.describe()


@pytest.mark.slow
def test_more_than_two_gib(run_mpi: Launch[Result]) -> None:
    """An array of more than 2 GiB goes from memory to memory, and one there is of it on each side."""
    source = (
        VM
        + """
    import resource
    SIZE = 2**31 + 5
    MARKS = [0, 1, 2**30 - 1, 2**30, 2**31 - 1, 2**31, SIZE - 1]
    def work():
        vm = MPI()
        memory = np.zeros(SIZE, np.uint8)
        sender = vm.receiveArray(0, memory)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return int(np.count_nonzero(memory)), memory[MARKS].tolist(), peak
    task, = vm.spawnFunction(work, count=1)
    large = np.zeros(SIZE, np.uint8)
    large[MARKS] = range(1, len(MARKS) + 1)
    assert vm.sendArray(task, large)
    n_set, marks, peak = vm.receiveMessage()[1].returnValue
    assert (n_set, marks) == (len(MARKS), list(range(1, len(MARKS) + 1))), (n_set, marks)
    assert peak < SIZE + 2**29, peak
    vm.receiveMessage()
    vm.finalize()
    """
    )
    run_mpi(source, 2, timeout_s=300).check(0)
