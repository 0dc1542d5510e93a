"""Checks of this process's environment and host; nothing is started but commands that tell their version."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from taskfarm.doctor.findings import Finding, Level
from taskfarm.errors import UsageError
from taskfarm.runtime.launching.blas import SWITCH, VARIABLES
from taskfarm.runtime.launching.launchers import Launcher, Situation, choose_launcher
from taskfarm.runtime.launching.libmpi import Family, MpiLibrary, mpi_library
from taskfarm.runtime.launching.surroundings import expected_world_size, slurm_cores

__all__ = [
    "check_batch_system",
    "check_launcher",
    "check_library",
    "check_root_and_room",
    "check_shared_memory",
    "check_threads",
]

MIN_SHARED_BYTES = 16 << 20  # per rank, with room to spare: MPICH 5.0.2 takes 5 MB, Open MPI 5.0.11 less than 1 MB
_HOST_FILES = ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "PE_HOSTFILE")


def check_library(situation: Situation) -> tuple[MpiLibrary | None, Finding]:
    """Find the library that mpi4py loads."""
    try:
        library = mpi_library(situation.paths, situation.environ, situation.run)
    except UsageError as exc:
        return None, Finding(
            Level.ERROR,
            "MPI library",
            str(exc),
            f"install one in this environment: {shlex.quote(situation.paths.python)} -m pip install mpi4py mpich",
        )
    if not library.alone:
        return library, Finding(
            Level.WARNING,
            "MPI library",
            f"mpi4py loads {library.describe()}, but its folder holds the libraries of two MPIs",
            "uninstall one of the two wheels, and reinstall the other: python -m pip install --force-reinstall mpich",
        )
    return library, Finding(Level.OK, "MPI library", f"mpi4py {_version('mpi4py')} loads {library.describe()}")


def check_launcher(library: MpiLibrary, mpiexec: str | None, situation: Situation) -> tuple[Launcher | None, Finding]:
    """Find the launcher that fits the library."""
    size = expected_world_size(situation.environ)
    if size is not None:
        return None, Finding(
            Level.ERROR,
            "launcher",
            f"this process is one of {size} that a launcher has started",
            "call `taskfarm doctor` by itself: it starts a job of its own",
        )
    try:
        launcher = choose_launcher(library, mpiexec, situation)
    except UsageError as exc:
        return None, Finding(
            Level.ERROR,
            "launcher",
            str(exc),
            "leave --mpiexec out, load the module of the MPI that mpi4py loads, or install its wheel",
        )
    text = launcher.describe()
    if launcher.family is Family.UNKNOWN and not launcher.is_srun:
        return launcher, Finding(
            Level.WARNING, "launcher", f"{text}: it does not say to which MPI it belongs", "look at the job below"
        )
    return launcher, Finding(Level.OK, "launcher", text)


def check_root_and_room(launcher: Launcher, n_ranks: int, situation: Situation) -> Finding:
    """Look at what Open MPI refuses: root, and more ranks than cores."""
    check = "root, room"
    crowded = n_ranks > situation.cores and not launcher.is_srun
    text = f"{n_ranks} ranks for {situation.cores} usable cores{', as root' if situation.is_root else ''}"
    if launcher.family is Family.OPENMPI and (crowded or situation.is_root):
        text += "; Open MPI refuses that, unless told; `taskfarm run` tells it"
    slots = slurm_cores(situation.environ)
    if slots is not None and n_ranks > slots:
        return Finding(
            Level.WARNING,
            check,
            f"{text}; the Slurm job has {slots} CPUs for {n_ranks} ranks, which take turns",
            "ask for more: sbatch --ntasks",
        )
    return Finding(Level.OK, check, text)


def check_shared_memory(folder: Path, n_ranks: int) -> Finding:
    """Look at the room in shared memory."""
    check = "shared memory"
    if not folder.is_dir():
        return Finding(
            Level.WARNING, check, f"there is no {folder}: ranks of one host talk slowly", "mount a tmpfs there"
        )
    free = shutil.disk_usage(folder).free
    needed = MIN_SHARED_BYTES * n_ranks
    if free < needed:
        return Finding(
            Level.ERROR if free < needed // 8 else Level.WARNING,
            check,
            f"{folder} has {free >> 20} MB free; {n_ranks} ranks may need {needed >> 20} MB, and crash where there is "
            "less (SIGBUS)",
            "make it larger: docker run --shm-size=1g, mount -o remount,size=1g /dev/shm",
        )
    return Finding(Level.OK, check, f"{folder} has {free >> 20} MB free")


def check_threads(environ: Mapping[str, str], n_ranks: int, cores: int) -> Finding:
    """Compare the threads of numerical libraries with the cores."""
    check = "threads"
    given = {name: environ[name] for name in VARIABLES if environ.get(name, "").isdigit()}
    most = max(map(int, given.values()), default=0)
    text = ", ".join(f"{name}={value}" for name, value in given.items())
    if most > 1 and most * (n_ranks - 1 or 1) > cores:
        return Finding(
            Level.WARNING,
            check,
            f"{text}: {n_ranks} ranks with {most} threads each share {cores} cores",
            f"export OMP_NUM_THREADS={max(1, cores // n_ranks)}, or unset it: `taskfarm run` gives each rank its share",
        )
    if not given and environ.get(SWITCH) == "0" and n_ranks > 1:
        return Finding(
            Level.WARNING,
            check,
            f"numpy's linear algebra starts {cores} threads in each of {n_ranks} ranks: {SWITCH}=0 leaves it alone",
            "export OMP_NUM_THREADS=1",
        )
    return Finding(Level.OK, check, text or "`taskfarm run` gives each rank of a host its share of the cores")


def check_batch_system(situation: Situation, launcher: Launcher) -> Finding:
    """Look at the job of the batch system that this process is in."""
    check, environ = "batch system", situation.environ
    for name in _HOST_FILES:
        path = environ.get(name)
        if path and not os.path.exists(path):
            return Finding(
                Level.ERROR,
                check,
                f"{name}={path}, but there is no such file: the launcher cannot learn its hosts",
                "call this inside the job, on its first host; a shell may have kept variables of an old job",
            )
    if "SLURM_JOB_ID" in environ:
        text = f"Slurm job {environ['SLURM_JOB_ID']}, {environ.get('SLURM_NTASKS', '?')} tasks"
        if not launcher.is_srun:
            return Finding(
                Level.WARNING,
                check,
                f"{text}, but srun is not there or has no plug-in for this MPI; {launcher.command[0]} is used",
                "ask for Slurm with PMIx (Open MPI) or PMI-2 (MPICH); see docs/hpc.md",
            )
        return Finding(Level.OK, check, f"{text}; ranks are started by srun")
    for name, system in (
        ("PBS_JOBID", "PBS"),
        ("LSB_JOBID", "LSF"),
        ("FLUX_JOB_ID", "Flux"),
        ("JOB_ID", "Grid Engine"),
    ):
        if name in environ:
            return Finding(Level.OK, check, f"{system} job {environ[name]}")
    return Finding(Level.OK, check, "none: jobs run on this host, or on those that you name to the launcher")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(version unknown)"
