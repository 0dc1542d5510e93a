"""``python -m taskfarm.testing``: simulate many farms, or one again."""

from __future__ import annotations

import argparse
import sys
import time

from taskfarm.testing import Plan, SimulationFailed, simulate


def main() -> int:
    """Run the seeds of the command line; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m taskfarm.testing", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, metavar="N", help="how many farms (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="seed of the first (default: 0)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--workers", type=int, help="workers of each farm, instead of what its seed says")
    parser.add_argument("--tasks", type=int, help="tasks of each farm, instead of what its seed says")
    options = parser.parse_args()
    first, n = (options.seed, 1) if options.seed is not None else (options.first, options.seeds)
    n_tasks = n_lost = n_failed = 0
    began = time.monotonic()
    for seed in range(first, first + n):
        plan = Plan.from_seed(seed, n_workers=options.workers, n_tasks=options.tasks)
        try:
            summary = simulate(seed, plan)
        except SimulationFailed as exc:
            n_failed += 1
            print(exc, file=sys.stderr, flush=True)
            if options.seed is not None:
                raise
        else:
            n_tasks += summary.n_tasks
            n_lost += summary.n_lost
    seconds = time.monotonic() - began
    print(f"{n} farms, {n_tasks} tasks, {n_lost} workers lost, {n_failed} farms failed; {seconds:.1f} s")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
