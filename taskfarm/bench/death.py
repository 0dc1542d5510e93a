"""The program of the rows about deaths: ``python -m taskfarm.bench.death SIGNAL`` on some ranks, with supervisors.

A task sends its own rank the signal, and is tried again elsewhere. Prints the seconds in between, the longest of two.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from taskfarm import Executor

__all__: list[str] = []

_DEATHS = 2  # of three workers


def _die_once(folder: str, number: int) -> float:
    """Send this process the signal, the first time; return the seconds between then and now."""
    note = Path(folder, "note")
    if note.exists():
        return time.time() - float(note.read_text())
    note.write_text(repr(time.time()))
    os.kill(os.getpid(), number)
    time.sleep(60.0)  # a stopped process is killed here
    raise RuntimeError(f"signal {number} has done nothing")


def main(words: Sequence[str]) -> None:
    """Measure, on rank 0."""
    logging.getLogger("taskfarm").setLevel(logging.CRITICAL)  # deaths are what this is about
    number = signal.Signals[words[0]]
    seconds = []
    with Executor() as executor:
        executor.submit(abs, 1).result()
        for _ in range(_DEATHS):
            with tempfile.TemporaryDirectory() as folder:
                seconds.append(executor.submit(_die_once, folder, int(number)).result())
    print(max(seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
