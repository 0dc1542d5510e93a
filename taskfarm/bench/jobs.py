"""Start the jobs that measure, one per number of ranks, and put together what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from taskfarm.bench.environment import busy_share, describe, read_cpu_times
from taskfarm.bench.launcher import end_job, run_words
from taskfarm.bench.measure import Row, Setting, measure
from taskfarm.bench.rows import all_rows
from taskfarm.errors import UsageError
from taskfarm.runtime.launching.launch import plan_launch
from taskfarm.runtime.launching.launchers import Situation
from taskfarm.runtime.launching.surroundings import usable_cores

__all__ = ["Request", "chosen_rows", "measure_all"]

JOB_TIMEOUT_S = 1200.0  # a job of a full run lasts some minutes
_TIMED_OUT = -1
_LOOK_S = 0.5  # at what the machine does before anything is measured: fifty clock ticks


@dataclass(frozen=True, slots=True)
class Request:
    """What shall be measured.

    Attributes
    ----------
    rows : sequence of (Row, int)
        Rows, and the number of ranks of each.
    quick : bool
        Fewer and shorter samples.
    mpiexec : str or None
        The user's launcher.
    """

    rows: Sequence[tuple[Row, int]]
    quick: bool = False
    mpiexec: str | None = None


def chosen_rows(names: Sequence[str], ranks: Collection[int], n_cores: int) -> list[tuple[Row, int]]:
    """Return the rows whose name matches one of `names`, at the numbers of ranks in `ranks`; empty means all.

    Raises
    ------
    UsageError
        If a name matches nothing; it lists the rows.
    """
    rows = all_rows(n_cores)
    for name in names:
        if not any(fnmatchcase(row.name, name) for row in rows):
            known = ", ".join(dict.fromkeys(row.name for row in rows))
            raise UsageError(f"--only {name!r}: no such row; rows are {known}")
    chosen = [
        (row, n_ranks)
        for row in rows
        for n_ranks in row.ranks
        if (not names or any(fnmatchcase(row.name, name) for name in names)) and (not ranks or n_ranks in ranks)
    ]
    if not chosen:
        numbers = " ".join(str(number) for number in sorted(ranks))
        raise UsageError(f"--ranks {numbers}: none of the rows is measured at these; see taskfarm bench --list")
    return chosen


def measure_all(request: Request) -> tuple[dict[str, Any], list[str]]:
    """Measure; return what goes into the JSON file, and what failed.

    Raises
    ------
    UsageError
        If there is no launcher to use.
    """
    cpus = sorted(os.sched_getaffinity(0))
    plan = plan_launch(["-c", ""], 2, request.mpiexec, Situation.here())
    before = read_cpu_times()
    time.sleep(_LOOK_S)
    busy = busy_share(before, read_cpu_times())
    environment = describe(cpus, usable_cores(), request.quick, plan.library.describe(), busy)
    found: dict[str, Any] = {}
    failures = []
    for n_ranks in sorted({n_ranks for row, n_ranks in request.rows if not row.launches}):
        names = [row.name for row, number in request.rows if number == n_ranks and not row.launches]
        while names:
            part, failure = _run_job(n_ranks, names, request, cpus)
            environment["mpi"] = part.get("mpi", environment["mpi"])
            rows = part.get("rows", {})
            found |= {f"{name}/{n_ranks}": row for name, row in rows.items()}
            if failure:
                place = names[len(rows)] if len(rows) < len(names) else "its end"
                failures.append(f"{failure}, at {place}")
            # After a row that fails, the next ones get a job of their own; not if it is the job that fails.
            names = names[len(rows) + 1 :] if rows else []
    for row, n_ranks in request.rows:
        if row.launches:
            _say(f"{n_ranks} ranks, {row.name}")
            try:
                setting = Setting(n_ranks, request.quick, cpus, request.mpiexec)
                found[f"{row.name}/{n_ranks}"] = measure(row, setting)
            except (RuntimeError, subprocess.TimeoutExpired) as exc:
                failures.append(f"{row.name}: {exc}")
    order = [f"{row.name}/{n_ranks}" for row, n_ranks in request.rows]
    return {"environment": environment, "rows": {key: found[key] for key in order if key in found}}, failures


def _run_job(n_ranks: int, names: Sequence[str], request: Request, cpus: Sequence[int]) -> tuple[dict[str, Any], str]:
    """Measure rows in one job; return what was found, even if the job failed, and how it failed."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        program = ["-m", "taskfarm.bench.job", str(result), "--cores", str(usable_cores())]
        program += ["--cpus", ",".join(str(cpu) for cpu in cpus)]
        program += ["--quick"] if request.quick else []
        process = subprocess.Popen(run_words(n_ranks, request.mpiexec, [*program, *names]), start_new_session=True)
        try:
            status = process.wait(JOB_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            end_job(process)
            status = _TIMED_OUT
        except BaseException:
            end_job(process)
            raise
        found: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
    if status == 0:
        return found, ""
    reason = f"did not end in {JOB_TIMEOUT_S:g} s" if status == _TIMED_OUT else f"failed, status {status}"
    return found, f"the job with {n_ranks} ranks {reason}"


def _say(text: str) -> None:
    print(f"taskfarm bench: {text}", file=sys.stderr, flush=True)
