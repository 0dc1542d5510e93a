"""The program of every rank of a job: measures rows, and writes what it found into a file of JSON.

``python -m taskfarm.bench.job RESULT --cores N --cpus N,N... [--quick] ROW...``. The file is written after each row,
so that what was measured stays if a later row fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from taskfarm import objects
from taskfarm.bench.common import comm
from taskfarm.bench.measure import Setting, measure
from taskfarm.bench.rows import all_rows

__all__: list[str] = []


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--cpus", type=lambda text: [int(word) for word in text.split(",")], required=True)
    options = parser.parse_args()
    objects.launch_event_loop()  # only rank 0 goes on
    if objects.rank != 0:
        return
    objects.call(comm)  # made by all ranks together
    rows = {row.name: row for row in all_rows(options.cores) if objects.size in row.ranks and not row.launches}
    found: dict[str, Any] = {}
    for name in options.rows:
        print(f"taskfarm bench: {objects.size} ranks, {name}", file=sys.stderr, flush=True)
        setting = Setting(objects.size, options.quick, options.cpus)
        found[name] = measure(rows[name], setting)
        options.result.write_text(json.dumps({"mpi": _library(), "rows": found}))
    objects.quit()


def _library() -> str:
    from mpi4py import MPI

    first_line = MPI.Get_library_version().strip("\0 \n").splitlines()[0]
    return " ".join(first_line.partition(",")[0].replace("Version:", "").split())


_main()
