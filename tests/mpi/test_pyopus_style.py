"""Programs of host packages in the style of PyOPUS on ``taskfarm.vm``.

The package ``pyopus`` of these tests (``fake_host/``) was written for them from the public description of the layer;
nothing of the real package is in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness import HERE, PROGRAMS, Launch, Result, environment, mpiexec_path

PROGRAM = PROGRAMS / "host_optimiser.py"
REPLACE = "taskfarm run --replace pyopus.parallel.mpi"
BOTH = "import sys, taskfarm.vm, taskfarm.vm.base\nsys.modules['pyopus.parallel.mpi'] = taskfarm.vm\n"
BASE = "sys.modules['pyopus.parallel.base'] = taskfarm.vm.base\n"
INSTALL = "import taskfarm.compat\ntaskfarm.compat.install('pyopus.parallel.mpi')\n"
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def host_env() -> dict[str, str]:
    """Environment in which the host package is importable."""
    return {"PYTHONPATH": os.pathsep.join([str(HERE / "fake_host"), environment()["PYTHONPATH"]])}


def by_hand(tmp_path: Path, binding: str) -> dict[str, object]:
    """Launch options with a main program that binds names in `sys.modules` and then runs the script."""
    starter = tmp_path / "starter.py"
    starter.write_text(binding + RUN)

    def command(n: int, target: Sequence[str]) -> list[str]:
        return [mpiexec_path(), "-n", str(n), sys.executable, str(starter), *target]

    return {"launcher": command, "env": host_env()}


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("ending", ["finalize", "end"])
def test_unmodified_program_under_replace(run_mpi: Launch[Result], n: int, ending: str) -> None:
    """``taskfarm run --replace pyopus.parallel.mpi``: the program runs unmodified, with and without `finalize`."""
    result = run_mpi(PROGRAM, n, args=[ending], launcher=REPLACE, env=host_env(), timeout_s=40).check(0)
    assert f"host ok {n} ['{ending}']" in result.stdout and result.stderr == ""


@pytest.mark.parametrize("binding", [BOTH + BASE, INSTALL], ids=["sys.modules", "compat.install"])
@pytest.mark.parametrize("n", [1, 4])
def test_bound_by_hand(run_mpi: Launch[Result], tmp_path: Path, binding: str, n: int) -> None:
    """The same when somebody binds the modules, or calls `compat.install`, in a program of their own."""
    result = run_mpi(PROGRAM, n, args=["finalize"], timeout_s=40, **by_hand(tmp_path, binding)).check(0)
    assert f"host ok {n}" in result.stdout and result.stderr == ""


def test_only_the_machine_bound_by_hand(run_mpi: Launch[Result], tmp_path: Path) -> None:
    """Only ``pyopus.parallel.mpi`` is bound: messages still are of the classes of the host's own ``base``."""
    result = run_mpi(PROGRAM, 4, args=["finalize"], timeout_s=30, **by_hand(tmp_path, BOTH)).check(0)
    assert "host ok 4" in result.stdout


def test_ranks_part_at_the_import(run_mpi: Launch[Result]) -> None:
    """Under ``--replace`` spawner and workers part when ``pyopus.parallel.mpi`` is imported; ``base`` parts nothing."""
    source = """
        import os
        from mpi4py import MPI as mpi
        rank = mpi.COMM_WORLD.rank
        def note(where):
            open(os.environ["TF_LOG_DIR"] + f"/{where}-{rank}", "w").write(where)
        from pyopus.parallel.base import MsgTaskResult
        import pyopus.parallel.base
        note("base")
        import pyopus.parallel.mpi
        note("parted")
        from pyopus.parallel.mpi import MPI, MPITaskID, MPIHostID
        import taskfarm.vm
        assert MPI is taskfarm.vm.MPI and MsgTaskResult is taskfarm.vm.MsgTaskResult
        vm = MPI()
        def work():
            from pyopus.parallel.mpi import MPI
            from pyopus.parallel.base import MsgTaskExit
            import pyopus.parallel.cooperative
            return MPI.taskID().rank
        assert len(vm.spawnFunction(work)) == 3
        seen = []
        while vm.freeSlots() < 3:
            sender, message = vm.receiveMessage(10)
            if type(message) is MsgTaskResult:
                assert message.success, message.traceback
                seen.append(message.returnValue)
        assert sorted(seen) == [1, 2, 3]
        note("end")
        MPI.finalize()
    """
    result = run_mpi(source, 4, launcher=REPLACE, env=host_env(), timeout_s=30).check(0)
    names = sorted(path.name for path in (result.work_dir / "logs").iterdir())
    assert names == ["base-0", "base-1", "base-2", "base-3", "end-0", "parted-0"]


def test_host_function_by_reference(run_mpi: Launch[Result]) -> None:
    """Functions of the host package travel by reference, though the worker is still inside the host's import."""
    source = """
        import pyopus.optimizer
        from pyopus.optimizer import MPI
        from pyopus.parallel.base import MsgTaskResult, MsgTaskExit
        from pyopus.parallel.cooperative import Scheduler, Failed
        vm = MPI()
        (task,) = vm.spawnFunction(Scheduler, count=1)
        sender, message = vm.receiveMessage(10)
        assert type(message) is MsgTaskResult and message.success, message.traceback
        assert type(message.returnValue) is Scheduler
        assert type(vm.receiveMessage(10)[1]) is MsgTaskExit
        MPI.finalize()
    """
    run_mpi(source, 2, launcher=REPLACE, env=host_env(), timeout_s=30).check(0)


def test_original_would_have_failed(run_mpi: Launch[Result]) -> None:
    """Without ``--replace`` the stand-in's original is imported: the tests above prove that it was not."""
    result = run_mpi(PROGRAM, 1, launcher="plain", env=host_env(), timeout_s=30)
    assert result.status == 1 and "the original pyopus.parallel.mpi was imported" in result.stderr
