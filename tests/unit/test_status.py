"""Under srun the script's exit status comes back beside srun's own, and nothing depends on that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskfarm.cli import _status

REPOSITORY = Path(__file__).resolve().parents[2]

# A stand-in for srun: it runs rank 0's part and then ends as srun does after a kill.
LISTEN = "import os, sys; from taskfarm.cli._status import run_and_listen as r; sys.exit(r(sys.argv[1:], os.environ))"
REPORT = (
    "import os, sys; from taskfarm.cli._status import report_status\n"
    "{before}\nreport_status({status}, {rank}, os.environ)\nsys.stdout.flush()\n{after}"
)
KILLED = "import signal; os.kill(os.getpid(), signal.SIGKILL)"


def status_of(status: int, rank: int = 0, before: str = "", after: str = KILLED) -> int:
    program = REPORT.format(status=status, rank=rank, before=before, after=after)
    return subprocess.run(
        [sys.executable, "-c", LISTEN, sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=60,
    ).returncode


def test_reported_status_replaces_that_of_a_killed_job() -> None:
    assert status_of(3) == 3


def test_only_rank_0_counts() -> None:
    assert status_of(3, rank=1) == 137


def test_success_is_not_overruled() -> None:
    assert status_of(3, after="") == 0


@pytest.mark.parametrize(
    "before",
    [
        "os.environ['TASKFARM_REPORT_STATUS'] = os.environ['TASKFARM_REPORT_STATUS'][:-1] + 'x'",
        "os.environ['TASKFARM_REPORT_STATUS'] = 'localhost:1:x'",
        "os.environ['TASKFARM_REPORT_STATUS'] = 'nonsense'",
        "del os.environ['TASKFARM_REPORT_STATUS']",
    ],
)
def test_what_is_not_ours_is_ignored(before: str) -> None:
    assert status_of(3, before=before) == 137


def test_request_to_end_is_passed_on() -> None:
    child = "import time; print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN, sys.executable, "-c", child],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(timeout=30) == 143


def test_other_ranks_let_rank_0_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all fail alike, srun would end rank 0 with the first one that ends; without srun nobody waits."""
    waits: list[float] = []
    monkeypatch.setattr(_status.time, "sleep", waits.append)
    _status.let_rank_0_report({})
    assert waits == []
    _status.let_rank_0_report({"TASKFARM_REPORT_STATUS": "host:1:token"})
    assert waits == [_status._REPORTING_S]
