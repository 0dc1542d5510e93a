"""Many farms under a real MPI, each of which loses two of its ranks: ``make acceptance``.

    python tests/mpi/acceptance.py [--runs N] [--first SEED]

Each run is a job of five ranks and 500 tasks (`programs/killed_farm.py`), in which two workers are killed at times that
its seed decides. All results must be right, the job must end with the script's own status, and leave neither a process
nor a segment of shared memory behind. The MPI library is that of the interpreter's environment.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import PROGRAMS, is_openmpi, start_job

N_RANKS = 5
TIMEOUT_S = 60.0  # a run takes one or two seconds
WORKER_KILLED = "was killed by SIGKILL; going on without it"


def wrong_with(seed: int, folder: Path) -> str:
    """Run the farm of a seed; return what was not as it must be, or an empty string."""
    program = PROGRAMS / "killed_farm.py"
    job = start_job(program, N_RANKS, work_dir=folder, args=[str(seed)], launcher="taskfarm run --survive")
    try:
        result = job.finish(timeout_s=TIMEOUT_S)
    except pytest.fail.Exception as exc:  # a hang, or processes that were left; its text has the output
        return str(exc)
    finally:
        job.kill()
    segments = result.log("segments").split()
    left = [name for name in segments if Path("/dev/shm", name).exists()]
    promises = {
        "status 0": result.status == 0,
        "all results": "all right without" in result.stdout,
        "two deaths": result.stderr.count(WORKER_KILLED) == 2,
        "segments noted": bool(segments),
        f"nothing left in /dev/shm: {left}": not left,
    }
    broken = [name for name, holds in promises.items() if not holds]
    return f"{', '.join(broken)}\n{result.describe()}" if broken else ""


def main() -> int:
    """Run the seeds of the command line; return 1 if one of them went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, metavar="N", help="how many farms (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="seed of the first (default: 0)")
    options = parser.parse_args()
    seconds, failed = [], []
    for seed in range(options.first, options.first + options.runs):
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            wrong = wrong_with(seed, Path(folder, "job"))
        seconds.append(time.monotonic() - began)
        if wrong:
            failed.append(seed)
            print(f"seed {seed}: {wrong}", flush=True)
    library = "Open MPI" if is_openmpi() else "MPICH"
    n_right = options.runs - len(failed)
    print(f"{library}: {n_right} of {options.runs} farms right; {statistics.median(seconds):.1f} s each (median)")
    if failed:
        print(f"seeds that failed: {' '.join(map(str, failed))}; --first SEED --runs 1 shows one of them again")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
