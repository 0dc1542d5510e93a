"""Many ranks on one host: how long they take to start, whether many tasks are right, what rank 0 spends on a task.

    python benchmarks/scale.py [--ranks 5 65 257] [--tasks 10000]
    python benchmarks/scale.py --cpu [--ranks 5 257] [--pairs 3]
    python benchmarks/scale.py --simulate

For each number of ranks, bare ``mpiexec`` (every rank imports mpi4py and numpy and meets the others in a barrier) and
the same with an executor: seconds until its workers are there, for so many tasks one by one, until all processes have
gone; processor time of rank 0 per task, the best of some rounds; resident memory of rank 0. A rank takes some 35 MB.

``--cpu`` compares that processor time (user and system, of the whole process) between two numbers of ranks: jobs of
both take turns, and the ratio is that of the medians.

``--simulate`` gives the table of ``docs/scale.md``: the real dealer, tasks of 1 s, a virtual clock. What rank 0 spends
on messages and items is measured before, in the same run (``benchmarks/pretended_groups.py``). Some minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from taskfarm.bench.launcher import run_words
from taskfarm.bench.proc import resident_bytes
from taskfarm.runtime.launching.launch import plan_launch
from taskfarm.runtime.launching.launchers import Situation
from taskfarm.scheduling.simulation import simulate

__all__: list[str] = []

BARE = "from mpi4py import MPI; import numpy; MPI.COMM_WORLD.Barrier()"
ROUNDS = 5  # of tasks in one job: the first one pays for connections
SIMULATED = (
    *((n_workers, None) for n_workers in (10_000, 20_000, 40_000, 100_000)),
    *((n_workers, math.isqrt(n_workers)) for n_workers in (40_000, 100_000)),
)
TASKS_PER_WORKER = 10
GROUPS, GROUP_SIZE = 100, 101  # that pretend: the costs are those of rank 0, whatever their number
PRETENDED_ITEMS = 200_000
REPORT_SIZES = (2, 4, 8, 16)


class Costs(NamedTuple):
    """Seconds of rank 0.

    Attributes
    ----------
    submit_s : float
        For a task of `submit`, with its result.
    message_s : float
        For a message to or from a group.
    item_s : float
        For an item of a map over groups, beside the messages: from reading it to the program's loop over the results.
    """

    submit_s: float
    message_s: float
    item_s: float


def cpu_s() -> float:
    """Return the processor time of this process, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def report(n_tasks: int, started: float) -> None:
    """Run tasks on all workers, and print what that took; on rank 0."""
    from taskfarm import Executor

    with Executor() as executor:
        found: dict[str, object] = {"open_s": time.time() - started}
        seconds_of, us_of = [], []
        for _ in range(ROUNDS):
            began, cpu = time.perf_counter(), cpu_s()
            futures = [executor.submit(abs, -item) for item in range(n_tasks)]
            assert [future.result() for future in futures] == list(range(n_tasks))
            seconds_of.append(time.perf_counter() - began)
            us_of.append(1e6 * (cpu_s() - cpu) / n_tasks)
        found |= {"tasks_s": min(seconds_of), "us": us_of, "rank0_MB": resident_bytes() / 1e6}
    print(json.dumps(found), flush=True)


def seconds(command: Sequence[str], added: Mapping[str, str]) -> tuple[float, str]:
    """Run a command with some more variables; return how long it took, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **added})
    return time.perf_counter() - began, done.stdout


def run_tasks(n_ranks: int, n_tasks: int) -> tuple[float, dict[str, object]]:
    """Run a job that reports; return how long it took, and what it found."""
    program = [os.path.abspath(__file__), "--worker", str(n_tasks), str(time.time())]
    total_s, text = seconds(run_words(n_ranks, None, program), {})
    found: dict[str, object] = json.loads(text)
    return total_s, found


def measure(n_ranks: int, n_tasks: int) -> None:
    """Print a line of the table."""
    plan = plan_launch(["-c", BARE], n_ranks, None, Situation.here())
    bare_s, _ = seconds(plan.command, plan.added_environment)
    total_s, found = run_tasks(n_ranks, n_tasks)
    cells = [n_ranks, f"{bare_s:.1f}", f"{found['open_s']:.1f}", f"{found['tasks_s']:.2f}"]
    cells += [f"{min(found['us']):.0f}", f"{found['rank0_MB']:.0f}", f"{total_s:.1f}"]  # type: ignore[call-overload]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def compare_cpu(sizes: Sequence[int], n_tasks: int, n_pairs: int) -> None:
    """Print rank 0's processor time per task for each number of ranks, and the last one against the first."""
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(n_pairs):
        for size in sizes:
            _, one = run_tasks(size, n_tasks)
            us = one["us"]
            assert isinstance(us, list)
            found[size] += us[1:]
            print(f"{size} ranks: " + " ".join(f"{each:.1f}" for each in us) + " us per task", flush=True)
    medians = {size: statistics.median(us) for size, us in found.items()}
    for size, us in found.items():
        print(f"{size} ranks: median {medians[size]:.1f}, least {min(us):.1f} us per task")
    first, last = sizes[0], sizes[-1]
    least = min(found[last]) / min(found[first])
    print(f"{last} ranks against {first}: {medians[last] / medians[first]:.2f} times, of the least {least:.2f}")


def measure_costs() -> Costs:
    """Return what rank 0 spends, measured here and now."""
    _, tasks = run_tasks(5, 10_000)
    of_submit = tasks["us"]
    assert isinstance(of_submit, list)
    pretended = str(Path(__file__).with_name("pretended_groups.py"))
    numbers = [GROUPS, GROUP_SIZE, PRETENDED_ITEMS, *REPORT_SIZES]
    _, text = seconds(run_words(2, None, [pretended, *map(str, numbers)]), {})
    best: dict[int, tuple[float, float, float]] = {}
    for n_report, n_messages, n_items, spent_s in json.loads(text):
        if n_report not in best or spent_s / n_items < best[n_report][2]:
            best[n_report] = n_messages / n_items, 1.0, spent_s / n_items
    table = np.array([best[n_report] for n_report in sorted(best)])
    (message_s, item_s), *_ = np.linalg.lstsq(table[:, :2], table[:, 2], rcond=None)
    for n_report, (messages, _, spent_s) in sorted(best.items()):
        us, fit_us = 1e6 * spent_s, 1e6 * (messages * message_s + item_s)
        print(f"reports of {n_report}: {messages:.3f} messages and {us:.2f} us per item, fit {fit_us:.2f}")
    return Costs(1e-6 * min(of_submit), float(message_s), max(float(item_s), 0.0))


def simulate_all() -> None:
    """Measure the costs, and print the table of simulated farms."""
    costs = measure_costs()
    submit_us, message_us, item_us = (1e6 * cost for cost in costs)
    print(f"\nRank 0: {submit_us:.1f} us for a task of `submit`, half of it for each of its messages")
    print(f"With groups {message_us:.1f} us for a message and {item_us:.1f} us for an item\n")
    print("| workers | per group | busy | makespan |\n|---|---|---|---|")
    for n_workers, group_size in SIMULATED:
        rng = random.Random(1)
        times = [rng.lognormvariate(-0.125, 0.5) for _ in range(TASKS_PER_WORKER * n_workers)]
        handling_s, item_s = (costs.submit_s / 2, 0.0) if group_size is None else (costs.message_s, costs.item_s)
        done = simulate(times, n_workers, handling_s=handling_s, group_size=group_size, item_s=item_s)
        print(f"| {n_workers} | {group_size or '-'} | {100 * done.busy:.2f} % | {done.makespan_s:.1f} s |", flush=True)


def main() -> None:
    """Measure, or simulate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+")
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        report(int(options.worker[0]), float(options.worker[1]))
    elif options.simulate:
        simulate_all()
    elif options.cpu:
        compare_cpu(options.ranks or [5, 257], options.tasks, options.pairs)
    else:
        print("| ranks | bare s | open s | tasks s | us per task | rank 0 MB | whole job s |")
        print("|---|---|---|---|---|---|---|")
        for n_ranks in options.ranks or [5, 65]:
            measure(n_ranks, options.tasks)


if __name__ == "__main__":
    main()
