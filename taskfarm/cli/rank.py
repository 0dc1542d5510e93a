"""The program of every rank: ``python -m taskfarm.cli.rank [OPTION]... (script.py | -m module) [args ...]``.

It gets control before anything imports mpi4py. All ranks run the same program; workers part from rank 0 inside it,
where it imports or calls a face of taskfarm.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from taskfarm import compat
from taskfarm.errors import UsageError
from taskfarm.runtime.launching import boot

__all__ = ["run_on_this_rank"]


def main(words: Sequence[str]) -> NoReturn:
    """Read the command line that ``taskfarm run`` wrote, and run it."""
    replaced: list[str] = []
    settings: dict[str, str] = {}
    rest = list(words)
    flags = set()
    while rest[:1] in (["--survive"], ["--whole-lines"]):
        flags.add(rest.pop(0))
    if "--whole-lines" in flags:
        _write_whole_lines()
    while rest[:1] in (["--replace"], ["--set"]) and len(rest) > 1:
        if rest[0] == "--replace":
            replaced.append(rest[1])
        else:
            name, _, settings[name] = rest[1].partition("=")
        del rest[:2]
    if not rest or rest == ["-m"]:
        raise SystemExit(
            "usage: python -m taskfarm.cli.rank [--survive] [--whole-lines] [--replace NAME]... [--set NAME=VALUE]... "
            "(script.py | -m module) [args ...]"
        )
    run_on_this_rank(replaced, rest, settings, survive="--survive" in flags)


def run_on_this_rank(
    replaced: Sequence[str], program: Sequence[str], settings: Mapping[str, str], *, survive: bool = False
) -> NoReturn:
    """Install the stand-ins, run the program as the interpreter would, and end the session with its status.

    Parameters
    ----------
    replaced : sequence of str
        Names for `taskfarm.compat.install`.
    program : sequence of str
        ``[script, args...]`` or ``["-m", module, args...]``.
    settings : mapping of str to str
        Variables for this rank's environment, which not every launcher passes on to all hosts.
    survive : bool
        Whether this rank has a supervisor.
    """
    os.environ.update(settings)
    if survive:
        _supervise()
    if "TASKFARM_LOG" in settings:
        from taskfarm.runtime.logs import show_as_asked  # not needed otherwise

        show_as_asked()
    if settings.get("TASKFARM_ISOLATE") == "1":
        _isolate()
    try:
        compat.install(*replaced)
    except UsageError as exc:
        raise SystemExit(f"taskfarm run: error: {exc}") from exc
    if program[0] == "-m":
        name = program[1]
        # A replaced module's program is the stand-in's: `-m pymor.tools.mpi` runs taskfarm.objects.
        status = boot.run_module(compat.installed().get(name, name), program[2:])
    else:
        status = boot.run_script(program[0], program[1:])
    if status == 0 and "taskfarm.runtime.session" not in sys.modules:
        sys.exit(0)  # the program did not use taskfarm: there is no session to end
    # Imported only now: they need modules that would keep the program's first line waiting.
    from taskfarm.runtime.ending import leave, own_status

    status = own_status(status)
    if status != 0:
        from taskfarm.cli._status import let_rank_0_report, report_status
        from taskfarm.runtime.ending import has_begun
        from taskfarm.runtime.launching.surroundings import promised_rank

        rank = promised_rank(os.environ)
        report_status(status, rank, os.environ)
        if rank != 0 and not has_begun():
            let_rank_0_report(os.environ)
    leave(status)


def _write_whole_lines() -> None:
    """Write each line at once: MPICH's launcher tags what it happens to read, be that half a line or two.

    Into a pipe Python writes blocks of 8 kB, which end anywhere; with ``PYTHONUNBUFFERED`` a line, then its end.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)


def _supervise() -> None:
    """Fork the supervisor, if this process is one of several ranks; returns in the rank."""
    from taskfarm.runtime.launching.surroundings import expected_world_size
    from taskfarm.runtime.survival.supervisor import can_supervise, fork_supervisor

    if can_supervise() and (expected_world_size(os.environ) or 1) > 1:
        # Open MPI then reports a dead peer's connection as an error code, instead of aborting; nobody else reads it.
        os.environ.setdefault("OMPI_MCA_mpi_ft_enable", "1")
        fork_supervisor(os.environ)


def _isolate() -> None:
    """Prepare task children, before anything starts MPI."""
    from taskfarm.runtime.isolation.asking import isolate
    from taskfarm.runtime.session import current

    try:
        isolate(current())
    except UsageError as exc:
        raise SystemExit(f"taskfarm run: error: {exc}") from exc


if __name__ == "__main__":
    main(sys.argv[1:])
