"""Many ranks on one host: how long they take to start, whether many tasks are right, what rank 0 spends on a task.

    python benchmarks/scale.py [--ranks 5 65 257] [--tasks 10000]
    python benchmarks/scale.py --simulate

For each number of ranks, bare ``mpiexec`` (every rank imports mpi4py and numpy and meets the others in a barrier) and
the same with an executor: seconds until its workers are there, for so many tasks one by one, until all processes have
gone; CPU time of rank 0 per task; resident memory of rank 0. A rank takes some 35 MB.

``--simulate`` gives the table of ``docs/scale.md``: the real dealer, tasks of 1 s, a virtual clock; some minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from taskfarm.bench.launcher import run_words
from taskfarm.bench.proc import resident_bytes
from taskfarm.runtime.launch import Situation, plan_launch
from taskfarm.scheduling.simulation import simulate

__all__: list[str] = []

BARE = "from mpi4py import MPI; import numpy; MPI.COMM_WORLD.Barrier()"
HANDLING_S = 25e-6  # of rank 0 per message: half of what a task of `submit` takes it
ITEM_S = 13e-6  # and per item of a map over groups, measured with 512 workers that only answer
SIMULATED = (
    *((n_workers, None) for n_workers in (10_000, 20_000, 40_000, 100_000)),
    *((n_workers, math.isqrt(n_workers)) for n_workers in (20_000, 40_000, 60_000, 100_000)),
)
TASKS_PER_WORKER = 10


def report(n_tasks: int, started: float) -> None:
    """Run tasks on all workers, and print what that took; on rank 0."""
    from taskfarm import Executor

    with Executor() as executor:
        found: dict[str, float] = {"open_s": time.time() - started}
        for name in ("first", "again"):
            began, cpu = time.perf_counter(), time.process_time()
            futures = [executor.submit(abs, -item) for item in range(n_tasks)]
            assert [future.result() for future in futures] == list(range(n_tasks))
            found[f"{name}_s"] = time.perf_counter() - began
            found[f"{name}_us"] = 1e6 * (time.process_time() - cpu) / n_tasks
        found["rank0_MB"] = resident_bytes() / 1e6
    print(json.dumps(found), flush=True)


def seconds(command: Sequence[str], added: Mapping[str, str]) -> tuple[float, str]:
    """Run a command with some more variables; return how long it took, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **added})
    return time.perf_counter() - began, done.stdout


def measure(n_ranks: int, n_tasks: int) -> None:
    """Print a line of the table."""
    plan = plan_launch(["-c", BARE], n_ranks, None, Situation.here())
    bare_s, _ = seconds(plan.command, plan.added_environment)
    program = [os.path.abspath(__file__), "--worker", str(n_tasks), str(time.time())]
    total_s, text = seconds(run_words(n_ranks, None, program), {})
    found = json.loads(text)
    cells = [n_ranks, f"{bare_s:.1f}", f"{found['open_s']:.1f}", f"{found['first_s']:.2f}", f"{found['again_s']:.2f}"]
    cells += [f"{found['first_us']:.0f}", f"{found['again_us']:.0f}", f"{found['rank0_MB']:.0f}", f"{total_s:.1f}"]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def simulate_all() -> None:
    """Print the table of simulated farms."""
    print("| workers | per group | busy | makespan |\n|---|---|---|---|")
    for n_workers, group_size in SIMULATED:
        rng = random.Random(1)
        times = [rng.lognormvariate(-0.125, 0.5) for _ in range(TASKS_PER_WORKER * n_workers)]
        done = simulate(times, n_workers, handling_s=HANDLING_S, group_size=group_size, item_s=ITEM_S)
        print(f"| {n_workers} | {group_size or '-'} | {100 * done.busy:.2f} % | {done.makespan_s:.1f} s |", flush=True)


def main() -> None:
    """Measure, or simulate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[5, 65])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        report(int(options.worker[0]), float(options.worker[1]))
    elif options.simulate:
        simulate_all()
    else:
        print("| ranks | bare s | open s | tasks s | again s | us per task | again | rank 0 MB | whole job s |")
        print("|---|---|---|---|---|---|---|---|---|")
        for n_ranks in options.ranks:
            measure(n_ranks, options.tasks)


if __name__ == "__main__":
    sys.exit(main())
