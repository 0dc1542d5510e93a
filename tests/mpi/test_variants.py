"""The same promises under other settings: plain probes, no doorbell, lower thread levels, and messages above 2 GiB."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import PROGRAMS, Launch, Result

GIB = 2**30


def storage(tmp_path: Path) -> dict[str, str]:
    """Environment that the programs of checks expect."""
    return {"PARALLEL_LOCAL_STORAGE": str(tmp_path / "l"), "PARALLEL_MIRRORED_STORAGE": str(tmp_path / "m")}


def failed(result: Result) -> list[str]:
    """Texts of the failed checks."""
    events = [json.loads(line) for line in result.log("checks.jsonl").splitlines()]
    assert events
    return [f"{event['name']}\n{event['text']}" for event in events if event["event"] == "fail"]


@pytest.mark.parametrize(
    ("program", "setting"),
    [
        ("both_faces.py", {"TASKFARM_RECEIVE": "matched"}),
        ("objects_comm.py", {"TASKFARM_RECEIVE": "plain", "TASKFARM_DOORBELL": "0"}),
        ("objects_handles.py", {"TASKFARM_DOORBELL": "0", "TASKFARM_SPIN": "0"}),
        ("objects_comm.py", {"TASKFARM_SPIN": "1"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(f"{k[9:]}={v}" for k, v in value.items()),
)
def test_programs_of_checks(run_mpi: Launch[Result], tmp_path: Path, program: str, setting: dict[str, str]) -> None:
    """Settings change how ranks wait and probe, never what is promised."""
    result = run_mpi(PROGRAMS / program, 4, env=storage(tmp_path) | setting, timeout_s=100).check(0)
    assert failed(result) == []


# Ranks that share no memory, as far as MPI is concerned: what it does between hosts.
BY_NETWORK = {
    "MPIR_CVAR_NOLOCAL": "1",
    "MPIR_CVAR_CH4_NETMOD": "ucx",
    "UCX_TLS": "tcp,self",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "tcp,self",
}


@pytest.mark.parametrize("bell", ["1", "0"])
def test_ranks_that_share_no_memory(run_mpi: Launch[Result], bell: str) -> None:
    """Calls, tasks and maps come through a network, too, with and without pauses between the polls."""
    text = """
        from taskfarm import Executor, objects, vm
        with Executor() as executor:
            assert sum(executor.map(abs, range(1000))) == 499_500
            assert [executor.submit(abs, -n).result() for n in range(20)] == list(range(20))
            assert executor.submit(bytes, 5_000_000).result() == bytes(5_000_000)
            for _ in range(20):
                assert objects.call_all(abs, -3) == [3, 3, 3]
            farm = vm.MPI()
            for _ in range(20):
                farm.spawnFunction(abs, (-2,), count=1)
                assert farm.receiveMessage()[1].success
                farm.receiveMessage()
        print("through")
    """
    result = run_mpi(text, 3, env=BY_NETWORK | {"TASKFARM_DOORBELL": bell}, timeout_s=100).check(0)
    assert result.stdout == "through\n"


LEVELS = """
    import mpi4py, sys
    mpi4py.rc.thread_level = sys.argv[1]
    from mpi4py import MPI as mpi
    from taskfarm import objects
    from taskfarm.vm import MPI, MsgTaskResult
    assert mpi.Query_thread() == getattr(mpi, "THREAD_" + sys.argv[1].upper())
    objects.launch_event_loop()
    if not objects.rank0:
        sys.exit(0)
    assert objects.call_all(lambda: objects.comm.allreduce(1)) == [objects.size] * objects.size
    vm = MPI()
    vm.spawnFunction(len, args=("ab",))
    while vm.freeSlots() < MPI.slots() - 1:
        vm.receiveMessage(10)
    def fail():
        if objects.rank == 1:
            raise LookupError("told to fail on rank 1")
        objects.comm.Barrier()
    if "stuck" in sys.argv:
        objects.call(fail)
"""


@pytest.mark.parametrize("level", ["serialized", "funneled", "single"])
def test_thread_levels(run_mpi: Launch[Result], level: str) -> None:
    """A program that chose a lower thread level works; one that strands ranks in a collective ends with status 75."""
    run_mpi(LEVELS, 4, args=[level], timeout_s=20).check(0)
    result = run_mpi(LEVELS, 4, args=[level, "stuck"], env={"TASKFARM_STUCK_COMM_S": "0.5"}, timeout_s=20)
    assert result.status not in (0, -1) and "told to fail on rank 1" in result.stderr, result.describe()


LARGE = """
    import sys
    import numpy as np
    from taskfarm import objects
    from taskfarm.vm import MPI, MsgTaskResult
    objects.launch_event_loop()
    if not objects.rank0:
        sys.exit(0)
    n = 2**31 + 4096
    def make():
        array = np.zeros(n, dtype=np.uint8)
        array[-1] = array[n // 2] = 7
        return array
    def look(array):
        return array.nbytes, int(array[-1]), int(array[n // 2])
    if sys.argv[1] == "call":
        assert objects.call_all(look, make()) == [(n, 7, 7)] * 2
    elif sys.argv[1] == "task":
        vm = MPI()
        (task,) = vm.spawnFunction(look, args=(make(),), count=1)
        assert vm.receiveMessage(60)[1].returnValue == (n, 7, 7)
    elif sys.argv[1] == "result":
        vm = MPI()
        (task,) = vm.spawnFunction(make, count=1)
        assert look(vm.receiveMessage(60)[1].returnValue) == (n, 7, 7)
    else:
        blob = bytes(n)
        assert objects.call_all(len, blob) == [n, n]
"""


def available_bytes() -> int:
    """Memory that new processes can have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["call", "task", "result", "bytes"])
def test_more_than_2_gib(run_mpi: Launch[Result], way: str) -> None:
    """Arguments and results of more than 2 GiB travel, under every MPI library."""
    if available_bytes() < 12 * GIB:
        pytest.skip("needs 12 GiB of memory")
    run_mpi(LARGE, 2, args=[way], timeout_s=120).check(0)
