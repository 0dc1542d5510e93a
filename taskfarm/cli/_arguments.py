"""The command line's grammar. Only argparse is imported here, so that every command starts fast."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from taskfarm.compat import STAND_INS
from taskfarm.config import LOG_LEVELS

SYSTEMS = ("slurm", "pbs", "lsf")  # batch systems for which there are templates

__all__ = ["SYSTEMS", "new_parser", "split_program"]

_OPTIONS_WITH_VALUE = (
    "-n", "-np", "--ranks", "--mpiexec", "--replace", "--tag", "--trace", "--journal", "--log", "--connection-file",
    "-N", "--nodes", "-c", "--cores", "-t", "--time", "-q", "--queue", "-A", "--account", "--module", "--venv",
    "--name", "--requeue",
)  # fmt: skip


def new_parser() -> argparse.ArgumentParser:
    """Return the parser of ``taskfarm``; ``run``'s program must have been split off before (`split_program`)."""
    parser = argparse.ArgumentParser(
        prog="taskfarm", description="Run Python programs on many MPI ranks.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_ShowVersion, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    _add_run(commands)
    info = commands.add_parser(
        "info",
        help="print versions, MPI library, launcher, hosts and cores",
        description="Print versions, MPI library, thread level, the launcher that `taskfarm run` would use, hosts and "
        "cores.",
        allow_abbrev=False,
    )
    _add_launch_options(info, "launch N ranks and look at them, too")
    _add_bench(commands)
    _add_trace(commands)
    _add_doctor(commands)
    _add_script(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run",
        help="run a Python script or module on many ranks",
        usage="taskfarm run [-n N] [--mpiexec CMD] [--replace NAME]... [--tag TAG=RANKS]... [--survive] [--isolate] "
        "[--journal FILE] [--trace FILE] [--watch] [--log LEVEL] [--forward-logs] [--tag-output] [--dry-run] [-v] "
        "(script.py | -m module) [args ...]",
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
    run.add_argument("--journal", metavar="FILE", help="have executors keep their results there, and compute the rest")
    run.add_argument("--trace", metavar="FILE.json", help="write there when each rank did what; see `taskfarm trace`")
    run.add_argument("--ipython", action="store_true", help="instead of a program, start an IPython kernel on rank 0")
    run.add_argument("--connection-file", metavar="FILE", help="where that kernel writes how clients reach it")
    run.add_argument("--watch", action="store_true", help="show on the terminal how far the farm is")
    run.add_argument(
        "--log", metavar="LEVEL", choices=[*LOG_LEVELS, *map(str.lower, LOG_LEVELS)],
        help="write what is logged from this level on to standard error, rank and host first: " + ", ".join(LOG_LEVELS),
    )  # fmt: skip
    run.add_argument("--forward-logs", action="store_true", help="send the log records of workers to rank 0")
    run.add_argument("--tag-output", action="store_true", help="have the launcher put the rank before each line")
    run.add_argument("--dry-run", "--print-command", action="store_true", help="print the command and exit")
    run.add_argument("-v", "--verbose", action="store_true", help="print the command to stderr, then run it")


def _add_script(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    script = commands.add_parser(
        "script",
        help="print a batch script for Slurm, PBS or LSF",
        usage="taskfarm script {slurm,pbs,lsf} -n RANKS [-N HOSTS] [options] (script.py | -m module) [args ...]",
        description="Print a batch script that runs a program as `taskfarm run` does. Read it before you submit it: "
        "clusters differ.",
        allow_abbrev=False,
    )
    script.add_argument("system", choices=SYSTEMS)
    add = script.add_argument
    add(
        "-n", "-np", "--ranks", type=_n_ranks, required=True, metavar="N", help="number of ranks, on all hosts together"
    )
    add("-N", "--nodes", type=_n_ranks, default=1, metavar="N", help="number of hosts (default: 1)")
    add("-c", "--cores", type=_n_ranks, default=1, metavar="N", help="cores per rank (default: 1)")
    add("-t", "--time", default="01:00:00", metavar="HH:MM:SS", help="time limit (default: one hour)")
    add("-q", "--queue", metavar="NAME", help="queue; of Slurm, the partition")
    add("-A", "--account", metavar="NAME", help="account, project")
    add("--module", action="append", default=[], metavar="NAME", help="module to load; may be repeated")
    add("--venv", metavar="FOLDER", help="virtual environment to activate")
    add("--name", metavar="NAME", help="of the job (default: the program's)")
    add("--survive", action="store_true", help="as of `run`")
    add("--isolate", action="store_true", help="as of `run`")
    add("--journal", metavar="FILE", help="as of `run`")
    add("--trace", metavar="FILE.json", help="as of `run`")
    add("--requeue", type=_n_ranks, default=0, metavar="N", help="start the job again after a failure, up to N times")


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="find out why jobs do not start, or run badly",
        description="Look at library, launcher, shared memory, threads and batch system, run a small job, and say what "
        "is wrong and what to do. The exit status is 1 if jobs cannot run.",
        allow_abbrev=False,
    )
    _add_launch_options(doctor, "ranks of the job that is run (default: 2; in a Slurm job its number of tasks)")
    doctor.add_argument("--limit", type=_seconds, default=60.0, metavar="SECONDS", help="for that job (default: 60)")
    doctor.add_argument("--clean", action="store_true", help="first remove what your killed jobs have left behind")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _add_trace(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    trace = commands.add_parser(
        "trace",
        help="summarise what `taskfarm run --trace` has written, or draw it",
        description="Print what a trace says: utilisation of ranks and hosts, the longest tasks, imbalance, time lost "
        "to waiting, transfers, failures. The file itself opens in https://ui.perfetto.dev.",
        allow_abbrev=False,
    )
    trace.add_argument("file", metavar="FILE.json", help="the trace")
    trace.add_argument("--plot", metavar="FILE.png", help="draw the ranks over time (needs matplotlib)")


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
