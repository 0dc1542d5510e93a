"""``taskfarm.share``; the promises stand in ``programs/shared*.py``."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from checklist import Checklist, cases
from harness import Job, Launch

ONE_HOST = "shared.py"
SEVERAL_HOSTS = "shared_hosts.py"


@pytest.mark.parametrize(("n", "name"), cases(ONE_HOST, (1, 4)))
def test_promise_on_one_host(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(ONE_HOST, n, name)


@pytest.mark.parametrize(("n", "name"), cases(SEVERAL_HOSTS, (7,)))
def test_promise_on_several_hosts(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(SEVERAL_HOSTS, n, name)


def test_nothing_is_left_when_all_are_killed(start_mpi: Launch[Job]) -> None:
    """After ``kill -9`` of all processes of a job the memory is free, and no file names it."""
    body = """
    import os, time
    import numpy as np
    import taskfarm
    from taskfarm import Executor

    shared = taskfarm.share(np.ones(12_500_000))
    executor = Executor()
    executor.submit(lambda: shared.value.sum()).result()
    with open(os.path.join(os.environ["TF_LOG_DIR"], "began"), "w") as file:
        file.write("began")
    time.sleep(60)
    """
    job = start_mpi(body, 3)
    job.wait_for_log("began")
    before = shared_memory_bytes()
    pids = list(job.processes())
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while before - shared_memory_bytes() < 80_000_000 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert before - shared_memory_bytes() > 80_000_000
    assert not list(Path("/dev/shm").glob("taskfarm-[4-7]*"))


def shared_memory_bytes() -> int:
    """Return how much shared memory the host has in use."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Shmem:"))
