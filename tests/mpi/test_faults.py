"""The table of faults: each test breaks or kills something for real. Nothing hangs, and no slot or process is leaked.

Every test goes through the harness, which fails on a hang and on processes that outlive the launcher. Faults of collective calls
that strand other ranks are in ``test_objects_stuck.py``; failures from which a job goes on are in the programs of the two faces.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

import pytest
from harness import Job, Launch, Result, is_openmpi

OBJECTS = """
    import os, signal, sys, time, threading
    import numpy as np
    from taskfarm import objects
    from taskfarm.errors import RemoteError, UsageError, TaskfarmError
    objects.launch_event_loop()
    if not objects.rank0:
        sys.exit(0)
    def note(name, text="x"):
        path = os.environ["TF_LOG_DIR"] + "/" + name
        with open(path + "~", "w") as file:
            file.write(str(text))
        os.rename(path + "~", path)
    pids = objects.call_all(os.getpid)
"""
VM = """
    import os, signal, sys, time, threading
    import numpy as np
    from taskfarm.vm import MPI, MPITaskID, MsgTaskExit, MsgTaskResult
    from taskfarm.errors import UsageError, TaskfarmError
    vm = MPI()
    initial = vm.freeSlots()
    def note(name, text="x"):
        path = os.environ["TF_LOG_DIR"] + "/" + name
        with open(path + "~", "w") as file:
            file.write(str(text))
        os.rename(path + "~", path)
    def drain():
        seen = []
        while vm.freeSlots() != initial:
            seen.append(vm.receiveMessage(10))
        return seen
    pids = [MPI.vmStatus["slots"][rank]["pid"] for rank in range(MPI.slots())]
"""
FACES = pytest.mark.parametrize("face", [OBJECTS, VM], ids=["objects", "vm"])


# Rank 0 raises


RANK0_PLACES = {
    "idle": "    raise ValueError('fault of rank 0')\n",
    "in a call": "    objects.call(lambda: [][1] if objects.rank else (_ for _ in ()).throw(ValueError('fault of rank 0')))\n",
    "after failures of workers": "    objects.call(lambda: 1 // 0 if objects.rank else 1)\n    raise ValueError('fault of rank 0')\n",
    "with handles": "    h = [objects.call(objects.function_call_manage, list) for _ in range(5)]\n    raise ValueError('fault of rank 0')\n",
    "while workers work": "    objects.call(lambda: time.sleep(1.0) if objects.rank else 0)\n    raise ValueError('fault of rank 0')\n",
    "in a call while workers gather": (
        "    def work():\n        if objects.rank0: raise ValueError('fault of rank 0')\n        objects.comm.gather(1, root=0)\n"
        "    objects.call(work)\n"
    ),
}


@pytest.mark.parametrize("place", list(RANK0_PLACES))
def test_rank0_raises_anywhere(run_mpi: Launch[Result], place: str) -> None:
    """An exception of rank 0, wherever, ends the job within seconds with its traceback and status 1."""
    result = run_mpi(OBJECTS + RANK0_PLACES[place], 4, timeout_s=20).check(1)
    assert "ValueError: fault of rank 0" in result.stderr and result.elapsed_s < 8, result.describe()


def test_rank0_raises_while_it_handles_a_message(run_mpi: Launch[Result]) -> None:
    """The spawner fails between two messages, with others unread and tasks running."""
    body = """
    vm.spawnFunction(lambda: [MPI().sendMessage(MPI.parentTaskID(), np.zeros(100_000)) for _ in range(20)] and time.sleep(1))
    vm.receiveMessage(10)
    raise ValueError("fault of rank 0")
    """
    result = run_mpi(VM + body, 4, timeout_s=20).check(1)
    assert "ValueError: fault of rank 0" in result.stderr and result.elapsed_s < 10, result.describe()


def test_rank0_raises_before_it_uses_the_library(run_mpi: Launch[Result]) -> None:
    """Rank 0 fails after the workers went into their loop, and before it did anything itself."""
    source = """
        import sys
        from taskfarm import objects
        if objects.rank0:
            raise ValueError("fault of rank 0")
        objects.launch_event_loop()
    """
    result = run_mpi(source, 4, timeout_s=20)
    assert result.status != 0 and "ValueError: fault of rank 0" in result.stderr, result.describe()
    assert result.elapsed_s < 10


@pytest.mark.parametrize("launcher", ["mpiexec", "taskfarm run"])
def test_rank0_has_a_syntax_error(run_mpi: Launch[Result], launcher: str) -> None:
    """A program that does not even compile ends with a status that is not 0."""
    result = run_mpi("def broken(:\n", 4, launcher=launcher, timeout_s=20)
    assert result.status != 0 and "SyntaxError" in result.stderr, result.describe()


# sys.exit


@FACES
def test_exit_3_on_rank0(run_mpi: Launch[Result], face: str) -> None:
    """`sys.exit(3)` on rank 0 ends all ranks with status 3."""
    assert run_mpi(face + "    sys.exit(3)\n", 4, timeout_s=20).check(3).elapsed_s < 8


def test_exit_3_in_a_task(run_mpi: Launch[Result]) -> None:
    """`sys.exit(3)` in a task is its failure; the worker and the job live on."""
    body = """
    vm.spawnFunction(sys.exit, args=(3,))
    messages = drain()
    assert [m.success for _, m in messages if type(m) is MsgTaskResult] == [False] * initial
    vm.spawnFunction(len, args=("ab",))
    assert [m.returnValue for _, m in drain() if type(m) is MsgTaskResult] == [2] * initial
    vm.finalize()
    """
    run_mpi(VM + body, 4, timeout_s=20).check(0)


def test_exit_in_a_thread_of_a_worker(run_mpi: Launch[Result]) -> None:
    """A thread that a task left behind and that exits or raises does not disturb the worker."""
    body = """
    def start():
        threading.excepthook = lambda args: None
        threading.Thread(target=sys.exit, args=(4,)).start()
        threading.Thread(target=lambda: 1 // 0).start()
    vm.spawnFunction(start)
    drain()
    vm.spawnFunction(len, args=("ab",))
    assert len(drain()) == 2 * initial
    vm.finalize()
    """
    run_mpi(VM + body, 2, timeout_s=20).check(0)


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
    assert result.elapsed_s < 12
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
    assert result.elapsed_s < 12
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
    assert result.status != 0 and result.elapsed_s < 10, result.describe()


@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_task_that_kills_its_process(run_mpi: Launch[Result], how: str) -> None:
    """A task that takes its process with it ends the job promptly, with a status that is not 0."""
    body = f"    def die():\n        {how}\n    vm.spawnFunction(die, count=1)\n    drain()\n    time.sleep(20)\n"
    result = run_mpi(VM + body, 4, timeout_s=25)
    assert result.status != 0 and result.elapsed_s < 12, result.describe()


def test_worker_that_dies_in_a_call(run_mpi: Launch[Result]) -> None:
    """A worker killed in a collective call ends the job promptly, with a status that is not 0."""
    body = """
    objects.call(lambda: (os.kill(os.getpid(), 9) if objects.rank == 1 else 0, objects.comm.allreduce(1)))
    """
    result = run_mpi(OBJECTS + body, 4, timeout_s=25)
    assert result.status != 0 and result.elapsed_s < 10, result.describe()


@FACES
def test_killed_rank0(start_mpi: Launch[Job], face: str) -> None:
    """The death of rank 0 leaves no worker behind."""
    job = start_mpi(face + "    note('ready', os.getpid())\n    time.sleep(60)\n", 4)
    os.kill(int(job.wait_for_log("ready")), signal.SIGKILL)
    assert job.finish(timeout_s=25).status != 0


def test_killed_launcher(start_mpi: Launch[Job]) -> None:
    """Even when mpiexec itself is killed no rank stays behind for long."""
    job = start_mpi(waiting_program("sleep"), 4)
    job.wait_for_log("ready")
    os.kill(job.launcher_pid, signal.SIGKILL)
    job.finish(timeout_s=25)


def test_worker_whose_main_program_fails_before_the_loop(run_mpi: Launch[Result]) -> None:
    """A worker that raises before it enters its loop: the job ends with its traceback; rank 0 does not wait for ever."""
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
    assert result.elapsed_s < 12, result.describe()


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


# Messages and memory


def test_unread_messages_at_finalize(run_mpi: Launch[Result]) -> None:
    """Unread messages between all pairs of ranks, small and large, are drained."""
    body = """
    def talk(peers):
        own = MPI()
        for peer in [MPI.parentTaskID(), *peers]:
            own.sendMessage(peer, "small")
            own.sendMessage(peer, np.zeros(2_000_000))
        own.receiveMessage(-1)
    silent = vm.spawnFunction(time.sleep, args=(0.6,), count=1)
    vm.spawnFunction(talk, args=(silent,), count=2)
    time.sleep(0.3)
    vm.finalize()
    """
    assert run_mpi(VM + body, 4, timeout_s=30).check(0).stderr == ""


def test_unread_message_of_the_user_on_comm_at_the_end(run_mpi: Launch[Result]) -> None:
    """A user's own unread message on `comm` does not disturb the end."""
    body = "    objects.call(lambda: objects.comm.isend('x', dest=0).Free() if objects.rank == 1 else None)\n    objects.quit()\n"
    run_mpi(OBJECTS + body, 2, timeout_s=20).check(0)


def test_memory_error_in_a_task(run_mpi: Launch[Result]) -> None:
    """A task that asks for too much memory fails, and the worker lives on."""
    body = """
    vm.spawnFunction(lambda: bytearray(1 << 60))
    assert [m.success for _, m in drain() if type(m) is MsgTaskResult] == [False] * initial
    vm.spawnFunction(len, args=("ab",))
    assert len(drain()) == 2 * initial
    vm.finalize()
    """
    run_mpi(VM + body, 2, timeout_s=20).check(0)


def test_closed_output_streams(run_mpi: Launch[Result]) -> None:
    """Tasks that close or replace stdout and stderr do not break the worker."""
    body = """
    def close():
        sys.stdout.close()
        sys.stderr = None
        raise ValueError("after closing")
    vm.spawnFunction(close, count=1)
    drain()
    vm.spawnFunction(len, args=("ab",), count=1)
    assert [m.returnValue for _, m in drain() if type(m) is MsgTaskResult] == [2]
    vm.finalize()
    """
    run_mpi(VM + body, 2, timeout_s=20).check(0)


def test_working_directory_that_vanishes(run_mpi: Launch[Result]) -> None:
    """A worker whose working directory was removed goes on."""
    body = """
    def vanish():
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")
    vm.spawnFunction(vanish, count=1)
    drain()
    vm.spawnFunction(len, args=("ab",), count=1)
    assert [m.returnValue for _, m in drain() if type(m) is MsgTaskResult] == [2]
    vm.finalize()
    """
    run_mpi(VM + body, 2, timeout_s=20).check(0)


# Launchers


FOREIGN = """
    from taskfarm import objects
    objects.launch_event_loop()
    if objects.rank0:
        objects.call(len, ())
        print("size", objects.size)
"""


@pytest.mark.parametrize("face", ["objects", "vm"])
def test_launcher_of_another_mpi(run_mpi: Launch[Result], face: str) -> None:
    """N worlds of one rank, as a foreign mpiexec makes them, are detected and explained."""
    variables = {"PMI_SIZE": "4", "PMI_RANK": "0"} if is_openmpi() else {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}
    source = FOREIGN if face == "objects" else "from taskfarm.vm import MPI\nvm = MPI()\nprint('size', vm.slots())\n"
    result = run_mpi(source, 1, launcher="plain", env=variables, timeout_s=20)
    assert "mpiexec" in result.stderr and "4" in result.stderr, result.describe()


def test_real_launcher_of_another_mpi(run_mpi: Launch[Result]) -> None:
    """The same with a real launcher of another MPI, where ``TASKFARM_TEST_OTHER_MPIEXEC`` names one."""
    other = os.environ.get("TASKFARM_TEST_OTHER_MPIEXEC")
    if not other:
        pytest.skip("TASKFARM_TEST_OTHER_MPIEXEC is not set")

    def launcher(n: int, target: Sequence[str]) -> list[str]:
        return [other, "-n", str(n), sys.executable, *target]

    result = run_mpi(FOREIGN, 2, launcher=launcher, timeout_s=30)
    assert "mpiexec" in result.stderr and "2" in result.stderr, result.describe()


# Loops of faults


FLOOD = {
    "failing tasks and calls": """
    for k in range(30):
        objects.call(lambda: 1 // 0 if objects.rank == 2 else 0)
        time.sleep(0.01)
        try:
            objects.call(len, ())
        except RemoteError:
            pass
    time.sleep(0.3)
    try:
        objects.call(len, ())
    except RemoteError:
        pass
    assert objects.call_all(lambda: objects.rank) == [0, 1, 2, 3]
    objects.quit()
    """,
    "diverging collectives": """
    def work(k):
        if objects.rank == 0 and k % 2:
            raise ValueError(k)
        return objects.comm.gather((objects.rank, k), root=0)
    for k in range(30):
        try:
            assert objects.call(work, k) == [(r, k) for r in range(4)]
        except ValueError:
            assert k % 2
    objects.quit()
    """,
}


@pytest.mark.parametrize("kind", list(FLOOD))
def test_many_faults_in_a_row(run_mpi: Launch[Result], kind: str) -> None:
    """Faults that a job survives may come again and again."""
    run_mpi(OBJECTS + FLOOD[kind], 4, timeout_s=40).check(0)
