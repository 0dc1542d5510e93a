"""Cores, default number of ranks and the size that a launcher promised are read right from fake systems."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from taskfarm.runtime.launching.surroundings import (
    default_ranks,
    expected_world_size,
    explain_mismatch,
    free_memory_bytes,
    leave_explaining_to_rank_0,
    promised_rank,
    slurm_cores,
    usable_cores,
)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_affinity_bounds_the_cores(tmp_path: Path) -> None:
    assert usable_cores(3, str(tmp_path)) == 3
    assert usable_cores() >= 1


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_quota_of_a_control_group_bounds_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path, "sys/fs/cgroup/a/cpu.max", quota + "\n")
    write(tmp_path, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    assert usable_cores(8, str(tmp_path)) == cores


def test_quota_of_the_first_version(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/docker/1\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert usable_cores(8, str(tmp_path)) == 3
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    assert usable_cores(8, str(tmp_path)) == 8


def test_default_number_of_ranks() -> None:
    assert [default_ranks({}, cores) for cores in (1, 2, 8)] == [2, 3, 9]
    assert default_ranks({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "12"}, 4) == 12
    assert default_ranks({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"}, 4) == 2
    assert default_ranks({"SLURM_JOB_ID": "1"}, 4) == 5


STEP = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environ", "size"),
    [
        ({}, None),
        ({"PMI_SIZE": "4"}, 4),
        ({"PMI_SIZE": "1"}, 1),
        ({"PMI_SIZE": "four"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
        (STEP, 4),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "2"}, 2),
        ({**STEP, "SLURM_NTASKS": "1"}, None),
        ({**STEP, "PMI_SIZE": "8"}, 8),
        ({**STEP, "SLURM_STEP_ID": str(2**32 - 5)}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        ({**STEP, "SLURM_NTASKS": "1", "PMI_SIZE": "1", "SLURM_PTY_PORT": "4242"}, None),
    ],
)
def test_size_that_the_launcher_promised(environ: dict[str, str], size: int | None) -> None:
    assert expected_world_size(environ) == size


def test_promised_rank() -> None:
    assert promised_rank({}) == 0
    assert promised_rank({"PMI_RANK": "2"}) == 2
    assert promised_rank({"OMPI_COMM_WORLD_RANK": "3"}) == 3
    assert promised_rank(STEP) == 2


@pytest.mark.parametrize(("text", "cores"), [("16(x2),8", 40), ("2", 2), ("", None), ("x", None)])
def test_cpus_of_an_allocation(text: str, cores: int | None) -> None:
    assert slurm_cores({"SLURM_JOB_CPUS_PER_NODE": text}) == cores


@pytest.mark.parametrize(("expected", "actual"), [(None, 1), (1, 1), (4, 4), (4, 2)])
def test_no_complaint_without_reason(expected: int | None, actual: int) -> None:
    assert explain_mismatch(expected, actual, "MPICH") is None


def test_separate_worlds_are_explained() -> None:
    text = explain_mismatch(4, 1, "Open MPI v5.0.11, package: x\nmore")
    assert text is not None
    assert "\n" not in text
    for part in ("4 ranks", "4 separate worlds", "(Open MPI v5.0.11)", "taskfarm run -n 4", "--mpi=pmi2", "--mpi=pmix"):
        assert part in text


def test_rank_0_explains_and_the_others_end_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a job cannot run, rank 0 goes on to say why; the others wait, since the first to fail ends the job."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    leave_explaining_to_rank_0({"PMI_RANK": "0"}, 2)
    assert not slept
    with pytest.raises(SystemExit) as caught:
        leave_explaining_to_rank_0({"OMPI_COMM_WORLD_RANK": "1"}, 2)
    assert caught.value.code == 2 and sum(slept) >= 1.0


def test_memory_that_is_left(tmp_path: Path) -> None:
    """The host's, and that of the narrowest control group, whose file cache counts as free."""
    assert free_memory_bytes(str(tmp_path)) is None
    write(tmp_path, "proc/meminfo", "MemTotal: 99 kB\nMemAvailable:   1000 kB\n")
    assert free_memory_bytes(str(tmp_path)) == 1000 * 1024
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.max", "500000\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.current", "450000\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.stat", "anon 7\ninactive_file 30000\n")
    write(tmp_path, "sys/fs/cgroup/a/b/memory.max", "max\n")
    assert free_memory_bytes(str(tmp_path)) == 80_000


def test_memory_that_is_left_in_the_first_version(tmp_path: Path) -> None:
    """The same in control groups of version 1."""
    write(tmp_path, "proc/self/cgroup", "4:memory:/x\n")
    write(tmp_path, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1000\n")
    write(tmp_path, "sys/fs/cgroup/memory/x/memory.usage_in_bytes", "1200\n")
    assert free_memory_bytes(str(tmp_path)) == 0
