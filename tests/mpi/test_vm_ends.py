"""``taskfarm.vm``: how a job parts and ends, from the outside."""

from __future__ import annotations

import json

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
    source = (
        START + f"    ids = vm.spawnFunction(len, args=('ab',))\n    assert len(drain()) == 2 * initial\n    {ending}\n"
    )
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
    assert result.elapsed_s < 20 and result.stderr == "", result.describe()
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
    [
        ("raise ValueError('spawner failed')", 1, "ValueError: spawner failed"),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('text')", 1, "text"),
    ],
)
def test_status_is_that_of_the_spawner(
    run_mpi: Launch[Result], outstanding: str, body: str, status: int, text: str
) -> None:
    """The spawner's exception or exit, with tasks running or not, ends the job with its status; no hang."""
    result = run_mpi(f"{START}{outstanding}    {body}\n", 4, timeout_s=20)
    assert result.status == status and text in result.stderr, result.describe()
    assert result.elapsed_s < 20, result.describe()


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
    assert result.elapsed_s < 20, result.describe()


def test_program_after_finalize_goes_on(run_mpi: Launch[Result]) -> None:
    """The spawner's program goes on after `finalize`, and its exit status counts."""
    run_mpi(START + "    vm.finalize()\n    sys.exit(6)\n", 2, timeout_s=20).check(6)


# Output


@pytest.mark.parametrize("level", [0, 1])
def test_debug_text_of_workers(run_mpi: Launch[Result], level: int) -> None:
    """``MPI(debug=1)`` prints what workers tell during `receiveMessage`, on rank 0; debug 0 prints nothing."""
    source = (
        START.replace("MPI()", f"MPI(debug={level})")
        + "    vm.spawnFunction(len, args=('ab',))\n    drain()\n    vm.finalize()\n"
    )
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
    seen = [list(message.returnValue) for _, message in drain() if type(message) is MsgTaskResult]
    print(json.dumps([*seen, [sys.argv[1:], sys.path[0]]]))
    vm.finalize()
    """
    )
    seen = json.loads(run_mpi(source, 2, args=["a", "-b"], timeout_s=20).check(0).stdout)
    assert seen[0] == seen[1]
