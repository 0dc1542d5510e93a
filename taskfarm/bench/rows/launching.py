"""Whole jobs: how soon a script's first line runs, and what more ranks than cores cost. Measured by the command itself.

A contender launches a job, waits for its end, and reads what the ranks print.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from taskfarm.bench.launcher import output_of, printed_seconds, run_words
from taskfarm.bench.measure import OURS, RAW, WITHOUT, Contenders, Setting
from taskfarm.runtime.launching.launch import LaunchPlan, plan_launch
from taskfarm.runtime.launching.launchers import Situation

__all__ = ["crowded_rate", "first_line", "first_session", "isolated", "traced_items", "traced_task"]

_CROWD_CORES = 2
_FEW_RANKS = 3
_CROWD_SAMPLE_S = 0.5  # of tasks, in a job of their own
_CROWD_SAMPLE_QUICK_S = 0.2
_TASKS_SAMPLE_S = 1.0
_TASKS_SAMPLE_QUICK_S = 0.3
IN_THE_RANK = "in the rank"

# Each rank prints when its line is reached. One write per rank, so that lines do not mix.
_PRINT_TIME = "import os, time; os.write(1, b'at %.6f\\n' % time.time())\n"
_FIRST_LINE = _PRINT_TIME
_FIRST_SESSION = (
    "from taskfarm import objects\nobjects.launch_event_loop()\nif objects.rank == 0:\n    objects.call(exec, "
)
_FIRST_SESSION += repr(_PRINT_TIME) + ")\n    objects.quit()\n"
_RAW_LINE = "from mpi4py import MPI\n" + _PRINT_TIME
_RAW_MEETING = "from mpi4py import MPI\nMPI.COMM_WORLD.Barrier()\n" + _PRINT_TIME


def first_line(setting: Setting) -> Contenders:
    """Return the row from the start of ``taskfarm run`` to the first line of the script on the last rank.

    Raw is the bare launcher, with the same settings of its environment, to the first line after MPI has been imported.
    """
    return _startup(setting, _FIRST_LINE, _RAW_LINE)


def first_session(setting: Setting) -> Contenders:
    """Return the row to the first collective call on the last rank; raw: to the end of a barrier."""
    return _startup(setting, _FIRST_SESSION, _RAW_MEETING)


def _startup(setting: Setting, ours: str, raw: str) -> Contenders:
    folder = Path(setting.cleanup.enter_context(tempfile.TemporaryDirectory()))
    script = folder / "script.py"
    script.write_text(ours)
    words = run_words(setting.n_ranks, setting.mpiexec, [str(script)])
    plan = plan_launch(["-c", raw], setting.n_ranks, setting.mpiexec, Situation.here())
    return {OURS: _until_last(words, {}, setting.n_ranks), RAW: _until_last(*_command(plan), setting.n_ranks)}


def _command(plan: LaunchPlan) -> tuple[Sequence[str], Mapping[str, str]]:
    return plan.command, plan.added_environment


def _until_last(command: Sequence[str], added: Mapping[str, str], n_ranks: int) -> Callable[[int], float]:
    def seconds(n: int) -> float:
        total = 0.0
        for _ in range(n):
            start = time.time()  # the ranks' clock: they are on this host
            times = [
                float(word)
                for word in re.findall(r"^at (\S+)$", output_of(command, {**os.environ, **added}), re.MULTILINE)
            ]
            if len(times) != n_ranks:
                raise RuntimeError(f"{len(times)} of {n_ranks} ranks reported: {' '.join(command)}")
            total += max(times) - start
        return total

    return seconds


def crowded_rate(setting: Setting) -> Contenders:
    """Return the row for the rate of empty tasks with more ranks than cores, against that of three ranks."""
    sample_s = _CROWD_SAMPLE_QUICK_S if setting.quick else _CROWD_SAMPLE_S
    cpus = sorted(setting.cpus)[:_CROWD_CORES]

    def rate(n_ranks: int) -> Callable[[int], float]:
        program = ["-m", "taskfarm.bench.rate", str(sample_s)]
        command = run_words(n_ranks, setting.mpiexec, program)
        return lambda _: float(output_of(command, cpus=cpus).split()[-1])

    return {OURS: rate(setting.n_ranks), f"{_FEW_RANKS} ranks": rate(_FEW_RANKS)}


def isolated(size_bytes: int, setting: Setting) -> Contenders:
    """Return the row for a task in a process of its own, against one in the rank: empty, or with an array."""
    sample_s = _tasks_sample_s(setting)

    def seconds(is_isolated: bool) -> Callable[[int], float]:
        program = ["-m", "taskfarm.bench.isolated", str(int(is_isolated)), str(sample_s), str(size_bytes)]
        command = run_words(setting.n_ranks, setting.mpiexec, program)
        return printed_seconds(command)

    return {OURS: seconds(True), IN_THE_RANK: seconds(False)}


def traced_items(setting: Setting) -> Contenders:
    """Return the row for an item of a map with a trace, against one without."""
    return _traced(["-m", "taskfarm.bench.items", str(_tasks_sample_s(setting))], setting)


def traced_task(setting: Setting) -> Contenders:
    """Return the row for an empty task, there and back, with a trace and without."""
    return _traced(["-m", "taskfarm.bench.isolated", "0", str(_tasks_sample_s(setting)), "0"], setting)


def _traced(program: Sequence[str], setting: Setting) -> Contenders:
    folder = setting.cleanup.enter_context(tempfile.TemporaryDirectory())

    def seconds(options: Sequence[str]) -> Callable[[int], float]:
        command = run_words(setting.n_ranks, setting.mpiexec, program, options)
        return printed_seconds(command)

    return {OURS: seconds(["--trace", os.path.join(folder, "run.json")]), WITHOUT: seconds([])}


def _tasks_sample_s(setting: Setting) -> float:
    return _TASKS_SAMPLE_QUICK_S if setting.quick else _TASKS_SAMPLE_S
