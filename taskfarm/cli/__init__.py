"""The command ``taskfarm``: run a program on many ranks (``run``), say what is there (``info``), measure (``bench``).

The process that launches imports neither numpy nor mpi4py: it is replaced by the launcher a few hundredths of a second
after its start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskfarm.errors import UsageError

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]

_USAGE_STATUS = 2  # as argparse and the interpreter use it
_PIPE_STATUS = 128 + 13  # what shells say of a command that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit status: 2 for a wrong command line and for a missing launcher, library or script, 130 after an interrupt.
        After ``run`` this process has become the launcher, whose status is the script's.
    """
    # Only what the command at hand needs is imported; this file is also imported by the program of every rank.
    from taskfarm.cli._arguments import new_parser, split_program

    arguments = list(sys.argv[1:] if argv is None else argv)
    program: list[str] = []
    n_words = {"run": 1, "script": 2}.get(arguments[0] if arguments else "", 0)
    if n_words:  # behind "run", and behind "script" and the batch system
        options, program = split_program(arguments[n_words:])
        arguments = [*arguments[:n_words], *options]
    chosen = new_parser().parse_args(arguments)
    try:
        status = _execute(chosen, program)
        if chosen.command != "run":
            sys.stdout.flush()
    except UsageError as exc:
        print(f"taskfarm {chosen.command}: error: {exc}", file=sys.stderr)
        return _USAGE_STATUS
    except BrokenPipeError:  # who reads has enough, as in `taskfarm trace run.json | head`
        if chosen.command == "run":
            raise  # the program's own
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains at its end
        return _PIPE_STATUS
    return status


def _execute(chosen: argparse.Namespace, program: list[str]) -> int:
    if chosen.command == "run":
        from taskfarm.cli import run

        return run.execute(chosen, program)
    if chosen.command == "bench":
        from taskfarm.cli import bench

        return bench.execute(chosen)
    if chosen.command == "doctor":
        from taskfarm.cli import doctor

        return doctor.execute(chosen)
    if chosen.command == "script":
        from taskfarm.cli import script

        return script.execute(chosen, program)
    if chosen.command == "trace":
        from taskfarm.cli import trace

        return trace.execute(chosen)
    from taskfarm.cli import info

    return info.execute(chosen)
