"""Three hosts, one of which loses its network: the job ends in time, says which, leaves nothing, and can be resumed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from harness import Job, is_openmpi, mpiexec_path, start_job
from hosts import Hosts, missing_tools

HERE = Path(__file__).resolve().parent
MISSING = missing_tools()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"hosts made of namespaces need {', '.join(MISSING)}")

HEARTBEAT_S = 10.0
LOADED_S = 1.5  # for a machine that has more to do than this
N_TASKS = 400
TASK_S = 0.05


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A command without arguments, as launchers want it."""
    path = tmp_path_factory.mktemp("ssh") / "ssh"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I {HERE / "ssh_like.py"} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Three of them."""
    hosts = Hosts(tmp_path, ["host1", "host2", "host3"], own_processes=False)
    try:
        hosts.up()
        yield hosts
    finally:
        hosts.down()


def launcher_words(ssh: str, hosts: Sequence[str]) -> str:
    """Return the launcher with what it needs for two ranks on each of `hosts`."""
    if is_openmpi():
        where = ",".join(f"{host}:2" for host in hosts)
        return f"{mpiexec_path()} --prtemca plm_ssh_agent {ssh} --host {where} --bind-to none"
    return f"{mpiexec_path()} -launcher ssh -launcher-exec {ssh} -hosts {','.join(hosts)} -ppn 2"


def start(hosts: Hosts, ssh: str, here: str, where: Sequence[str], folder: Path, name: str) -> Job:
    """Start the farm from the host `here` on the hosts `where`, two ranks on each."""

    def command(n: int, target: Sequence[str]) -> Sequence[str]:
        run = [sys.executable, "-m", "taskfarm", "run", "--survive", "-n", str(n)]
        return hosts.command(here, *run, "--mpiexec", launcher_words(ssh, where), *target)

    arguments = [str(N_TASKS), str(TASK_S), str(folder)]
    # Open MPI's own transports between hosts, and not what the single host of other tests is given.
    env = {
        "TASKFARM_HEARTBEAT_S": str(HEARTBEAT_S),
        "TASKFARM_TEST_HOSTS": str(hosts.folder),
        "OMPI_MCA_btl": "self,sm,tcp",
        "TASKFARM_JOURNAL": None,
    }
    here_before = os.getcwd()
    os.chdir(folder)
    try:
        farm = HERE / "farm.py"
        return start_job(farm, 2 * len(where), work_dir=folder / name, args=arguments, env=env, launcher=command)
    finally:
        os.chdir(here_before)


def wait_for_tasks(job: Job, folder: Path, n: int) -> None:
    """Wait until so many tasks are done."""
    deadline = time.monotonic() + 60.0
    while not (folder / "told").exists() or int((folder / "told").read_text() or 0) < n:
        if time.monotonic() > deadline:
            job.kill()
            pytest.fail(f"the farm does not start\n{job._result().describe()}")
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("here", "where", "pulled", "words"),
    [
        ("host1", ["host1", "host2", "host3"], "host3", "host host3 with ranks 4, 5 is lost"),
        ("host1", ["host2", "host3"], "host2", "host host2 with rank 0 is lost"),
    ],
    ids=["of workers", "of rank 0"],
)
def test_a_host_loses_its_network(
    hosts: Hosts, ssh: str, tmp_path: Path, here: str, where: list[str], pulled: str, words: str
) -> None:
    """Status 75 within the heartbeat, the host is named, nothing stays on the others; the journal goes on."""
    job = start(hosts, ssh, here, where, tmp_path, "lost")
    try:
        wait_for_tasks(job, tmp_path, N_TASKS // 4)
        hosts.pull(pulled)
        began = time.monotonic()
        job._wait(HEARTBEAT_S + 30.0)
        took_s = time.monotonic() - began
        result = job._result().check(75)
        assert words in result.stderr, result.describe()
        assert took_s <= HEARTBEAT_S + LOADED_S, result.describe()
        alive = [name for name in hosts.names if name != pulled]
        left = hosts.processes(*alive)
        deadline = time.monotonic() + 3.0
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = hosts.processes(*alive)
        assert not left, result.describe()
        # What is on the other side of the cable ends by itself: its supervisors miss the hub.
        deadline = began + 2 * HEARTBEAT_S
        while any("farm.py" in command for command in hosts.processes(pulled).values()):
            assert time.monotonic() < deadline, hosts.processes(pulled)
            time.sleep(0.1)
    finally:
        job.kill()
    again, n_ran = start_again(hosts, ssh, [name for name in where if name != pulled], tmp_path)
    assert f"all {N_TASKS} right" in again
    assert n_ran <= N_TASKS - N_TASKS // 5


def start_again(hosts: Hosts, ssh: str, where: list[str], folder: Path) -> tuple[str, int]:
    """Run the farm once more where that is possible; return what it printed, and how many tasks ran."""
    (folder / "ran").unlink()
    job = start(hosts, ssh, where[0], where, folder, "again")
    try:
        printed = job.finish(timeout_s=90.0).check(3).stdout
        return printed, (folder / "ran").stat().st_size
    finally:
        job.kill()
