"""``taskfarm script``: golden files, which a shell accepts, and what the scripts do when the program fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from taskfarm.cli import main
from taskfarm.cli.script import fill

GOLDEN = Path(__file__).parent / "golden"
FULL = [
    "-n", "65", "-N", "2", "-c", "2", "-t", "10:00:00", "-q", "long", "-A", "p1", "--module", "openmpi/5.0",
    "--module", "python", "--venv", "/opt/env", "--survive", "--isolate",
    "--journal", "run.db", "--trace", "run.json", "--requeue", "3", "--name", "points",
    "sweep.py", "--points", "100",
]  # fmt: skip
SMALL = ["-n", "4", "-m", "package.module"]
CASES = [(system, size) for system in ("slurm", "pbs", "lsf") for size in ("small", "full")]


def script(capsys: pytest.CaptureFixture[str], system: str, *words: str) -> str:
    assert main(["script", system, *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("system", "size"), CASES)
def test_scripts_are_the_golden_ones(capsys: pytest.CaptureFixture[str], system: str, size: str) -> None:
    """Renew them with ``TASKFARM_RENEW_GOLDEN=1``, and read the difference."""
    text = script(capsys, system, *(FULL if size == "full" else SMALL))
    path = GOLDEN / f"{system}-{size}.sh"
    if os.environ.get("TASKFARM_RENEW_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    assert "@" not in text.replace("bash -c", "")
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, check=True).stderr == b""


@pytest.mark.parametrize("system", ["slurm", "pbs", "lsf"])
def test_words_reach_the_program_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path, system: str) -> None:
    """Blanks, quotes and dollars too."""
    words = ["sweep.py", "a  b", "$HOME", "it's", "--requeue", "7"]
    done = run(tmp_path, script(capsys, system, "-n", "2", *words), status=0)
    assert (tmp_path / "called").read_text().splitlines()[-len(words) :] == words
    assert done.returncode == 0


def run(folder: Path, text: str, status: int, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a script with fake commands that write down their arguments; `taskfarm` ends with `status`."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name, line in {
        "taskfarm": f'echo >> {folder}/calls; printf "%s\\n" "$@" > {folder}/called; exit {status}',
        "scontrol": f'echo "$@" >> {folder}/queue',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    (folder / "job.sh").write_text(text)
    hosts = folder / "hosts"
    hosts.write_text("a\na\nb\n")
    full = {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b", "PBS_JOBID": "7.pbs",
        "PBS_O_WORKDIR": str(folder), "PBS_NODEFILE": str(hosts), "LSB_JOBID": "7", "LSB_DJOB_HOSTFILE": str(hosts),
    }  # fmt: skip
    return subprocess.run(
        ["bash", "-u", str(folder / "job.sh")],
        env=full | environ,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(
    ("system", "status", "environ", "queued"),
    [
        ("slurm", 0, {}, ""),
        ("slurm", 75, {}, "requeue 7\n"),
        ("slurm", 1, {"SLURM_RESTART_COUNT": "2"}, "requeue 7\n"),
        ("slurm", 1, {"SLURM_RESTART_COUNT": "3"}, ""),
        ("slurm", 2, {}, ""),
    ],
)
def test_a_failed_job_goes_back_into_the_queue(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, system: str, status: int, environ: dict[str, str], queued: str
) -> None:
    """As often as was asked for, and the exit status stays the program's."""
    text = script(capsys, system, "-n", "4", "--requeue", "3", "sweep.py")
    assert run(tmp_path, text, status, **environ).returncode == status
    queue = tmp_path / "queue"
    assert (queue.read_text() if queue.exists() else "") == queued


@pytest.mark.parametrize(("status", "n_runs"), [(0, 1), (1, 4), (2, 1), (75, 4)])
def test_pbs_runs_a_failed_program_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, status: int, n_runs: int
) -> None:
    """In the same job: putting it back into the queue is for operators of PBS only."""
    words = ["sweep.py", "a {n} $b"]
    text = script(capsys, "pbs", "-n", "4", "--requeue", "3", *words)
    assert run(tmp_path, text, status).returncode == status
    assert (tmp_path / "calls").read_text() == "\n" * n_runs
    assert (tmp_path / "called").read_text().splitlines() == ["run", "-n", "4", *words]


def test_threads_follow_the_cores(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = script(capsys, "pbs", "-n", "4", "-N", "2", "-c", "8", "x.py")
    assert "select=2:ncpus=16:mpiprocs=2" in text
    assert "export OMP_NUM_THREADS=8" in text


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["-n", "4"], "nothing to run"),
        (["-n", "1", "-N", "2", "x.py"], "-n 1: fewer ranks than the 2 hosts"),
        (["-n", "4", "-t", "soon", "x.py"], "--time 'soon' is not HH:MM:SS"),
        (["-n", "4", "2nd.py"], "--name '2nd'"),
    ],
)
def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], part: str) -> None:
    assert main(["script", "slurm", *words]) == 2
    assert part in capsys.readouterr().err


def test_lines_without_content_go_with_their_comments() -> None:
    template = "a\n\n#: about x\nx=@X@\n#: about y\ny=@X@@Y@\n"
    assert fill(template, {"X": "", "Y": "1"}) == "a\n\n# about y\ny=1\n"
    assert fill(template, {"X": "2", "Y": ""}) == "a\n\n# about x\nx=2\n# about y\ny=2\n"
