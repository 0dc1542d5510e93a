"""``taskfarm trace``: what a trace says, as text and as a picture."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from taskfarm.cli._files import output_path
from taskfarm.errors import UsageError
from taskfarm.trace.reading import read_trace
from taskfarm.trace.summary import summarise

__all__ = ["execute"]


def execute(options: argparse.Namespace) -> int:
    """Run the command.

    Raises
    ------
    UsageError
        If the file is no trace, the picture cannot be written, or matplotlib is missing.
    """
    plot_path = None if options.plot is None else output_path("--plot", options.plot)
    if plot_path is not None and find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib; install it with: pip install 'taskfarm[plot]'")
    trace = read_trace(options.file)
    print(summarise(trace))
    if plot_path is not None:
        from taskfarm.trace.plot import save_plot

        save_plot(trace, plot_path)
    return 0
