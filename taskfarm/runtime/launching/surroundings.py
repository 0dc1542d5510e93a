"""What a process can tell of its job and its machine before MPI starts: cores, the size that a launcher promised."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = [
    "OUTPOST_VARIABLE",
    "default_ranks",
    "expected_world_size",
    "explain_mismatch",
    "free_memory_bytes",
    "in_slurm_step",
    "leave_explaining_to_rank_0",
    "promised_rank",
    "slurm_cores",
    "usable_cores",
]

# Where the launching process of a job with supervisors listens: host:port:secret. Set for the ranks, nothing for users.
OUTPOST_VARIABLE = "TASKFARM_WATCHDOG"

# Slurm numbers the batch, external and interactive "steps" downwards from 2**32 - 1 (slurm.h).
_FIRST_SPECIAL_STEP = 0xFFFFFFF0

_EXPLAINING_S = 3.0  # ranks start within tenths of a second of each other, on a busy machine within a second or two


def usable_cores(affinity: int | None = None, root: str = "/") -> int:
    """Return how many cores this process may keep busy, at least 1.

    Parameters
    ----------
    affinity : int, optional
        Size of the CPU set; by default that of this process.
    root : str, optional
        Where ``proc/self/cgroup`` and ``sys/fs/cgroup`` are looked for.

    Notes
    -----
    The smaller of the CPU set and the quota of every enclosing control group (both versions), rounded down.
    """
    if affinity is None:
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(int(quota) for quota in _cgroup_quotas(Path(root)))]))


def default_ranks(environ: Mapping[str, str], cores: int) -> int:
    """Return the number of ranks to start where none was asked for, at least 2.

    One per usable core and one for rank 0, which sleeps while it waits; in a Slurm job its number of tasks.
    """
    if "SLURM_JOB_ID" in environ:
        promised = _number(environ, "SLURM_NTASKS")
        if promised is not None:
            return max(2, promised)
    return max(2, cores + 1)


def expected_world_size(environ: Mapping[str, str]) -> int | None:
    """Return how many ranks the launcher of this process says it started; None if no launcher is seen.

    Notes
    -----
    ``PMI_SIZE`` (MPICH, Intel, ``srun --mpi=pmi2``), ``OMPI_COMM_WORLD_SIZE`` (Open MPI), and Slurm's own count inside
    a step of several tasks (``srun --mpi=pmix`` sets nothing else). A shell under ``srun --pty`` is no rank.
    """
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        size = _number(environ, name)
        if size is not None and not (size == 1 and "SLURM_PTY_PORT" in environ):
            return size
    if in_slurm_step(environ) and _number(environ, "SLURM_PROCID") is not None:
        size = _number(environ, "SLURM_STEP_NUM_TASKS") or _number(environ, "SLURM_NTASKS")
        if size is not None and size > 1:
            return size
    return None


def promised_rank(environ: Mapping[str, str]) -> int:
    """Return the rank that the launcher gave this process, 0 if none is seen; only fit for choosing who prints."""
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"):
        rank = _number(environ, name)
        if rank is not None:
            return rank
    return 0


def leave_explaining_to_rank_0(environ: Mapping[str, str], status: int) -> None:
    """Return on rank 0, which explains why this job cannot run; end all other ranks with `status`, quietly.

    They end late: many a launcher ends the job with the first rank that fails, before others have said a word (Open
    MPI 5.0.11: 3 of 12 jobs). Rank 0's end ends them sooner.
    """
    if promised_rank(environ) != 0:
        time.sleep(_EXPLAINING_S)
        raise SystemExit(status)


def in_slurm_step(environ: Mapping[str, str]) -> bool:
    """Tell whether this process runs inside an ordinary step of a Slurm job, not just in its batch script."""
    step = _number(environ, "SLURM_STEP_ID")
    return "SLURM_JOB_ID" in environ and step is not None and step < _FIRST_SPECIAL_STEP


def slurm_cores(environ: Mapping[str, str]) -> int | None:
    """Return the CPUs of the whole Slurm allocation: ``SLURM_JOB_CPUS_PER_NODE=16(x2),8`` is 40; None if not said."""
    total = 0
    for part in environ.get("SLURM_JOB_CPUS_PER_NODE", "").split(","):
        cores, _, repeat = part.rstrip(")").partition("(x")
        if not cores.isdigit() or not (repeat or "1").isdigit():
            return None
        total += int(cores) * int(repeat or "1")
    return total


def explain_mismatch(expected: int | None, actual: int, library: str) -> str | None:
    """Return the explanation of N worlds of one rank, or None if the world is as large as the launcher said.

    Parameters
    ----------
    expected : int or None
        What `expected_world_size` returned.
    actual : int
        Size of ``COMM_WORLD``.
    library : str
        The MPI library that is loaded, for the reader: its version text or name, of which the beginning is used.
    """
    if expected is None or expected <= 1 or actual != 1:
        return None
    name = (library.strip("\0 \n").splitlines() or ["unknown"])[0].partition(",")[0].strip()
    return (
        f"a launcher started {expected} ranks, but MPI made {expected} separate worlds of one rank: the launcher "
        f"belongs to another MPI than the library that mpi4py loads ({name}). Start the job with "
        f"`taskfarm run -n {expected} ...`, which picks the launcher that fits, or use that library's own mpiexec "
        "(`taskfarm info` shows it; under srun, --mpi=pmi2 for MPICH and Intel MPI, --mpi=pmix for Open MPI)."
    )


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


def free_memory_bytes(root: str | os.PathLike[str] = "/") -> int | None:
    """Return how much memory this process can still take before its host, or a control group, has none left.

    Parameters
    ----------
    root : path
        Where ``proc`` and ``sys/fs/cgroup`` are looked for.

    Returns
    -------
    int or None
        Bytes; None where the system does not say.
    """
    base = Path(root)
    found = [number << 10 for name, number in _table(base / "proc/meminfo") if name == "MemAvailable:"]
    for folder, limit, used, cache in _memory_groups(base):
        size, taken = _first_line(folder / limit), _first_line(folder / used)
        if size.isdigit() and taken.isdigit():
            given_back = sum(number for name, number in _table(folder / "memory.stat") if name == cache)
            found.append(max(0, int(size) - int(taken) + given_back))
    return min(found, default=None)


def _memory_groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Yield folder and names of files of every control group that encloses this process; names of limit, use, cache."""
    for number, controllers, path in _cgroups(root):
        if number == "0" and not controllers:
            for folder in _upwards(root / "sys/fs/cgroup", path):
                yield folder, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            for folder in _upwards(root / "sys/fs/cgroup/memory", path):
                yield folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def _table(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the names and numbers at the beginning of the lines of a file; nothing if there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[1].isdigit():
            yield words[0], int(words[1])


def _cgroup_quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota, in cores, of every control group that encloses this process and has one."""
    for number, controllers, path in _cgroups(root):
        if number == "0" and not controllers:
            for folder in _upwards(root / "sys/fs/cgroup", path):
                quota, _, period = _first_line(folder / "cpu.max").partition(" ")
                yield from _ratio(quota, period)
        elif "cpu" in controllers.split(","):
            for folder in _upwards(root / "sys/fs/cgroup" / "cpu", path):
                yield from _ratio(_first_line(folder / "cpu.cfs_quota_us"), _first_line(folder / "cpu.cfs_period_us"))


def _cgroups(root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield number, controllers and path of the control groups that this process is in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        yield number, controllers, path


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield the folder of the group `path` and those of its parents up to the mount point."""
    parts = [part for part in path.split("/") if part and part != ".."]
    for n_parts in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:n_parts])


def _first_line(path: Path) -> str:
    try:
        return path.read_text().partition("\n")[0]
    except OSError:
        return ""


def _ratio(quota: str, period: str) -> Iterator[float]:
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        yield int(quota) / int(period)
