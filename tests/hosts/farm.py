"""A farm with a journal; its arguments are the number of tasks, how long each takes, and a folder for what is noted.

There are the journal itself, a file that says how many results have come, and one with a byte for every task that ran.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from taskfarm import Executor

n_tasks, seconds, folder = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])


def work(x: int) -> int:
    """Take a while."""
    time.sleep(seconds)
    with open(folder / "ran", "ab", buffering=0) as ran:
        ran.write(b".")
    return x * x


with Executor(journal=str(folder / "run.db")) as executor:
    for n_done, (number, value) in enumerate(zip(range(n_tasks), executor.map(work, range(n_tasks)), strict=True), 1):
        if value != number * number:
            sys.exit(f"task {number} gave {value}")
        (folder / "told").write_text(str(n_done))
    print(f"all {n_tasks} right", flush=True)
sys.exit(3)
