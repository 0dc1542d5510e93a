"""``taskfarm doctor`` on this machine, which is healthy, and on set-ups that are broken on purpose."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from harness import environment, is_openmpi

# What launchers say when they are asked for their version.
OURS, OTHERS = ("Open MPI 5.0", "HYDRA 5.0") if is_openmpi() else ("HYDRA 5.0", "Open MPI 5.0")
OTHER_MPI = "MPICH" if is_openmpi() else "Open MPI"


def doctor(tmp_path: Path, *words: str, **environ: str) -> tuple[int, str]:
    """Return status and output."""
    done = subprocess.run(
        [sys.executable, "-m", "taskfarm", "doctor", *words],
        cwd=tmp_path,
        env=environment() | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    return done.returncode, " ".join(done.stdout.split())


def test_a_healthy_machine(tmp_path: Path) -> None:
    """A real job runs, and every check has its say."""
    status, output = doctor(tmp_path, OMP_NUM_THREADS="1")
    assert status == 0, output
    assert "Fit to run" in output
    for part in (
        "ok MPI library",
        "ok launcher",
        "ok job 2 ranks started",
        "ok versions",
        "ok clocks",
        "rank 0 to rank 1",
    ):
        assert part in output


def script(folder: Path, text: str) -> str:
    path = folder / "mpiexec"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "environ", "parts"),
    [
        (None, {"MPI4PY_LIBMPI": "/no/such/libmpi.so"}, ["error MPI library", "correct MPI4PY_LIBMPI"]),
        (f"echo {OURS}", {}, ["error job", "worlds of 0 rank(s)"]),
        ("case $1 in --version) ;; *) sleep 30;; esac", {}, ["error job", "did not end within 2 s", "firewall"]),
        ("case $1 in --version) ;; *) echo no route to host; exit 4;; esac", {}, ["status 4", "no route to host"]),
        (f"echo {OTHERS}", {}, ["error launcher", f"belongs to {OTHER_MPI}"]),
    ],
    ids=["no library", "starts nothing", "hangs", "fails", "of another MPI"],
)
def test_a_broken_setup_is_explained(
    tmp_path: Path, text: str | None, environ: dict[str, str], parts: list[str]
) -> None:
    """One error, its reason, what to do, and status 1."""
    words = ["--limit", "2", *([] if text is None else ["--mpiexec", script(tmp_path, text)])]
    status, output = doctor(tmp_path, *words, **environ)
    assert status == 1, output
    assert "Not fit to run: 1 error" in output
    assert "do: " in output
    for part in parts:
        assert part in output
