"""The program of every rank: measures the rows of this number of ranks, and writes what it found to a JSON file.

Started by ``benchmarks/run.py`` as ``job.py RESULT [--quick] [--only NAME]...``.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
from harness import Scale, measure
from mpi4py import MPI
from mpi4py import __version__ as mpi4py_version
from rows import ROWS
from rows.common import comm

from taskfarm import objects
from taskfarm.runtime.surroundings import usable_cores

__all__: list[str] = []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", default=[])
    options = parser.parse_args()
    objects.launch_event_loop()  # only rank 0 goes on
    if objects.rank != 0:
        return
    objects.call(comm)  # made by all ranks together
    scale = Scale(options.quick, objects.size)
    found: dict[str, Any] = {}
    for row in ROWS:
        if scale.n_ranks in row.ranks and (not options.only or row.name in options.only):
            found[f"{row.name}/{scale.n_ranks}"] = measure(row, scale)
            options.result.write_text(json.dumps({"environment": _environment(), "rows": found}))
    objects.quit()


def _environment() -> dict[str, Any]:
    return {
        "mpi": MPI.Get_library_version().splitlines()[0].strip(),
        "mpi4py": mpi4py_version,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": usable_cores(),
    }


main()
