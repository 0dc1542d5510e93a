"""``taskfarm.Executor`` with groups of workers: the same promises, and what only groups have to keep."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from checklist import Checklist, cases
from harness import Job, Launch, Result

GROUPS = {"TASKFARM_GROUP_SIZE": "3"}
N = 6  # two groups: rank 1 feeds rank 2, and rank 3 the ranks 4 and 5
PROGRAM = "futures_groups.py"


@pytest.mark.parametrize(("n", "name"), cases(PROGRAM, (N,)))
def test_promise_with_groups(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(PROGRAM, n, name, env=GROUPS)


ENDS = """
    import os, sys, time
    from taskfarm import Executor
    def nap(seconds):
        time.sleep(seconds)
        return seconds
    def note(name):
        open(os.path.join(os.environ["TF_LOG_DIR"], name), "w").write("here")
"""


def test_exit_without_shutdown(run_mpi: Launch[Result], tmp_path: Path) -> None:
    """A program that ends without shutdown first has all its tasks run, in all groups; a trace has all of them."""
    body = """
    executor = Executor()
    futures = [executor.submit(nap, 0.02) for _ in range(60)]
    futures[-1].add_done_callback(lambda future: print("last", future.result(), flush=True))
    """
    trace = tmp_path / "trace.json"
    result = run_mpi(ENDS + body, N, env=GROUPS | {"TASKFARM_TRACE": str(trace)}).check(0)
    assert "last 0.02" in result.stdout
    ranks = [event["pid"] for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "nap"]
    assert len(ranks) == 60 and set(ranks) == {2, 4, 5}


def test_interrupt(start_mpi: Launch[Job]) -> None:
    """^C in the middle of a map: KeyboardInterrupt in the program, then the end, whatever groups have in hand."""
    body = """
    def note_and_nap(i):
        time.sleep(0.05)
        if i == 3:
            note("began")
    with Executor() as executor:
        note("pid-" + str(os.getpid()))
        list(executor.map(note_and_nap, range(2000)))
    """
    job = start_mpi(ENDS + body, N, env=GROUPS)
    job.wait_for_log("began")
    os.kill(next(int(path.name[4:]) for path in job.log_dir.glob("pid-*")), signal.SIGINT)
    result = job.finish(timeout_s=20)
    assert "KeyboardInterrupt" in result.stderr and result.status != 0, result.describe()
