"""Jobs that the benchmark starts: their command, and their end when they last too long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["end_job", "run_words"]

_GRACE_S = 5.0  # launchers end their ranks within a second or two


def run_words(n_ranks: int, mpiexec: str | None, program: Sequence[str]) -> list[str]:
    """Return the command that runs `program` on `n_ranks` ranks."""
    launcher = [] if mpiexec is None else [f"--mpiexec={mpiexec}"]
    return [sys.executable, "-m", "taskfarm", "run", "-n", str(n_ranks), *launcher, *program]


def end_job(process: subprocess.Popen[Any]) -> None:
    """Ask the launcher, which leads a session of its own, to end its job, and kill it where it does not."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
