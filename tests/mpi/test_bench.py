"""The command ``taskfarm bench`` for real: jobs, peers, files. Nothing is said about speed."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest
from harness import Job, Launch, Result, is_openmpi

TIMEOUT_S = 240  # about 20 s; an environment that was just made compiles numpy and matplotlib first
ROWS = ("task", "call_noop", "message_1kB", "array_1MB_call", "buffer_1MB_gather", "startup", "peak_call_worker")
KEYS = ["task/2", "call_noop/2", "call_noop/4", *(f"{name}/2" for name in ROWS[2:5]), "peak_call_worker/2", "startup/4"]
HAVE_RAW = set(KEYS) - {"peak_call_worker/2"}
IN_ALL_ENVIRONMENTS = {"mpi4py.futures", "ProcessPoolExecutor", "mp.Pool"}  # of the peers
PEERS = IN_ALL_ENVIRONMENTS | {"schwimmbad", "joblib", "dask"}


@pytest.fixture(scope="module")
def words() -> list[str]:
    return [word for name in ROWS for word in ("--only", name)]


def bench(*options: str) -> Any:
    """Return a launcher that runs the command instead of a program."""

    def launcher(n: int, target: Sequence[str]) -> Sequence[str]:
        return [sys.executable, "-m", "taskfarm", "bench", *options]

    return launcher


@pytest.mark.slow
def test_rows_are_measured_side_by_side(run_mpi: Launch[Result], words: list[str]) -> None:
    """Each row has ours, raw MPI and the installed peers, at least five samples of each, and ratios that follow."""
    launcher = bench("--quick", *words, "--json", "bench.json")
    result = run_mpi("", 1, launcher=launcher, timeout_s=TIMEOUT_S).check(0)
    found = json.loads((result.work_dir / "bench.json").read_text())
    assert list(found["rows"]) == KEYS
    assert found["environment"]["quick"] is True
    assert "MPI" in found["environment"]["mpi"]
    for key, row in found["rows"].items():
        assert row["n_ranks"] == int(key.rpartition("/")[2])
        assert ("raw" in row) == (key in HAVE_RAW)
        assert set(row["samples"]) == {"ours", *row["ratio"]}
        assert set(row["samples"]) <= set(row)
        for values in row["samples"].values():
            assert len(values) == 5
            assert all(math.isfinite(value) and value >= 0.0 for value in values)
        assert (row["met"] is None) == (row["reached"] is None)
        assert key in result.stdout
    task = found["rows"]["task/2"]
    assert set(task["ratio"]) - {"raw"} | set(task["left_out"]) == PEERS
    assert not IN_ALL_ENVIRONMENTS & set(task["left_out"])
    for peer in task["left_out"]:
        assert f"Left out of task/2: {peer}, not installed" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(start_mpi: Launch[Job], number: signal.Signals) -> None:
    """^C and `kill` end the job and the pools beside it, and are the exit status."""
    job = start_mpi("", 1, launcher=bench("--only", "task"))
    deadline = time.monotonic() + 60.0
    while not any("taskfarm.bench.pools mp.Pool" in command for command in job.processes().values()):
        assert time.monotonic() < deadline, job.processes()
        time.sleep(0.05)
    os.kill(job.launcher_pid, number)
    result = job.finish(timeout_s=30.0).check(128 + number)
    assert "Traceback" not in result.stderr


def test_what_launches_nothing_is_an_error(run_mpi: Launch[Result]) -> None:
    """A launcher that is not there is one clear error, before anything is measured."""
    result = run_mpi("", 1, launcher=bench("--quick", "--only", "task", "--mpiexec", "nowhere")).check(2)
    assert result.stderr.startswith("taskfarm bench: error: --mpiexec 'nowhere'")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_crowd_and_sessions_are_launched(run_mpi: Launch[Result]) -> None:
    """Rows that start jobs of their own, with more ranks than cores (under MPICH, where these start faster)."""
    rows_of_jobs = {"startup_call/4": {"ours", "raw"}} | ({} if is_openmpi() else {"crowd/8": {"ours", "3 ranks"}})
    names = [word for key in rows_of_jobs for word in ("--only", key.partition("/")[0])]
    launcher = bench("--quick", *names, "--json", "bench.json")
    result = run_mpi("", 1, launcher=launcher, timeout_s=TIMEOUT_S).check(0)
    rows = json.loads((result.work_dir / "bench.json").read_text())["rows"]
    assert {key: set(row["samples"]) for key, row in rows.items()} == rows_of_jobs
    for key, row in rows.items():
        if key == "crowd/8":
            assert row["reached"] == row["ratio"]["3 ranks"]
