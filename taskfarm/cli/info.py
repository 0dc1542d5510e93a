"""``taskfarm info``: versions, MPI library, launcher, hosts and cores; the first thing to look at when a job fails."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata

from taskfarm.errors import UsageError
from taskfarm.runtime.launching.launch import LaunchPlan, plan_launch
from taskfarm.runtime.launching.launchers import Situation
from taskfarm.runtime.launching.surroundings import (
    default_ranks,
    expected_world_size,
    explain_mismatch,
    promised_rank,
    usable_cores,
)
from taskfarm.transport.library import LibraryFacts, RankFacts, gather_ranks, library_facts

__all__ = ["execute", "package_version"]

_PACKAGES = ("mpi4py", "numpy", "cloudpickle")
_FAILED = 1
_MISMATCH = 2


def execute(options: argparse.Namespace) -> int:
    """Run the command; the exit status is 0 if MPI works.

    Raises
    ------
    UsageError
        With ``-n``, if there is no launcher to use.
    """
    if expected_world_size(os.environ) is not None:
        if promised_rank(os.environ) == 0:
            _print_rows(_version_rows())
        return report_world()
    _print_rows(_version_rows())
    situation = Situation.here()
    n = default_ranks(situation.environ, situation.cores) if options.ranks is None else options.ranks
    try:
        plan = plan_launch(["-m", "taskfarm.cli.info"], n, options.mpiexec, situation)
    except UsageError as exc:
        if options.ranks is not None:
            raise
        _print_rows([("MPI", f"cannot be used: {exc}")])
        return _FAILED
    _print_rows(_launch_rows(plan, situation))
    if options.ranks is None:
        return report_world()
    from taskfarm.cli.run import execute_plan

    return execute_plan(plan)


def report_world() -> int:
    """Start MPI, and print on rank 0 what it is and on which hosts its ranks are; collective over all ranks."""
    expected = expected_world_size(os.environ)
    try:
        facts = library_facts()
    except ImportError as exc:
        if promised_rank(os.environ) == 0:
            _print_rows([("MPI", f"cannot be loaded: {exc}")])
        return _FAILED
    problem = explain_mismatch(expected, facts.size, facts.name)
    if problem is not None:
        if promised_rank(os.environ) == 0:
            print(f"taskfarm info: error: {problem}", file=sys.stderr)
        return _MISMATCH
    ranks = gather_ranks(usable_cores())
    if ranks is not None:
        _print_rows([*_library_rows(facts), *_host_rows(ranks)])
    return 0


def package_version(name: str) -> str:
    """Return the installed version of a package without importing it; a phrase if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        if name == "taskfarm":
            import taskfarm

            return str(getattr(taskfarm, "__version__", "(not installed, run from its source)"))
        return "not installed"


def _version_rows() -> Iterator[tuple[str, str]]:
    yield "taskfarm", f"{package_version('taskfarm')}  ({os.path.dirname(os.path.dirname(__file__))})"
    yield "Python", f"{platform.python_version()}  ({sys.executable})"
    for name in _PACKAGES:
        yield name, package_version(name)


def _launch_rows(plan: LaunchPlan, situation: Situation) -> Iterator[tuple[str, str]]:
    launcher = plan.launcher
    yield "MPI library", plan.library.describe()
    yield "launcher", launcher.describe()
    for name, value in sorted(plan.added_environment.items()):
        yield "  with", f"{name}={value}"
    yield "usable cores", str(situation.cores)
    yield "default ranks", str(default_ranks(situation.environ, situation.cores))


def _library_rows(facts: LibraryFacts) -> Iterator[tuple[str, str]]:
    yield "MPI says", facts.name
    yield "MPI standard", facts.standard
    yield "thread level", facts.thread_level
    yield "ranks", str(facts.size)


def _host_rows(ranks: Sequence[RankFacts]) -> Iterator[tuple[str, str]]:
    hosts: dict[str, list[RankFacts]] = {}
    for facts in ranks:
        hosts.setdefault(facts.host, []).append(facts)
    for host, members in hosts.items():
        numbers = _ranges([facts.rank for facts in members])
        noun = "rank" if len(members) == 1 else "ranks"
        cores = min(facts.usable_cores for facts in members)
        yield f"host {host}", f"{len(members)} {noun} ({numbers}), {cores} usable cores, Python {members[0].python}"


def _ranges(numbers: Sequence[int]) -> str:
    """Return ``0-3, 7`` for 0, 1, 2, 3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _print_rows(rows: Sequence[tuple[str, str]] | Iterator[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:<15} {value}")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(report_world())
