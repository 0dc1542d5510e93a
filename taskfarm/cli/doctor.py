"""``taskfarm doctor``: say whether this machine is fit to run a job, and if not, what is to be done."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from taskfarm.doctor.findings import Finding, Level, format_finding, verdict
from taskfarm.doctor.job import run_job
from taskfarm.doctor.left_over import check_left_over, remove_left_over
from taskfarm.doctor.local import (
    check_batch_system,
    check_launcher,
    check_library,
    check_root_and_room,
    check_shared_memory,
    check_threads,
)
from taskfarm.doctor.ranks import check_clocks, check_links, check_thread_level, check_versions
from taskfarm.runtime.launching.launch import plan_launch
from taskfarm.runtime.launching.launchers import Situation
from taskfarm.runtime.launching.session_folders import session_base
from taskfarm.runtime.launching.surroundings import default_ranks, leave_explaining_to_rank_0

__all__ = ["examine", "execute"]

_SHARED_MEMORY = Path("/dev/shm")
_PROBE = ["-m", "taskfarm.doctor.probe"]


def execute(options: argparse.Namespace) -> int:
    """Run the command; the exit status is 0 if jobs can run, perhaps with warnings, and 1 if not."""
    findings: list[Finding] = []
    if options.clean:
        for finding in remove_left_over(_SHARED_MEMORY, session_base(os.environ)):
            print(format_finding(finding), flush=True)
    for finding in examine(options.ranks, options.mpiexec, options.limit, Situation.here()):
        if finding.check == "launcher" and finding.level is Level.ERROR:
            leave_explaining_to_rank_0(os.environ, 1)  # if a launcher has started this process, one of them speaks
        findings.append(finding)
        print(format_finding(finding), flush=True)
    status, text = verdict(findings)
    print(text)
    return status


def examine(n_ranks: int | None, mpiexec: str | None, limit_s: float, situation: Situation) -> Iterator[Finding]:
    """Yield what each check finds; those that need what an earlier one has not found are left out."""
    n = n_ranks or (default_ranks(situation.environ, situation.cores) if "SLURM_JOB_ID" in situation.environ else 2)
    library, finding = check_library(situation)
    yield finding
    yield check_shared_memory(_SHARED_MEMORY, n)
    yield from check_left_over(_SHARED_MEMORY, session_base(situation.environ))
    yield check_threads(situation.environ, n, situation.cores)
    if library is None:
        return
    launcher, finding = check_launcher(library, mpiexec, situation)
    yield finding
    if launcher is None:
        return
    yield check_root_and_room(launcher, n, situation)
    yield check_batch_system(situation, launcher)
    reports, finding = run_job(plan_launch(_PROBE, n, mpiexec, situation), limit_s, mpiexec)
    yield finding
    if reports:
        yield check_thread_level(reports)
        yield check_versions(reports)
        yield check_clocks(reports)
        yield from check_links(reports)
