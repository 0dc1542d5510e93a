"""With supervisors a job outlives its workers, and where it cannot, it ends at once and says who died."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import PROGRAMS, Launch, Result, is_openmpi

SURVIVE = {"launcher": "taskfarm run --survive"}


def left_in_shared_memory(result: Result) -> list[str]:
    """What a job had in shared memory and has not removed."""
    names = result.log("segments").split()
    assert names, "the job has noted its segments"
    return [name for name in names if (Path("/dev/shm") / name).exists()]


@pytest.mark.parametrize("seed", [1, 2])
def test_two_deaths_cost_a_farm_nothing(run_mpi: Launch[Result], seed: int) -> None:
    """500 tasks, two workers killed: all results right, the script's own status, nothing left in shared memory."""
    result = run_mpi(PROGRAMS / "killed_farm.py", 5, args=[str(seed)], timeout_s=60, **SURVIVE).check(0)
    assert "all right without" in result.stdout
    assert result.stderr.count("was killed by SIGKILL; going on without it") == 2
    assert not left_in_shared_memory(result)


def test_each_face_tells_of_deaths_in_its_way(run_mpi: Launch[Result]) -> None:
    """A failed task, lost slots, repeated attempts, WorkerLostError; a stopped rank dies, a long task does not."""
    env = {"TASKFARM_HEARTBEAT_S": "3"}
    result = run_mpi(PROGRAMS / "deaths.py", 6, env=env, timeout_s=60, **SURVIVE).check(7)
    assert "THE END" in result.stdout
    assert "was stopped for 3 s" in result.stderr


def test_a_task_of_several_ranks_that_loses_one(run_mpi: Launch[Result]) -> None:
    """It ends on the others, which wait for the dead inside MPI, and is tried again on ranks that are left."""
    program = """
    import os, signal
    from taskfarm import Executor, task_comm
    def die_once(path):
        comm = task_comm()
        if comm.rank == 1:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        comm.barrier()
        return comm.allreduce(1)
    def die():
        if task_comm().rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        task_comm().barrier()
    with Executor() as executor:
        pairs = executor.with_options(ranks=2)
        print("before", pairs.submit(lambda: task_comm().allreduce(1)).result())
        print("again", pairs.submit(die_once, os.path.abspath("died")).result())
        print("plain", sum(executor.map(abs, range(100))))
        print("error", pairs.with_options(retries=0).submit(die).exception())
        print("left", executor.submit(pow, 2, 5).result())
    """
    result = run_mpi(program, 4, timeout_s=60, **SURVIVE).check(0)
    told = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    assert told["before"] == told["again"] == "2", result.describe()
    assert told["plain"] == "4950" and told["left"] == "32", result.describe()
    assert told["error"].startswith(
        "the task was lost once with the process that ran it: attempt 1, rank 3: was killed"
    )


def test_a_rank_that_dies_on_its_way_to_a_task(run_mpi: Launch[Result]) -> None:
    """The others wait for it, outside of MPI; they are freed, and the task is tried again on ranks that are left."""
    program = """
    import os, signal
    from taskfarm import Executor, objects, task_comm
    def die_on_2():
        if objects.rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    with Executor(initializer=die_on_2) as executor:
        print(executor.with_options(ranks=3).submit(lambda: task_comm().allreduce(1)).exception())
        pairs = executor.with_options(ranks=2)
        print([pairs.submit(lambda: task_comm().allreduce(1)).result() for _ in range(3)])
    """
    env = {"TASKFARM_STUCK_S": "50"}
    result = run_mpi(program, 4, timeout_s=40, env=env, **SURVIVE).check(0)
    assert "[2, 2, 2]" in result.stdout
    assert "rank 2 was killed by SIGKILL" in result.stdout or "rank 2: was killed by SIGKILL" in result.stdout


FATAL = {
    "while the ranks of a task made their communicator": """
        import os, signal
        from taskfarm import Executor, objects, task_comm
        from taskfarm.transport import teams
        from tf_segments import note_segments
        def prepare():
            if objects.rank == 2:
                teams.open_team = lambda parent, ranks: os.kill(os.getpid(), signal.SIGKILL)
        with Executor(initializer=prepare) as executor:
            note_segments()
            executor.with_options(ranks=3).submit(lambda: task_comm().allreduce(1)).result()
    """,
    "inside collective call 2": """
        import os, signal
        from taskfarm import objects
        from tf_segments import note_segments
        def die_on_2():
            if objects.rank == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            objects.comm.barrier()
        if objects.launch_event_loop() is not False and objects.rank == 0:
            objects.call(objects.comm.barrier)
            note_segments()
            objects.call(die_on_2)
    """,
    "rank 0 (host": """
        import os, signal
        from taskfarm import objects
        from tf_segments import note_segments
        objects.launch_event_loop()
        if objects.rank == 0:
            objects.call(lambda: None)
            note_segments()
            os.kill(os.getpid(), signal.SIGSEGV)
    """,
}


@pytest.mark.parametrize("word", list(FATAL))
def test_a_death_that_nobody_outlives_ends_the_job(run_mpi: Launch[Result], word: str) -> None:
    """Inside a collective call, and of rank 0: status 75 at once, who died and how; nothing is left."""
    result = run_mpi(FATAL[word], 4, timeout_s=40, env={"TASKFARM_HEARTBEAT_S": "30"}, **SURVIVE).check(75)
    assert word in result.stderr
    assert re.search(r"rank \d \(host .*\) was killed by SIG(KILL|SEGV)", result.stderr)
    assert not left_in_shared_memory(result)


def test_without_deaths_nothing_changes(run_mpi: Launch[Result]) -> None:
    """A job with supervisors ends through MPI's own end, with the script's status, and takes no notice of strangers."""
    program = """
        import socket, sys
        from taskfarm import Executor
        from taskfarm.runtime.session import current
        with Executor() as executor:
            address = current()._opened.life_address
            for word in (b"x" * 32 + b" 1\\n", b"\\xff" * 5000 + b"\\n", b'{"died": ["", 0, 0]}\\n'):
                with socket.create_connection(address) as stranger:
                    stranger.sendall(word)
                    assert stranger.recv(1) == b""
            assert list(executor.map(abs, range(100))) == list(range(100))
        sys.exit(5)
    """
    result = run_mpi(program, 3, timeout_s=40, **SURVIVE).check(5)
    assert "without" not in result.stderr
    assert is_openmpi() or "ABORT" not in result.output.upper()
