"""Measure taskfarm side by side with raw mpi4py, and with peers that are installed.

    python benchmarks/run.py [--quick] [--only NAME]... [--ranks N...] [--json FILE] [--mpiexec COMMAND]

What is measured. Every row of ``benchmarks/rows/__init__.py`` names its contenders: ours, raw mpi4py doing the least
that the same result needs, and peers. All contenders of a row run in the same job, in turn, after a warm-up; a sample
of each is a round. The table shows medians over the rounds and the ratio of ours to the others, taken within each
round, with its smallest and largest value; `best` is the best round of ours over the best of raw. On a machine that
does other things too, look at the ratios, and where they scatter much, at `best`. `met` compares the median with the
target of the row.

How. One job per number of ranks, started as ``taskfarm run -n N benchmarks/job.py`` with the launcher of the running
environment, so one environment per MPI library gives one table each. ``--quick`` does a tenth of the work. The JSON
file holds ``{"environment": ..., "rows": {"name/ranks": {"ours": ..., "raw": ..., "ratio": ..., "samples": ...}}}``.

Units. ``us`` and ``ms`` are times of one there-and-back (of one call in ``call_noop`` and ``array_*_call``), rates are
per second, ``x array`` is memory in multiples of the array's. Rows without ``raw`` have absolute targets.

Beside it. ``benchmarks/wire.py`` measures where the limits lie that ``taskfarm/wire`` has as constants,
``benchmarks/idle.py`` the ways to wait; both say how to run them.

A new row is a function that makes contenders, and a line in the table of ``benchmarks/rows/__init__.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from table import print_table

__all__ = ["main"]

HERE = Path(__file__).resolve().parent
RANKS = (2, 3, 4)
JOB_TIMEOUT_S = 1200.0


def main(words: Sequence[str]) -> int:
    """Run the command line; return the exit status, 1 if a job failed."""
    options = _parse(words)
    found: dict[str, Any] = {"environment": {}, "rows": {}}
    failed = False
    for n_ranks in options.ranks:
        part, status = _run_job(n_ranks, options)
        failed |= status != 0
        found["environment"] |= part.get("environment", {})
        found["rows"] |= part.get("rows", {})
    print_table(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if not found["rows"]:
        print("benchmarks: no such row at these numbers of ranks", file=sys.stderr)
        return 1
    return int(failed)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this row; may be repeated")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, metavar="N", help="only these numbers of ranks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--mpiexec", metavar="COMMAND", help="as of taskfarm run")
    return parser.parse_args(words)


def _run_job(n_ranks: int, options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Measure the rows of one number of ranks; return what was found, even if the job failed, and its status."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [sys.executable, "-m", "taskfarm", "run", "-n", str(n_ranks)]
        command += [f"--mpiexec={options.mpiexec}"] if options.mpiexec else []
        command += [str(HERE / "job.py"), str(result)]
        command += ["--quick"] if options.quick else []
        command += [word for name in options.only for word in ("--only", name)]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            status = process.wait(JOB_TIMEOUT_S)
        except BaseException as exc:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(exc, subprocess.TimeoutExpired):
                raise
            status = 1
        if status:
            print(f"benchmarks: the job with {n_ranks} ranks failed, status {status}", file=sys.stderr)
        return (json.loads(result.read_text()) if result.exists() else {}), status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
