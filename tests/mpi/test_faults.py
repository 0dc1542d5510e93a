"""The table of faults: each test breaks or kills something for real. Nothing hangs, and no slot or process is leaked.

Every test goes through the harness, which fails on a hang and on processes that outlive the launcher. Faults of
collective calls that strand other ranks are in ``test_objects_stuck.py``; failures from which a job goes on are in the
programs of the two faces.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import pytest
from fault_programs import FACES, OBJECTS, VM
from harness import Launch, Result, is_openmpi

# Rank 0 raises


RAISE = "    raise ValueError('fault of rank 0')\n"
RANK0_PLACES = {
    "idle": RAISE,
    "in a call": """
    def work():
        if objects.rank0:
            raise ValueError("fault of rank 0")
    objects.call(work)
    """,
    "after failures of workers": "    objects.call(lambda: 1 // 0 if objects.rank else 1)\n" + RAISE,
    "with handles": "    h = [objects.call(objects.function_call_manage, list) for _ in range(5)]\n" + RAISE,
    "while workers work": "    objects.call(lambda: time.sleep(1.0) if objects.rank else 0)\n" + RAISE,
    "in a call while workers gather": """
    def work():
        if objects.rank0:
            raise ValueError("fault of rank 0")
        objects.comm.gather(1, root=0)
    objects.call(work)
    """,
}


@pytest.mark.parametrize("place", list(RANK0_PLACES))
def test_rank0_raises_anywhere(run_mpi: Launch[Result], place: str) -> None:
    """An exception of rank 0, wherever, ends the job within seconds with its traceback and status 1."""
    result = run_mpi(OBJECTS + RANK0_PLACES[place], 4, timeout_s=20).check(1)
    assert "ValueError: fault of rank 0" in result.stderr and result.elapsed_s < 15, result.describe()


def test_rank0_raises_while_it_handles_a_message(run_mpi: Launch[Result]) -> None:
    """The spawner fails between two messages, with others unread and tasks running."""
    body = """
    vm.spawnFunction(lambda: [MPI().sendMessage(MPI.parentTaskID(), np.zeros(100_000)) for _ in range(20)])
    vm.receiveMessage(10)
    raise ValueError("fault of rank 0")
    """
    result = run_mpi(VM + body, 4, timeout_s=20).check(1)
    assert "ValueError: fault of rank 0" in result.stderr and result.elapsed_s < 15, result.describe()


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
    assert result.elapsed_s < 15


@pytest.mark.parametrize("launcher", ["mpiexec", "taskfarm run"])
def test_rank0_has_a_syntax_error(run_mpi: Launch[Result], launcher: str) -> None:
    """A program that does not even compile ends with a status that is not 0."""
    result = run_mpi("def broken(:\n", 4, launcher=launcher, timeout_s=20)
    assert result.status != 0 and "SyntaxError" in result.stderr, result.describe()


def test_worker_fails_before_it_uses_the_library(run_mpi: Launch[Result]) -> None:
    """Under ``taskfarm run`` a worker that fails before it ever used the library ends the job with its traceback."""
    source = """
        from mpi4py import MPI
        if MPI.COMM_WORLD.rank == 2:
            raise ValueError("fault of rank 2")
        from taskfarm import objects
        objects.launch_event_loop()
        if objects.rank0:
            objects.call(len, ())
    """
    result = run_mpi(source, 4, launcher="taskfarm run", timeout_s=20)
    assert result.status != 0 and "ValueError: fault of rank 2" in result.stderr, result.describe()
    assert result.elapsed_s < 15


# sys.exit


@FACES
def test_exit_3_on_rank0(run_mpi: Launch[Result], face: str) -> None:
    """`sys.exit(3)` on rank 0 ends all ranks with status 3."""
    assert run_mpi(face + "    sys.exit(3)\n", 4, timeout_s=20).check(3).elapsed_s < 15


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
    body = """
    objects.call(lambda: objects.comm.isend("x", dest=0).Free() if objects.rank == 1 else None)
    objects.quit()
    """
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
    variables = (
        {"PMI_SIZE": "4", "PMI_RANK": "0"}
        if is_openmpi()
        else {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}
    )
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
        try:  # each of them may be the one that hears of the failure before
            objects.call(lambda: 1 // 0 if objects.rank == 2 else 0)
            time.sleep(0.01)
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
