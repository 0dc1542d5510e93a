"""``taskfarm.vm``: how a job parts and ends, from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import Launch, Result

START = """
    import os, sys, time
    from taskfarm.vm import MPI, MPITaskID, MsgTaskExit, MsgTaskResult
    vm = MPI()
    initial = vm.freeSlots()

    def drain():
        seen = []
        while vm.freeSlots() != initial:
            seen.append(vm.receiveMessage(10))
        return seen
"""


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("ending", ["vm.finalize()", "MPI.finalize(); MPI.finalize()", "pass", "sys.exit(0)"])
def test_normal_end(run_mpi: Launch[Result], n: int, ending: str) -> None:
    """With `finalize`, twice, or without it: status 0, no output of ours, workers never run on behind the barrier."""
    source = START + f"    ids = vm.spawnFunction(len, args=('ab',))\n    assert len(drain()) == 2 * initial\n    {ending}\n"
    result = run_mpi(source + "    print('end')\n" if "exit" not in ending else source, n, timeout_s=20).check(0)
    assert result.stderr == "" and result.stdout == ("" if "exit" in ending else "end\n")


def test_finalize_ends_mpi(run_mpi: Launch[Result]) -> None:
    """`finalize` calls MPI's own; afterwards the machine says clearly that it has ended."""
    source = (
        START
        + """
    from mpi4py import MPI as mpi
    from taskfarm.errors import UsageError
    vm.finalize()
    assert mpi.Is_finalized()
    for attempt in (vm.slots, vm.freeSlots, lambda: vm.spawnFunction(len), lambda: vm.receiveMessage(0)):
        try:
            attempt()
        except UsageError as exc:
            assert str(exc)
        else:
            raise AssertionError(attempt)
    vm.finalize()
    """
    )
    run_mpi(source, 2, timeout_s=20).check(0)


@pytest.mark.parametrize("finalizes", [True, False])
def test_unread_messages_are_drained(run_mpi: Launch[Result], finalizes: bool) -> None:
    """Messages that nobody read, small and large, on both sides, do not disturb the end."""
    source = (
        START
        + f"""
    import numpy as np
    def talk():
        own = MPI()
        for k in range(20):
            own.sendMessage(MPI.parentTaskID(), ("unread", k))
        own.sendMessage(MPI.parentTaskID(), np.zeros(3_000_000))
    ids = vm.spawnFunction(talk)
    for task in ids:
        vm.sendMessage(task, "never read")
        vm.sendMessage(task, np.zeros(1_000_000))
    time.sleep(0.5)
    if {finalizes}:
        vm.finalize()
    """
    )
    assert run_mpi(source, 4, timeout_s=20).check(0).stderr == ""


@pytest.mark.parametrize("finalizes", [True, False])
def test_running_tasks_may_end(run_mpi: Launch[Result], finalizes: bool) -> None:
    """`finalize`, and the end of a program without it, let running tasks end."""
    source = (
        START
        + f"""
    def work():
        time.sleep(1.0)
        open(os.environ["TF_LOG_DIR"] + f"/done-{{MPI.taskID().rank}}", "w").write("done")
    vm.spawnFunction(work)
    if {finalizes}:
        vm.finalize()
    """
    )
    result = run_mpi(source, 4, timeout_s=20).check(0)
    assert [result.log(f"done-{rank}") for rank in (1, 2, 3)] == ["done"] * 3


@pytest.mark.parametrize("finalizes", [True, False])
def test_waiting_tasks_are_cut_off(run_mpi: Launch[Result], finalizes: bool) -> None:
    """Tasks that wait in `receiveMessage` for ever do not hold up the end; their `finally` blocks run."""
    source = (
        START
        + f"""
    def wait():
        try:
            MPI().receiveMessage(-1.0)
        finally:
            open(os.environ["TF_LOG_DIR"] + f"/finally-{{MPI.taskID().rank}}", "w").write("ran")
    vm.spawnFunction(wait)
    time.sleep(0.3)
    if {finalizes}:
        vm.finalize()
    """
    )
    result = run_mpi(source, 4, timeout_s=20).check(0)
    assert result.elapsed_s < 8 and result.stderr == "", result.describe()
    assert [result.log(f"finally-{rank}") for rank in (1, 2, 3)] == ["ran"] * 3


def test_finalize_in_a_task_is_refused_or_harmless(run_mpi: Launch[Result]) -> None:
    """A task that calls `finalize` ends nothing: the worker serves the next task."""
    source = (
        START
        + """
    ids = vm.spawnFunction(lambda: MPI.finalize(), count=1)
    drain()
    ids = vm.spawnFunction(lambda: MPI.taskID().rank, count=1)
    assert [m.returnValue for _, m in drain() if type(m) is MsgTaskResult] == [1]
    vm.finalize()
    """
    )
    run_mpi(source, 2, timeout_s=20).check(0)


@pytest.mark.parametrize("outstanding", ["", "    vm.spawnFunction(time.sleep, args=(0.3,))\n"])
@pytest.mark.parametrize(
    ("body", "status", "text"),
    [("raise ValueError('spawner failed')", 1, "ValueError: spawner failed"), ("sys.exit(3)", 3, ""), ("sys.exit('text')", 1, "text")],
)
def test_status_is_that_of_the_spawner(
    run_mpi: Launch[Result], outstanding: str, body: str, status: int, text: str
) -> None:
    """The spawner's exception or exit, with tasks running or not, ends the job with its status; no hang."""
    result = run_mpi(f"{START}{outstanding}    {body}\n", 4, timeout_s=20)
    assert result.status == status and text in result.stderr, result.describe()
    assert result.elapsed_s < 10, result.describe()


def test_spawner_raises_with_waiting_and_endless_tasks(run_mpi: Launch[Result]) -> None:
    """An exception of the spawner ends also tasks that wait for ever or work for very long."""
    source = (
        START
        + """
    vm.spawnFunction(lambda: MPI().receiveMessage(-1), count=1)
    vm.spawnFunction(time.sleep, args=(1000,), count=1)
    time.sleep(0.3)
    raise ValueError("spawner failed")
    """
    )
    result = run_mpi(source, 4, timeout_s=25)
    assert result.status not in (0, -1) and "ValueError: spawner failed" in result.stderr, result.describe()
    assert result.elapsed_s < 12, result.describe()


def test_program_after_finalize_goes_on(run_mpi: Launch[Result]) -> None:
    """The spawner's program goes on after `finalize`, and its exit status counts."""
    run_mpi(START + "    vm.finalize()\n    sys.exit(6)\n", 2, timeout_s=20).check(6)


# Parting


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
    assert result.elapsed_s < 8


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
    assert result.elapsed_s < 10, result.describe()


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
    from harness import environment

    path = f"{tmp_path / 'hosts'}:{environment()['PYTHONPATH']}"
    run_mpi(source, 4, env={"PYTHONPATH": path}, timeout_s=30).check(0)


# Output


@pytest.mark.parametrize("level", [0, 1])
def test_debug_text_of_workers(run_mpi: Launch[Result], level: int) -> None:
    """``MPI(debug=1)`` prints what workers tell during `receiveMessage`, on rank 0; debug 0 prints nothing."""
    source = START.replace("MPI()", f"MPI(debug={level})") + "    vm.spawnFunction(len, args=('ab',))\n    drain()\n    vm.finalize()\n"
    result = run_mpi(source, 2, timeout_s=20).check(0)
    assert bool(result.output.strip()) == bool(level), result.describe()


def test_worker_debug_can_be_set_later(run_mpi: Launch[Result]) -> None:
    """`setWorkerDebug` switches the text of workers on and off."""
    source = (
        START
        + """
    vm.setWorkerDebug(1)
    vm.spawnFunction(len, args=("ab",))
    drain()
    print("---", flush=True)
    vm.setWorkerDebug(0)
    vm.spawnFunction(len, args=("ab",))
    drain()
    vm.finalize()
    """
    )
    before, _, after = run_mpi(source, 2, timeout_s=20).check(0).stdout.partition("---\n")
    assert before.strip() and not after.strip(), (before, after)


def test_failed_tasks_print_nothing(run_mpi: Launch[Result]) -> None:
    """The traceback of a failed task travels in its message; no rank prints it."""
    source = START + "    vm.spawnFunction(lambda: 1 // 0)\n    assert not drain()[0][1].success\n    vm.finalize()\n"
    assert run_mpi(source, 4, timeout_s=20).check(0).output.strip() == ""


# Surroundings


@pytest.mark.parametrize("missing", ["mpi4py", "mpi4py.MPI"])
def test_without_mpi(run_mpi: Launch[Result], missing: str) -> None:
    """The import works without mpi4py or an MPI library; `MPI(...)` raises `ImportError` with the cure."""
    source = f"""
        import sys
        from importlib.abc import MetaPathFinder
        class Refuse(MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == {missing!r}:
                    if name == "mpi4py":
                        raise ModuleNotFoundError("No module named 'mpi4py'", name="mpi4py")
                    raise RuntimeError("cannot load MPI library")
        sys.meta_path.insert(0, Refuse())
        import taskfarm.vm as vm
        assert vm.MPIHostID("a") == vm.MPIHostID("a")
        try:
            vm.MPI()
        except ImportError as exc:
            assert "pip install" in str(exc), exc
        else:
            raise AssertionError("no error")
    """
    run_mpi(source, 1, launcher="plain", timeout_s=20).check(0)


def test_plain_python_is_one_process(run_mpi: Launch[Result]) -> None:
    """``python script.py`` with no launcher: one slot, nothing to spawn into, `finalize` works."""
    source = START + "    assert MPI.slots() == 1 and vm.spawnFunction(len, args=('',)) == []\n    vm.finalize()\n"
    run_mpi(source, 1, launcher="plain", timeout_s=20).check(0)


def test_versions_are_compared(run_mpi: Launch[Result]) -> None:
    """A worker whose packages differ is a warning that names the hosts, not an error."""
    source = """
        import os, socket, sys
        if int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", 0))) == 1:
            import numpy
            numpy.__version__ = "0.0.1"
            import importlib.metadata
            original = importlib.metadata.version
            importlib.metadata.version = lambda name: "0.0.1" if name == "numpy" else original(name)
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            from taskfarm.vm import MPI
            MPI.spawnerBarrier()
        texts = [str(w.message) for w in caught]
        print("warnings:", texts)
        MPI.finalize()
    """
    result = run_mpi(source, 2, timeout_s=20).check(0)
    assert "0.0.1" in result.output and "numpy" in result.output, result.describe()


def test_sys_path_and_argv_of_tasks(run_mpi: Launch[Result]) -> None:
    """Tasks run in the process that started the script: same arguments, same path."""
    source = (
        START
        + """
    import json
    def look():
        import sys
        return sys.argv[1:], sys.path[0]
    vm.spawnFunction(look, count=1)
    print(json.dumps([list(m.returnValue) for _, m in drain() if type(m) is MsgTaskResult] + [[sys.argv[1:], sys.path[0]]]))
    vm.finalize()
    """
    )
    seen = json.loads(run_mpi(source, 2, args=["a", "-b"], timeout_s=20).check(0).stdout)
    assert seen[0] == seen[1]
