"""The command line's grammar. Only argparse is imported here, so that every command starts fast."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from taskfarm.compat import STAND_INS

__all__ = ["new_parser", "split_program"]

_OPTIONS_WITH_VALUE = ("-n", "-np", "--ranks", "--mpiexec", "--replace", "--tag")


def new_parser() -> argparse.ArgumentParser:
    """Return the parser of ``taskfarm``; ``run``'s program must have been split off before (`split_program`)."""
    parser = argparse.ArgumentParser(
        prog="taskfarm", description="Run Python programs on many MPI ranks.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_ShowVersion, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    run = commands.add_parser(
        "run",
        help="run a Python script or module on many ranks",
        usage="taskfarm run [-n N] [--mpiexec CMD] [--replace NAME]... [--tag TAG=RANKS]... [--survive] [--isolate] "
        "[--dry-run] [-v] (script.py | -m module) [args ...]",
        description="Run a Python program on every one of N ranks, with the launcher that fits the MPI library which "
        "mpi4py loads. The exit status is the program's. Inside a job that mpiexec or srun has started already, run "
        "the program on this rank.",
        allow_abbrev=False,
    )
    _add_launch_options(run, "number of ranks (default: usable cores + 1; in a Slurm job its number of tasks)")
    run.add_argument(
        "--replace",
        action="append",
        default=[],
        metavar="NAME",
        help="put taskfarm in the place of this module; may be repeated. Known: " + ", ".join(STAND_INS),
    )
    run.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="TAG=RANKS",
        help="give ranks a tag, for tasks of an executor that ask for it (gpu=1,3 or bigmem=4-7); may be repeated",
    )
    run.add_argument(
        "--survive",
        action="store_true",
        help="go on with fewer workers when one dies, instead of ending the job (Linux; see docs/reliability.md)",
    )
    run.add_argument(
        "--isolate",
        action="store_true",
        help="run tasks of taskfarm.vm and of executors in a process of their own per worker, which may die",
    )
    run.add_argument("--dry-run", "--print-command", action="store_true", help="print the command and exit")
    run.add_argument("-v", "--verbose", action="store_true", help="print the command to stderr, then run it")
    info = commands.add_parser(
        "info",
        help="print versions, MPI library, launcher, hosts and cores",
        description="Print versions, MPI library, thread level, the launcher that `taskfarm run` would use, hosts and "
        "cores.",
        allow_abbrev=False,
    )
    _add_launch_options(info, "launch N ranks and look at them, too")
    _add_bench(commands)
    return parser


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure taskfarm beside raw MPI and other packages",
        description="Measure taskfarm, raw mpi4py and the installed peers side by side on this machine, and print "
        "ratios with their targets. On a machine that does other things as well, look at the ratios rather than at "
        "the times.",
        allow_abbrev=False,
    )
    bench.add_argument("--quick", action="store_true", help="fewer and shorter samples: two minutes instead of ten")
    bench.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="only this row, or pattern of rows; may be repeated"
    )
    bench.add_argument("--ranks", nargs="+", type=_n_ranks, metavar="N", help="only rows at these numbers of ranks")
    bench.add_argument("--json", metavar="FILE", help="write all samples and medians there")
    bench.add_argument("--plot", metavar="FILE.png", help="draw the ratios (needs matplotlib)")
    bench.add_argument("--list", action="store_true", help="print the rows and what each measures, and exit")
    _add_mpiexec(bench)


def split_program(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split ``run``'s words in front of the program, to which all belongs that follows ``script.py`` or ``-m module``.

    Returns
    -------
    options, program : list of str
        `program` is ``[script, args...]``, ``["-m", module, args...]`` or empty.
    """
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            return list(words[:position]), _as_file(words[position + 1 :])
        if word.startswith("-m") and word != "-m":
            return list(words[:position]), ["-m", word[2:], *words[position + 1 :]]
        if word == "-m" or not word.startswith("-"):
            return list(words[:position]), list(words[position:])
        position += 2 if word in _OPTIONS_WITH_VALUE else 1
    return list(words), []


def _as_file(words: Sequence[str]) -> list[str]:
    """Return the program whose script's name may look like an option."""
    if words and words[0].startswith("-"):
        return [os.path.join(os.curdir, words[0]), *words[1:]]
    return list(words)


def _add_launch_options(parser: argparse.ArgumentParser, ranks_help: str) -> None:
    parser.add_argument("-n", "-np", "--ranks", type=_n_ranks, metavar="N", help=ranks_help)
    _add_mpiexec(parser)


def _add_mpiexec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mpiexec", metavar="CMD", help="launcher to use, with its own flags if it needs any")


def _n_ranks(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of ranks; give a whole number from 1 up")
    return int(text)


class _ShowVersion(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        from taskfarm.cli.info import package_version

        print(f"taskfarm {package_version('taskfarm')}")
        parser.exit()
