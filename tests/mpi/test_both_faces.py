"""``taskfarm.objects`` and ``taskfarm.vm`` in one program. Most promises stand in ``programs/both_faces.py``."""

from __future__ import annotations

import pytest
from checklist import Checklist, cases
from harness import PROGRAMS, Launch, Result

PROGRAM = "both_faces.py"


@pytest.mark.parametrize(("n", "name"), cases(PROGRAM))
def test_promise(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(PROGRAM, n, name)


def test_vm_first(run_mpi: Launch[Result]) -> None:
    """The same with ranks parted by the barrier of ``vm`` instead of the loop of ``objects``."""
    result = run_mpi(PROGRAMS / PROGRAM, 4, args=["vm"], timeout_s=120).check(0)
    failed = [line for line in result.log("checks.jsonl").splitlines() if '"event": "fail"' in line]
    assert failed == []


END = """
    import sys
    from taskfarm import objects
    from taskfarm.vm import MPI
    from taskfarm.errors import UsageError
    objects.launch_event_loop()
    if not objects.rank0:
        sys.exit(0)
    vm = MPI()
    assert objects.call(lambda: objects.comm.allreduce(1)) == objects.size
    vm.spawnFunction(len, args=("ab",))
    while vm.freeSlots() < MPI.slots() - 1:
        vm.receiveMessage(10)
"""


def test_quit_ends_the_session_for_both(run_mpi: Launch[Result]) -> None:
    """After `quit` the other face raises `UsageError`, and `finalize` is harmless."""
    source = (
        END
        + """
    objects.quit()
    for attempt in (lambda: vm.spawnFunction(len, args=("",)), lambda: vm.receiveMessage(0), MPI.freeSlots, MPI):
        try:
            attempt()
        except UsageError as exc:
            assert str(exc)
        else:
            raise AssertionError(attempt)
    assert objects.call(len, ()) is None
    MPI.finalize()
    """
    )
    run_mpi(source, 4, timeout_s=20).check(0)


def test_finalize_ends_the_session_for_both(run_mpi: Launch[Result]) -> None:
    """After `finalize` `call` returns None and `quit` does nothing."""
    source = (
        END
        + """
    vm.finalize()
    assert objects.call(len, ()) is None
    assert objects.finished
    objects.quit()
    """
    )
    run_mpi(source, 4, timeout_s=20).check(0)


@pytest.mark.parametrize("end", ["objects.quit()", "vm.finalize()", "pass"])
def test_end_with_tasks_outstanding(run_mpi: Launch[Result], end: str) -> None:
    """`quit`, `finalize` and the end of the program let running tasks end and cut off waiting ones."""
    source = (
        END
        + f"""
    import os, time
    def work():
        time.sleep(0.6)
        open(os.environ["TF_LOG_DIR"] + f"/done-{{objects.rank}}", "w").write("done")
    vm.spawnFunction(work, count=2)
    vm.spawnFunction(lambda: MPI().receiveMessage(-1), count=1)
    {end}
    """
    )
    result = run_mpi(source, 4, timeout_s=20).check(0)
    assert [result.log(f"done-{r}") for r in (1, 2)] == ["done"] * 2
    assert result.elapsed_s < 15


@pytest.mark.parametrize("launcher", ["objects", "taskfarm run"])
def test_both_faces_under_our_own_launchers(run_mpi: Launch[Result], launcher: str) -> None:
    """The same program under ``-m taskfarm.objects`` and ``taskfarm run``."""
    run_mpi(END + "    objects.quit()\n", 4, launcher=launcher, timeout_s=20).check(0)
