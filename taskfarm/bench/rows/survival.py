"""What supervisors cost, and how soon a task of a rank that died runs elsewhere; whole jobs, as in `launching`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from taskfarm.bench.launcher import output_of, printed_seconds, run_words
from taskfarm.bench.measure import OURS, WITHOUT, Contenders, Setting

__all__ = ["HEARTBEAT_S", "WITHOUT", "hang", "startup", "task", "until_elsewhere"]

HEARTBEAT_S = 2.0  # of the row about hangs; the default is 30
_SAMPLE_S = 1.0
_SAMPLE_QUICK_S = 0.3
# A program that opens a session and runs one task.
_PROGRAM = "from taskfarm import Executor\nwith Executor() as executor:\n    executor.submit(abs, 1).result()\n"


def _command(setting: Setting, program: Sequence[str], *, survives: bool) -> list[str]:
    return run_words(setting.n_ranks, setting.mpiexec, program, ["--survive"] if survives else [])


def startup(setting: Setting) -> Contenders:
    """Return the row for a whole job with one task, with supervisors and without."""
    script = Path(setting.cleanup.enter_context(tempfile.TemporaryDirectory()), "script.py")
    script.write_text(_PROGRAM)

    def seconds(survives: bool) -> Callable[[int], float]:
        command = _command(setting, [str(script)], survives=survives)

        def run(n: int) -> float:
            began = time.perf_counter()
            for _ in range(n):
                output_of(command)
            return time.perf_counter() - began

        return run

    return {OURS: seconds(True), WITHOUT: seconds(False)}


def task(setting: Setting) -> Contenders:
    """Return the row for an empty task, there and back, with supervisors and without."""
    sample_s = _SAMPLE_QUICK_S if setting.quick else _SAMPLE_S
    program = ["-m", "taskfarm.bench.isolated", "0", str(sample_s), "0"]

    def seconds(survives: bool) -> Callable[[int], float]:
        return printed_seconds(_command(setting, program, survives=survives))

    return {OURS: seconds(True), WITHOUT: seconds(False)}


def until_elsewhere(setting: Setting) -> Contenders:
    """Return the row from a worker's death until its task runs on another one."""
    return {OURS: _after("SIGKILL", setting, 0.0, {})}


def hang(setting: Setting) -> Contenders:
    """Return the row from the moment at which a stopped worker counts as dead until its task runs on another one."""
    return {OURS: _after("SIGSTOP", setting, HEARTBEAT_S, {"TASKFARM_HEARTBEAT_S": str(HEARTBEAT_S)})}


def _after(name: str, setting: Setting, limit_s: float, added: Mapping[str, str]) -> Callable[[int], float]:
    command = _command(setting, ["-m", "taskfarm.bench.death", name], survives=True)
    return lambda n: n * (float(output_of(command, {**os.environ, **added}).split()[-1]) - limit_s)
