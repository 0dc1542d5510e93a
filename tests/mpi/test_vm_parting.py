"""``taskfarm.vm``: where spawner and workers part, from the outside."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Launch, Result, environment


def test_workers_never_pass_the_barrier(run_mpi: Launch[Result]) -> None:
    """Only rank 0 returns from `spawnerBarrier`; workers leave the process with status 0 there."""
    source = """
        import atexit, os
        from taskfarm.vm import MPI
        path = os.environ["TF_LOG_DIR"]
        name = f"{path}/rank-{os.getpid()}.log"
        atexit.register(lambda: open(name, "a").write("atexit "))
        try:
            MPI.spawnerBarrier()
            open(name, "a").write("spawner ")
            MPI.spawnerBarrier()
        except SystemExit as exc:
            open(name, "a").write(f"exit {exc.code!r} ")
            raise
        MPI.finalize()
    """
    result = run_mpi(source, 4, timeout_s=20).check(0)
    logs = sorted(path.read_text() for path in (result.work_dir / "logs").iterdir())
    assert logs[-1].startswith("spawner ") and len(logs) == 4
    assert all("spawner" not in log and ("exit 0" in log or "exit None" in log) for log in logs[:-1]), logs


@pytest.mark.parametrize("n", [2, 4])
def test_swallowed_system_exit(run_mpi: Launch[Result], n: int) -> None:
    """A worker whose exit was swallowed by a bare ``except`` comes back to the barrier and leaves all the same."""
    source = """
        from taskfarm.vm import MPI
        while True:
            try:
                vm = MPI()
            except:
                continue
            break
        assert MPI.taskID().rank == 0
        vm.spawnFunction(len, args=("ab",))
        while vm.freeSlots() < MPI.slots() - 1:
            vm.receiveMessage(10)
        MPI.finalize()
    """
    result = run_mpi(source, n, timeout_s=20).check(0)
    assert result.elapsed_s < 15


def test_swallowed_system_exit_and_on_to_the_end(run_mpi: Launch[Result]) -> None:
    """A worker whose exit was swallowed and that runs to the end of its program leaves with status 0."""
    source = """
        from taskfarm.vm import MPI
        try:
            MPI.spawnerBarrier()
        except:
            pass
        else:
            MPI.finalize()
    """
    run_mpi(source, 4, timeout_s=20).check(0)


def test_barrier_timeout_names_the_missing(run_mpi: Launch[Result]) -> None:
    """`spawnerBarrier(timeout)` bounds the wait for the workers; the error names the ranks that are missing."""
    source = """
        import sys, time
        from mpi4py import MPI as mpi
        from taskfarm.vm import MPI
        from taskfarm.errors import WorkerLostError
        if mpi.COMM_WORLD.rank in (1, 3):
            time.sleep(60)
        start = time.monotonic()
        try:
            MPI.spawnerBarrier(timeout=1.0)
        except WorkerLostError as exc:
            took = time.monotonic() - start
            print(f"took {took:.2f} ranks {exc.ranks} text {exc}", flush=True)
            assert 0.9 < took < 2.0
            raise
    """
    result = run_mpi(source, 4, timeout_s=25)
    assert result.status not in (0, -1), result.describe()
    assert "WorkerLostError" in result.stderr and "ranks (1, 3)" in result.stdout, result.describe()
    assert result.elapsed_s < 15, result.describe()


def test_late_workers_are_waited_for(run_mpi: Launch[Result]) -> None:
    """Without a timeout, and with one that suffices, workers may come late."""
    source = """
        import sys, time
        from mpi4py import MPI as mpi
        from taskfarm.vm import MPI
        if mpi.COMM_WORLD.rank:
            time.sleep(1.0)
        MPI.spawnerBarrier(timeout=20.0)
        vm = MPI()
        assert len(vm.spawnFunction(len, args=("",))) == 3
        while vm.freeSlots() < 3:
            vm.receiveMessage(10)
        vm.finalize()
    """
    run_mpi(source, 4, timeout_s=20).check(0)


def test_worker_lives_inside_a_partly_executed_import(run_mpi: Launch[Result], tmp_path: Path) -> None:
    """A host package parts while it is being imported; its own functions and submodules serve as tasks."""
    package = tmp_path / "hosts" / "tfhost"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from . import early\nfrom . import parting\nfrom . import late\n")
    (package / "early.py").write_text("def double(x):\n    return 2 * x\n")
    (package / "parting.py").write_text("from taskfarm.vm import MPI\nMPI.spawnerBarrier()\n")
    (package / "late.py").write_text("def triple(x):\n    from .early import double\n    return double(x) + x\n")
    source = """
        import tfhost
        from tfhost.late import triple
        from tfhost.early import double
        import numpy as np
        from taskfarm.vm import MPI, MsgTaskResult
        vm = MPI()
        for function, expected in ((double, 10), (triple, 15), (lambda x: triple(x) + 1, 16), (np.negative, -5)):
            vm.spawnFunction(function, args=(5,))
            seen = []
            while vm.freeSlots() < MPI.slots() - 1:
                sender, message = vm.receiveMessage(10)
                if type(message) is MsgTaskResult:
                    assert message.success, message.traceback
                    seen.append(message.returnValue)
            assert seen == [expected] * (MPI.slots() - 1), seen
        vm.finalize()
    """
    path = f"{tmp_path / 'hosts'}:{environment()['PYTHONPATH']}"
    run_mpi(source, 4, env={"PYTHONPATH": path}, timeout_s=30).check(0)
