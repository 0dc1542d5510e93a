"""How busy workers are while rank 0 computes: ``taskfarm run -n 3 benchmarks/busy.py``.

Sleeping tasks are submitted, and rank 0 does something else until all have ended: wait, numpy products, pure Python,
C code that keeps the interpreter's lock. Printed is the workers' share of time in tasks, for tasks of 1, 10 and 100 ms.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable

import numpy as np

from taskfarm import Executor

__all__: list[str] = []

LOCKED_US = 60_000
_PRODUCT = np.ones((400, 400))


def compute_in_python() -> None:
    """Keep the interpreter busy for some milliseconds."""
    sum(i * i for i in range(50_000))


def compute_in_numpy() -> None:
    """Leave the interpreter's lock for some milliseconds."""
    _PRODUCT @ _PRODUCT


def keep_the_lock() -> None:
    """Be in C code for a while without giving the interpreter's lock away."""
    ctypes.PyDLL(None).usleep(LOCKED_US)


def share_busy(executor: Executor, task_s: float, seconds: float, meanwhile: Callable[[], object]) -> float:
    """Return the share of time that the workers spent in tasks of `task_s`."""
    n = int(executor.num_workers * seconds / task_s)
    began = time.perf_counter()
    futures = [executor.submit(nap, task_s) for _ in range(n)]
    while not all(future.done() for future in futures[-4 * executor.num_workers :]):
        meanwhile()
    spent = sum(future.result() for future in futures)
    return spent / executor.num_workers / (time.perf_counter() - began)


def nap(seconds: float) -> float:
    """Sleep; return how long that took, since short sleeps take longer than they should."""
    began = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="that each figure takes at best")
    parser.add_argument("--switch-interval", type=float, help="in seconds; by default the executor chooses")
    options = parser.parse_args()
    if options.switch_interval:
        sys.setswitchinterval(options.switch_interval)
    with Executor() as executor:
        list(executor.map(nap, [0.0] * 100))
        print(f"{'rank 0':40s}   1 ms  10 ms 100 ms")
        for what, meanwhile in (
            ("waits", lambda: time.sleep(0.01)),
            ("numpy, 400 x 400 products", compute_in_numpy),
            ("pure Python", compute_in_python),
            (f"C code that holds the lock for {LOCKED_US / 1e3:g} ms", keep_the_lock),
        ):
            shares = [share_busy(executor, task_s, options.seconds, meanwhile) for task_s in (1e-3, 1e-2, 1e-1)]
            print(f"{what:40s} " + " ".join(f"{share:5.0%} " for share in shares), flush=True)


if __name__ == "__main__":
    main()
