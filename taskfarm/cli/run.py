"""``taskfarm run``: become the launcher that starts a program on every rank."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec

from taskfarm import compat
from taskfarm.cli._files import output_path
from taskfarm.config import parse_tag
from taskfarm.errors import UsageError
from taskfarm.runtime.launching.launch import LaunchPlan, plan_launch
from taskfarm.runtime.launching.launchers import Situation, wrong_launcher
from taskfarm.runtime.launching.libmpi import mpi_library
from taskfarm.runtime.launching.session_folders import free_own_folder
from taskfarm.runtime.launching.surroundings import expected_world_size, leave_explaining_to_rank_0
from taskfarm.runtime.launching.terminal import terminal_variable

__all__ = ["execute", "execute_plan"]


def execute(options: argparse.Namespace, program: Sequence[str]) -> int:
    """Run the command; returns after a dry run and after ``srun``, else this process has become the launcher.

    Raises
    ------
    UsageError
        With the argument, its value and the cure.
    """
    if options.ipython:
        program = _kernel_program(options.connection_file, program)
    if not program or program == ["-m"]:
        raise UsageError("nothing to run: give a script, or -m and a module (see taskfarm run --help)")
    for name in options.replace:
        if name not in compat.STAND_INS:
            raise UsageError(f"--replace {name!r}: no such stand-in; known are {', '.join(sorted(compat.STAND_INS))}")
    for text in options.tag:
        parse_tag(text, "--tag")
    if not options.dry_run and _is_rank_already(options.ranks):
        from taskfarm.cli.rank import run_on_this_rank  # not needed by the launching process

        _refuse_wrong_launcher()
        run_on_this_rank(options.replace, program, _settings(options), survive=options.survive)
    _check_program(program, options.replace)
    program = _same_on_all_ranks(program)
    settings = [word for item in _settings(options).items() for word in ("--set", "=".join(item))]
    stand_ins = [word for name in options.replace for word in ("--replace", name)]
    flags = ["--survive"] * options.survive + ["--whole-lines"] * options.tag_output
    words = [*interpreter_flags(), "-m", "taskfarm.cli.rank", *flags, *stand_ins, *settings, *program]
    plan = plan_launch(
        words, options.ranks, options.mpiexec, Situation.here(), tag_output=options.tag_output, survive=options.survive
    )
    if options.dry_run:
        print(plan.shell_line())
        return 0
    if options.verbose:
        print(f"taskfarm run: {plan.shell_line()}", file=sys.stderr)
    return execute_plan(plan, watches=options.survive)


def _kernel_program(connection_file: str | None, program: Sequence[str]) -> list[str]:
    """Return the program that starts an IPython kernel on rank 0."""
    if program:
        raise UsageError(f"--ipython takes the place of a program; leave {program[0]!r} out")
    if find_spec("ipykernel") is None:
        raise UsageError("--ipython needs ipykernel; install it with: pip install 'taskfarm[ipython]'")
    words = ["--kernel", os.path.abspath(connection_file)] if connection_file else []
    return ["-m", "taskfarm.objects", *words]


def _settings(options: argparse.Namespace) -> dict[str, str]:
    """Return the variables that say on every rank what the options say here."""
    settings = {}
    if options.tag:
        before = os.environ.get("TASKFARM_RANK_TAGS")
        settings["TASKFARM_RANK_TAGS"] = ";".join([*filter(None, [before]), *options.tag])
    if options.isolate:
        settings["TASKFARM_ISOLATE"] = "1"
    if options.journal is not None:
        settings["TASKFARM_JOURNAL"] = os.path.abspath(options.journal)
    if options.trace is not None:
        settings["TASKFARM_TRACE"] = str(output_path("--trace", options.trace).absolute())
    if options.watch and sys.stderr.isatty():
        settings["TASKFARM_WATCH"] = f"{socket.gethostname()}:{os.ttyname(sys.stderr.fileno())}"
    if options.log is not None:
        settings["TASKFARM_LOG"] = options.log.upper()
    if options.forward_logs:
        settings["TASKFARM_FORWARD_LOGS"] = "1"
    return settings


def execute_plan(plan: LaunchPlan, *, watches: bool = False) -> int:
    """Become the launcher: its signals, its streams and its exit status are ours.

    Only ``srun`` stays a child, and the launcher of a job with supervisors, if this process `watches` it.

    Returns
    -------
    int
        The script's exit status, where the launcher is a child.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    environ = {**os.environ, **plan.added_environment, **terminal_variable(sys.stderr)}
    try:
        if plan.launcher.is_srun:
            from taskfarm.cli._status import run_and_listen

            return run_and_listen(plan.command, environ)
        if watches and sys.platform.startswith("linux"):
            from taskfarm.cli._watchdog import run_and_watch

            return run_and_watch(plan.command, environ, one_host=plan.one_host)
        free_own_folder(environ)
        os.execvpe(plan.command[0], plan.command, environ)
    except OSError as exc:
        raise UsageError(f"the launcher {plan.command[0]!r} cannot be started: {exc}") from exc


def interpreter_flags() -> list[str]:
    """Return the interpreter's own options that the ranks must share, such as ``-O`` and ``-W error``."""
    letters = {
        "bytes_warning": "b", "dont_write_bytecode": "B", "ignore_environment": "E", "no_site": "S",
        "no_user_site": "s", "optimize": "O", "verbose": "v",
    }  # fmt: skip
    if sys.flags.isolated:
        letters = {name: letter for name, letter in letters.items() if letter not in "Es"}
    flags = [
        "-" + letter * int(getattr(sys.flags, name)) for name, letter in letters.items() if getattr(sys.flags, name)
    ]
    flags += ["-I"] if sys.flags.isolated else ["-P"] if getattr(sys.flags, "safe_path", False) else []
    flags += [f"-W{option}" for option in sys.warnoptions]
    return flags + list(_x_options())


def _x_options() -> Iterator[str]:
    for name, value in sys._xoptions.items():
        yield from ("-X", name if value is True else f"{name}={value}")


def _is_rank_already(n_ranks: int | None) -> bool:
    """Tell whether a launcher has started this process, so that it must not launch again."""
    size = expected_world_size(os.environ)
    if size is None:
        return False
    if n_ranks is None or n_ranks == size:
        return True
    leave_explaining_to_rank_0(os.environ, 2)
    raise UsageError(
        f"-n {n_ranks}: this process is one of {size} ranks that a launcher has started already. Leave -n out to run "
        "on these, or call `taskfarm run` without that launcher"
    )


def _refuse_wrong_launcher() -> None:
    """End here, rather than as N worlds of one rank, where the launcher belongs to another MPI."""
    situation = Situation.here()
    problem = wrong_launcher(situation.environ, mpi_library(situation.paths, situation.environ))
    if problem is not None:
        leave_explaining_to_rank_0(situation.environ, 2)
        raise UsageError(problem)


def _same_on_all_ranks(program: Sequence[str]) -> Sequence[str]:
    """Return the program as each rank finds it: ``/dev/stdin`` and its like are something else in each process.

    Raises
    ------
    UsageError
        If the script is a pipe, or another thing that only one process can read.
    """
    script = program[0]
    if script == "-m":
        return program
    place = os.path.realpath(script)
    if not os.path.isfile(place) and not os.path.isdir(place):
        raise UsageError(
            f"script {script!r} is no file that every rank could read (ranks above 0 have no standard input); "
            "write the program to a file"
        )
    return [place, *program[1:]] if script.startswith(("/dev/", "/proc/")) else program


def _check_program(program: Sequence[str], replaced: Sequence[str]) -> None:
    if program[0] != "-m":
        script = program[0]
        if not os.path.exists(script):
            raise UsageError(f"script {script!r} does not exist (working directory {os.getcwd()!r})")
        if os.path.isdir(script) and not os.path.exists(os.path.join(script, "__main__.py")):
            raise UsageError(f"script {script!r} is a folder without a __main__.py")
        return
    module = program[1]
    top = module.partition(".")[0]
    if module in replaced or top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return
    path = sys.path[1:] if getattr(sys.flags, "safe_path", False) else [os.getcwd(), *sys.path[1:]]
    if PathFinder.find_spec(top, path) is None and top not in sys.modules:
        raise UsageError(
            f"-m {module!r}: no module named {top!r}; install it for {sys.executable}, or correct the name"
        )
