"""With supervisors a job outlives its workers, and where it cannot, it ends at once and says who died."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import PROGRAMS, Launch, Result, is_openmpi

SURVIVE = {"launcher": "taskfarm run --survive"}


def segments() -> set[str]:
    """Shared memory of MPI libraries on this machine."""
    return {path.name for path in Path("/dev/shm").iterdir() if re.match(r"mpich_|sm_segment|taskfarm-", path.name)}


def mapped_or_gone(names: set[str]) -> bool:
    """Whether everything of `names` that is still there is used by some process, so belongs to another job."""
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            used |= set(re.findall(r"/dev/shm/(\S+)", maps.read_text()))
        except OSError:
            continue
    return names & segments() <= used


@pytest.mark.parametrize("seed", [1, 2])
def test_two_deaths_cost_a_farm_nothing(run_mpi: Launch[Result], seed: int) -> None:
    """500 tasks, two workers killed: all results right, the script's own status, nothing left in shared memory."""
    before = segments()
    result = run_mpi(PROGRAMS / "killed_farm.py", 5, args=[str(seed)], timeout_s=60, **SURVIVE).check(0)
    assert "all right without" in result.stdout
    assert result.stderr.count("was killed by SIGKILL; going on without it") == 2
    assert mapped_or_gone(segments() - before)


def test_each_face_tells_of_deaths_in_its_way(run_mpi: Launch[Result]) -> None:
    """A failed task, lost slots, repeated attempts, WorkerLostError; a stopped rank dies, a long task does not."""
    env = {"TASKFARM_HEARTBEAT_S": "3"}
    result = run_mpi(PROGRAMS / "deaths.py", 6, env=env, timeout_s=60, **SURVIVE).check(7)
    assert "THE END" in result.stdout
    assert "was stopped for 3 s" in result.stderr


FATAL = {
    "inside collective call 2": """
        import os, signal
        from taskfarm import objects
        def die_on_2():
            if objects.rank == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            objects.comm.barrier()
        if objects.launch_event_loop() is not False and objects.rank == 0:
            objects.call(objects.comm.barrier)
            objects.call(die_on_2)
    """,
    "rank 0 (host": """
        import os, signal
        from taskfarm import objects
        objects.launch_event_loop()
        if objects.rank == 0:
            objects.call(lambda: None)
            os.kill(os.getpid(), signal.SIGSEGV)
    """,
}


@pytest.mark.parametrize("word", list(FATAL))
def test_a_death_that_nobody_outlives_ends_the_job(run_mpi: Launch[Result], word: str) -> None:
    """Inside a collective call, and of rank 0: status 75 at once, who died and how; nothing is left."""
    before = segments()
    result = run_mpi(FATAL[word], 4, timeout_s=40, env={"TASKFARM_HEARTBEAT_S": "30"}, **SURVIVE).check(75)
    assert word in result.stderr
    assert re.search(r"rank \d \(host .*\) was killed by SIG(KILL|SEGV)", result.stderr)
    assert mapped_or_gone(segments() - before)


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
