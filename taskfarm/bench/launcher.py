"""Jobs that the benchmark starts: their command, their output, and their end when they last too long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["end_job", "output_of", "printed_seconds", "run_words"]

JOB_S = 120.0  # jobs whose output is wanted take a second or a few
_GRACE_S = 5.0  # launchers end their ranks within a second or two


def run_words(n_ranks: int, mpiexec: str | None, program: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """Return the command that runs `program` on `n_ranks` ranks."""
    launcher = [] if mpiexec is None else [f"--mpiexec={mpiexec}"]
    return [sys.executable, "-m", "taskfarm", "run", "-n", str(n_ranks), *launcher, *options, *program]


def end_job(process: subprocess.Popen[Any]) -> None:
    """Ask the launcher, which leads a session of its own, to end its job, and kill it where it does not."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def output_of(command: Sequence[str], environ: Mapping[str, str] | None = None, cpus: Sequence[int] = ()) -> str:
    """Run a job, on these cores only if any are named, and return what it printed.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    usual = os.sched_getaffinity(0)
    try:
        if cpus:
            os.sched_setaffinity(0, cpus)  # the job inherits it
        process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        os.sched_setaffinity(0, usual)
    try:
        output, _ = process.communicate(timeout=JOB_S)
    except BaseException:
        end_job(process)
        raise
    if process.returncode != 0:
        raise RuntimeError(f"status {process.returncode}: {' '.join(command)}")
    return output


def printed_seconds(command: Sequence[str]) -> Callable[[int], float]:
    """Return a contender: `command` prints, as its last word, how many seconds one repetition takes."""
    return lambda n: n * float(output_of(command).split()[-1])
