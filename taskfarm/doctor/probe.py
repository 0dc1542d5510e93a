"""The program of the job that ``taskfarm doctor`` runs: every rank looks at itself, rank 0 writes what they found."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from taskfarm.runtime.launching.surroundings import usable_cores
from taskfarm.transport.inspection import inspect_ranks

__all__: list[str] = []


if __name__ == "__main__":
    reports = inspect_ranks(usable_cores())
    if reports is not None:
        Path(sys.argv[1]).write_text(json.dumps([dataclasses.asdict(report) for report in reports]))
