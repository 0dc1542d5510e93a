"""Each check of ``taskfarm doctor`` is broken once, and says what to do; healthy facts give no alarm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from taskfarm.doctor import left_over, local
from taskfarm.doctor.findings import Finding, Level, format_finding, verdict
from taskfarm.doctor.job import run_job
from taskfarm.doctor.ranks import check_clocks, check_links, check_thread_level, check_versions
from taskfarm.runtime.launching.launch import LaunchPlan
from taskfarm.runtime.launching.launchers import Launcher, Situation
from taskfarm.runtime.launching.libmpi import Family, MpiLibrary, SearchPaths

OPEN_MPI = Launcher(("/opt/bin/mpiexec",), Family.OPENMPI, (5, 0), "beside the library")
SRUN = Launcher(("/usr/bin/srun", "--mpi=pmix"), Family.UNKNOWN, (), "Slurm job")
LIBRARY = MpiLibrary(Family.OPENMPI, "/opt/lib/libmpi.so.40", "MPI4PY_LIBMPI")


def situation(
    tmp_path: Path, environ: Mapping[str, str] | None = None, cores: int = 4, is_root: bool = False, said: str = ""
) -> Situation:
    """Return a machine with mpi4py and the library of Open MPI in `tmp_path`."""
    (tmp_path / "lib").mkdir(exist_ok=True)
    (tmp_path / "lib" / "libmpi.so.40").write_bytes(b"\x7fELF....MPI_Get_version....ompi_mpi_comm_self")
    (tmp_path / "mpi4py").mkdir(exist_ok=True)
    (tmp_path / "mpi4py" / "MPI.openmpi.so").write_bytes(b"")
    paths = SearchPaths(str(tmp_path / "bin" / "python"), (str(tmp_path),), str(tmp_path / "mpi4py"))
    return Situation({"PATH": "", **(environ or {})}, paths, cores, is_root, str(tmp_path), lambda _: (0, said))


def is_alarm(finding: Finding, level: Level, *parts: str) -> bool:
    """Tell whether a finding is as bad as that, names what is wrong, and says what to do."""
    return finding.level is level and all(part in finding.text + finding.fix for part in parts) and bool(finding.fix)


def test_verdict_and_status() -> None:
    """Warnings do not keep anybody from running; errors do."""
    fine, warning, error = (Finding(level, "x", "y", "z") for level in Level)
    assert verdict([fine, fine]) == (0, "Fit to run.")
    assert verdict([fine, warning, warning]) == (0, "Fit to run, with 2 warnings.")
    assert verdict([error, warning]) == (1, "Not fit to run: 1 error, 1 warning.")


def test_findings_fit_a_terminal() -> None:
    text = format_finding(Finding(Level.WARNING, "network", "slow " * 40, "pull " * 40))
    assert text.startswith("warning  network         slow")
    assert "\n" + " " * 25 + "do: pull" in text
    assert max(map(len, text.splitlines())) <= 118


def test_library(tmp_path: Path) -> None:
    """mpi4py is missing; it finds no library; it finds two."""
    library, finding = local.check_library(situation(tmp_path))
    assert library is not None
    assert finding.level is Level.OK
    assert "Open MPI" in finding.text
    here = situation(tmp_path)
    without = Situation(here.environ, SearchPaths(sys.executable, (), None), 4, False, "", here.run)
    library, finding = local.check_library(without)
    assert library is None
    assert is_alarm(finding, Level.ERROR, "mpi4py is not installed", "pip install")
    (tmp_path / "lib" / "libmpi.so.12").write_bytes(b"\x7fELF....MPI_Get_version....MPICH Version")
    _, finding = local.check_library(situation(tmp_path))
    assert is_alarm(finding, Level.WARNING, "two MPIs", "uninstall")


def test_launcher(tmp_path: Path) -> None:
    """None is there; it belongs to another MPI; a launcher has started us."""
    launcher, finding = local.check_launcher(LIBRARY, None, situation(tmp_path))
    assert launcher is None
    assert is_alarm(finding, Level.ERROR, "needs a launcher")
    mpiexec = tmp_path / "mpiexec"
    mpiexec.write_text("#!/bin/sh\n")
    mpiexec.chmod(0o755)
    _, finding = local.check_launcher(LIBRARY, str(mpiexec), situation(tmp_path, said="HYDRA build 5.0"))
    assert is_alarm(finding, Level.ERROR, "belongs to MPICH", "separate worlds of one rank")
    _, finding = local.check_launcher(LIBRARY, str(mpiexec), situation(tmp_path, said="mine 1.0"))
    assert is_alarm(finding, Level.WARNING, "does not say")
    launcher, finding = local.check_launcher(
        LIBRARY, str(mpiexec), situation(tmp_path, said="mpiexec (Open MPI) 5.0.1")
    )
    assert launcher is not None
    assert finding.level is Level.OK
    _, finding = local.check_launcher(LIBRARY, None, situation(tmp_path, {"OMPI_COMM_WORLD_SIZE": "4"}))
    assert is_alarm(finding, Level.ERROR, "one of 4", "by itself")


def test_root_and_room(tmp_path: Path) -> None:
    """More ranks than the batch job has CPUs; what `run` takes care of is no alarm."""
    assert local.check_root_and_room(OPEN_MPI, 2, situation(tmp_path)).text == "2 ranks for 4 usable cores"
    finding = local.check_root_and_room(OPEN_MPI, 8, situation(tmp_path, is_root=True))
    assert finding.level is Level.OK
    assert "root; Open MPI refuses that, unless told; `taskfarm run` tells it" in finding.text
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_CPUS_PER_NODE": "2(x2)"}
    assert is_alarm(local.check_root_and_room(SRUN, 8, situation(tmp_path, job)), Level.WARNING, "4 CPUs for 8 ranks")


def test_room_in_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers may have little of it, or none at all."""
    for free_mb, level in ((1024, Level.OK), (16, Level.WARNING), (1, Level.ERROR)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free_mb << 20: SimpleNamespace(free=free))
        finding = local.check_shared_memory(tmp_path, 2)
        assert finding.level is level
        assert level is Level.OK or is_alarm(finding, level, f"{free_mb} MB free", "32 MB", "shm-size")
    finding = local.check_shared_memory(tmp_path / "nowhere", 2)
    assert is_alarm(finding, Level.WARNING, "there is no", "tmpfs")


def test_segments_that_killed_jobs_left(tmp_path: Path) -> None:
    """Old files of MPI libraries that nobody maps, and no others."""
    shm, proc = tmp_path / "shm", tmp_path / "proc"
    (proc / "17").mkdir(parents=True)
    shm.mkdir()
    for name in ("mpich_shm_dead", "sm_segment.alive", "sm_segment.young", "database"):
        (shm / name).write_bytes(b"x" * 10)
        if "young" not in name:
            os.utime(shm / name, (1.0, 1.0))
    (proc / "17" / "maps").write_text(f"7f00-7f01 rw-s 0 00:17 5 {shm}/sm_segment.alive\n7f02-7f03 rw-p 0 00:00 0\n")
    assert left_over.shared_memory_left_over(shm, proc) == [shm / "mpich_shm_dead"]
    nowhere = tmp_path / "nowhere"
    (finding,) = left_over.check_left_over(shm, nowhere, proc)
    assert is_alarm(finding, Level.WARNING, "left 1 file of", "taskfarm doctor --clean")
    (removed,) = left_over.remove_left_over(shm, nowhere, proc)
    assert removed.text.startswith("removed 1 file of 10 B")
    assert sorted(path.name for path in shm.iterdir()) == ["database", "sm_segment.alive", "sm_segment.young"]
    assert list(left_over.remove_left_over(shm, nowhere, proc)) == []
    assert list(left_over.check_left_over(shm, nowhere, proc)) == []


def test_folders_that_killed_launchers_left(tmp_path: Path) -> None:
    """Old ones whose process is gone; not those of users (ompi.HOST.UID), nor links and files."""
    base, proc = tmp_path / "base", tmp_path / "proc"
    (proc / "17").mkdir(parents=True)
    for name in ("ompi.16", "ompi.17", "prted.18", "ompi.19", "ompi.host.0", "other.16"):
        (base / name / "0").mkdir(parents=True)
    (base / "prte.20").write_bytes(b"")
    (base / "prte.21").symlink_to(base / "other.16")
    for path in base.iterdir():
        if path.name != "ompi.19":
            os.utime(path, (1.0, 1.0), follow_symlinks=False)
    assert left_over.session_folders_left_over(base, proc) == [base / "ompi.16", base / "prted.18"]
    (finding,) = left_over.check_left_over(tmp_path / "nowhere", base, proc)
    assert is_alarm(finding, Level.WARNING, "2 folders", "status 213", "taskfarm doctor --clean")
    (removed,) = left_over.remove_left_over(tmp_path / "nowhere", base, proc)
    assert removed.text.startswith("removed 2 folders from")
    left = {"ompi.17", "ompi.19", "ompi.host.0", "other.16", "prte.20", "prte.21"}
    assert {path.name for path in base.iterdir()} == left
    assert list(left_over.check_left_over(tmp_path / "nowhere", base, proc)) == []


@pytest.mark.parametrize(
    ("environ", "n_ranks", "level"),
    [
        ({}, 4, Level.OK),
        ({"TASKFARM_BLAS_THREADS": "0"}, 4, Level.WARNING),
        ({"TASKFARM_BLAS_THREADS": "0"}, 1, Level.OK),
        ({"OMP_NUM_THREADS": "1"}, 8, Level.OK),
        ({"OMP_NUM_THREADS": "2"}, 3, Level.OK),
        ({"OMP_NUM_THREADS": "4"}, 4, Level.WARNING),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "16"}, 4, Level.WARNING),
    ],
)
def test_threads_of_numerical_libraries(environ: dict[str, str], n_ranks: int, level: Level) -> None:
    """Threads times ranks should not be more than cores."""
    finding = local.check_threads(environ, n_ranks, 4)
    assert finding.level is level
    assert level is Level.OK or is_alarm(finding, level, "export OMP_NUM_THREADS=1", "ranks")


def test_batch_systems(tmp_path: Path) -> None:
    """An allocation whose host file is gone; Slurm without a fitting srun."""
    gone = {"PBS_JOBID": "3.pbs", "PBS_NODEFILE": str(tmp_path / "gone")}
    assert is_alarm(local.check_batch_system(situation(tmp_path, gone), OPEN_MPI), Level.ERROR, "PBS_NODEFILE", "gone")
    slurm = situation(tmp_path, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "64"})
    assert is_alarm(local.check_batch_system(slurm, OPEN_MPI), Level.WARNING, "no plug-in", "PMIx")
    fine = local.check_batch_system(slurm, SRUN)
    assert (fine.level, fine.text) == (Level.OK, "Slurm job 7, 64 tasks; ranks are started by srun")
    assert local.check_batch_system(situation(tmp_path, {"LSB_JOBID": "9"}), OPEN_MPI).text == "LSF job 9"
    assert local.check_batch_system(situation(tmp_path), OPEN_MPI).level is Level.OK


# What ranks report


def reports(**of_rank_1: Any) -> list[dict[str, Any]]:
    """Return two healthy ranks on two hosts, the second one with changes."""
    link = {"latency_s": 2e-6, "bytes_per_s": 10e9, "clock_offset_s": 0.001, "clock_error_s": 1e-6}
    common = {
        "python": "3.11.7", "executable": "/v/bin/python", "packages": {"numpy": "2.1.0"}, "thread_level": "MULTIPLE",
        "n_cores": 4, "fabrics": ["mlx5_0"],
    }  # fmt: skip
    first = {"rank": 0, "host": "alpha", "link": None, **common}
    return [first, {"rank": 1, "host": "beta", **common, "link": {**link, **of_rank_1.pop("link", {})}, **of_rank_1}]


def test_healthy_ranks_give_no_alarm() -> None:
    ranks = reports()
    findings = [check_versions(ranks), check_thread_level(ranks), check_clocks(ranks), *check_links(ranks)]
    assert {finding.level for finding in findings} == {Level.OK}
    assert "rank 0 to rank 1 on beta: 2 us, 10 GB/s" in findings[-1].text


def test_versions() -> None:
    """Another Python cannot run functions that travel by value; another numpy is a warning."""
    finding = check_versions(reports(python="3.12.1"))
    assert is_alarm(finding, Level.ERROR, "rank 1 on beta", "3.12.1", "same environment")
    assert is_alarm(check_versions(reports(python="3.11.9")), Level.WARNING, "Python 3.11.9")
    assert is_alarm(check_versions(reports(packages={"numpy": "1.26.4"})), Level.WARNING, "numpy 1.26.4", "beta")


def test_thread_level() -> None:
    assert is_alarm(check_thread_level(reports(thread_level="SINGLE")), Level.WARNING, "SINGLE", "SERIALIZED")


def test_clocks() -> None:
    finding = check_clocks(reports(link={"clock_offset_s": -90.0}))
    assert is_alarm(finding, Level.WARNING, "beta is 90.0 s behind that of alpha", "NTP")


def test_links() -> None:
    """TCP on a host with InfiniBand; a slow network; a slow host."""
    (finding,) = check_links(reports(link={"latency_s": 40e-6, "bytes_per_s": 1.2e9}))
    assert is_alarm(finding, Level.WARNING, "mlx5_0", "TCP")
    assert [f.level for f in check_links(reports(link={"latency_s": 40e-6, "bytes_per_s": 0.1e9}, fabrics=[]))] == [0]
    (finding,) = check_links(reports(link={"bytes_per_s": 0.01e9}, fabrics=[]))
    assert is_alarm(finding, Level.WARNING, "10 MB/s", "interface")
    (finding,) = check_links(reports(link={"latency_s": 2e-3}, host="alpha"))
    assert is_alarm(finding, Level.WARNING, "2 ms", "this host")


# The job


def plan_of(*command: str, n_ranks: int = 2) -> LaunchPlan:
    return LaunchPlan(command, {}, n_ranks, OPEN_MPI, LIBRARY, True)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("/no/such/launcher",), ["status 127", "No such file"]),
        (("sh", "-c", "echo no route; exit 3"), ["status 3", "it said: no route", "-n 2 --mpiexec 'mpirun -f x' -v"]),
        (("sh", "-c", "echo ===; echo cause; seq 9; exit 3"), ["it said: cause | 1 | 2 | ... | 8 | 9"]),
        (("sh", "-c", 'echo "[{}]" > "$0"'), ["started 2 processes", "worlds of 1 rank", "MPI4PY_LIBMPI"]),
    ],
)
def test_jobs_that_fail(words: Sequence[str], parts: list[str]) -> None:
    """What the launcher said is shown."""
    found, finding = run_job(plan_of(*words), 20.0, "mpirun -f x")
    assert found == []
    assert is_alarm(finding, Level.ERROR, *parts)


def test_a_job_that_hangs_is_ended() -> None:
    """With everything that it has started."""
    found, finding = run_job(plan_of("sh", "-c", "sleep 1234.25 & echo waiting for host b; wait"), 0.3)
    assert found == []
    assert is_alarm(finding, Level.ERROR, "did not end within 0.3 s", "waiting for host b", "firewall")
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "sleep 1234.25" not in left
