"""``taskfarm bench``: measure taskfarm beside raw MPI and other packages, on this machine."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType

from taskfarm.bench import jobs
from taskfarm.bench.measure import Row
from taskfarm.bench.rows import all_rows
from taskfarm.bench.table import format_tables
from taskfarm.cli._files import output_path
from taskfarm.errors import UsageError
from taskfarm.runtime.launching.surroundings import expected_world_size, usable_cores

__all__ = ["execute"]

_FAILED = 1
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def execute(options: argparse.Namespace) -> int:
    """Run the command; the exit status is 0 if everything was measured, whatever the figures are, and 1 if not.

    Raises
    ------
    UsageError
        Before anything is measured: a row that does not exist, a file that cannot be written, a picture without
        matplotlib, no launcher.
    """
    if options.list:
        print(_listing(all_rows(usable_cores())))
        return 0
    if expected_world_size(os.environ) is not None:
        raise UsageError("it starts jobs of its own; call it without a launcher")
    rows = jobs.chosen_rows(options.only, options.ranks or (), usable_cores())
    json_path = None if options.json is None else output_path("--json", options.json)
    plot_path = None if options.plot is None else output_path("--plot", options.plot)
    if plot_path is not None and find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib; install it with: pip install 'taskfarm[bench]'")
    with _ending_jobs():
        found, failures = jobs.measure_all(jobs.Request(rows, options.quick, options.mpiexec))
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=1) + "\n")
    if plot_path is not None and found["rows"]:
        from taskfarm.bench.plot import save_plot

        save_plot(found, plot_path)
    print(format_tables(found))
    for failure in failures:
        print(f"taskfarm bench: error: {failure}", file=sys.stderr)
    return _FAILED if failures else 0


@contextmanager
def _ending_jobs() -> Iterator[None]:
    """Let signals that end this process raise instead, so that jobs, which have sessions of their own, are ended, too.

    The status is the one that a shell reports for the signal.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    usual = {number: signal.signal(number, leave) for number in _ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _listing(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        ranks = ", ".join(str(n_ranks) for n_ranks in row.ranks)
        target = f"; target {row.target}" if row.target else ""
        lines.append(f"{row.name:<20} {row.about} ({ranks} ranks, {row.unit.name}{target})")
    return "\n".join(lines)
