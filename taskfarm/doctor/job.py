"""The job that ``taskfarm doctor`` runs to see whether jobs run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from taskfarm.doctor.findings import Finding, Level
from taskfarm.runtime.launching.launch import LaunchPlan
from taskfarm.runtime.launching.session_folders import free_own_folder

__all__ = ["run_job"]

_KILL_S = 3.0  # between asking the launcher to end and killing it
_FIRST, _LAST = 3, 2  # lines of its output that are shown: the cause stands at the beginning, mostly


def run_job(
    plan: LaunchPlan, limit_s: float, mpiexec: str | None = None
) -> tuple[Sequence[Mapping[str, Any]], Finding]:
    """Run `plan`, whose program is the probe, for at most `limit_s` seconds.

    `mpiexec` is what the user has named as launcher, to be repeated in the advice.

    Returns
    -------
    reports : sequence of mapping
        One per rank, empty if the job failed.
    finding : Finding
        Whether it ran.
    """
    check = "job"
    with tempfile.TemporaryDirectory(prefix="taskfarm-doctor-") as folder:
        path = Path(folder) / "reports.json"
        status, output = _run([*plan.command, str(path)], {**os.environ, **plan.added_environment}, limit_s)
        reports = json.loads(path.read_text()) if path.exists() else []
    words = " ".join(plan.command[:4])
    said = _said(output)
    named = f" --mpiexec {shlex.quote(mpiexec)}" if mpiexec else ""
    by_hand = f"`taskfarm run -n {plan.n_ranks}{named} -v -m platform`"  # prints one line on each rank
    if status is None:
        return [], Finding(
            Level.ERROR,
            check,
            f"{words} ... did not end within {limit_s:g} s{said}",
            f"try it by hand: {by_hand}. Usual reasons: a firewall between the hosts, an interface "
            "that leads nowhere, a host name that does not resolve, no room for the job in the batch system",
        )
    if status != 0:
        return [], Finding(
            Level.ERROR,
            check,
            f"{words} ... ended with status {status}{said}",
            f"look at what it said; {by_hand} shows all of it",
        )
    if len(reports) != plan.n_ranks:
        return [], Finding(
            Level.ERROR,
            check,
            f"{words} ... started {plan.n_ranks} processes, but MPI made worlds of {len(reports)} rank(s) of them: the "
            "launcher belongs to another MPI than the library",
            "leave --mpiexec out, or set MPI4PY_LIBMPI to the library of that launcher",
        )
    hosts = dict.fromkeys(report["host"] for report in reports)
    return reports, Finding(Level.OK, check, f"{len(reports)} ranks started, on {', '.join(hosts)}")


def _said(output: str) -> str:
    """Return the lines of a launcher's output that tell most, as a part of a sentence."""
    lines = [line.strip() for line in output.splitlines() if re.search(r"\w", line)]
    if len(lines) > _FIRST + _LAST:
        lines = [*lines[:_FIRST], "...", *lines[-_LAST:]]
    return "; it said: " + " | ".join(lines) if lines else ""


def _run(command: Sequence[str], environ: Mapping[str, str], limit_s: float) -> tuple[int | None, str]:
    """Return exit status (None past the limit) and output of a command, of which nothing is left running."""
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                list(command), env=dict(environ), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, preexec_fn=partial(free_own_folder, environ),
            )  # fmt: skip
        except OSError as exc:
            return 127, str(exc)
        status: int | None = None
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            _end(process)
        output.seek(0)
        return status, output.read().decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_S)
