"""What killed jobs have left on this host: files in shared memory, and folders of Open MPI's launchers."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from taskfarm.doctor.findings import Finding, Level
from taskfarm.runtime.launching.session_folders import NAME
from taskfarm.units import format_bytes

__all__ = ["check_left_over", "remove_left_over", "session_folders_left_over", "shared_memory_left_over"]

PROC = Path("/proc")
# What MPICH, Open MPI, libfabric, UCX and taskfarm put into shared memory.
SEGMENTS = ("mpich_shm_*", "sm_segment.*", "vader_segment.*", "psm2_shm.*", "ucx_shm_posix_*", "taskfarm-*")
MIN_AGE_S = 60.0  # a job that starts makes its file before it maps it
_CLEAN = "`taskfarm doctor --clean` removes what is yours"


def check_left_over(shared_memory: Path, session_base: Path, proc: Path = PROC) -> Iterator[Finding]:
    """Yield a warning for each kind of thing that was left."""
    segments = shared_memory_left_over(shared_memory, proc)
    if segments:
        text = f"killed jobs have left {_amount(segments)} in {shared_memory}, which no process uses"
        yield Finding(Level.WARNING, "shared memory", text, _CLEAN)
    folders = session_folders_left_over(session_base, proc)
    if folders:
        text = (
            f"killed launchers of Open MPI have left {_number(folders, 'folder')} in {session_base}, named after their "
            "process ids; an mpiexec that gets one of these ids does not start (status 213, `listener thread failed`)"
        )
        yield Finding(Level.WARNING, "launcher", text, _CLEAN)


def remove_left_over(shared_memory: Path, session_base: Path, proc: Path = PROC) -> Iterator[Finding]:
    """Remove what killed jobs have left, and yield what it was."""
    segments = shared_memory_left_over(shared_memory, proc)
    if segments:
        text = f"removed {_amount(segments)} from {shared_memory}, which killed jobs had left"
        for path in segments:
            path.unlink(missing_ok=True)
        yield Finding(Level.OK, "shared memory", text)
    folders = session_folders_left_over(session_base, proc)
    if folders:
        for path in folders:
            shutil.rmtree(path, ignore_errors=True)
        text = f"removed {_number(folders, 'folder')} from {session_base}, which killed launchers had left"
        yield Finding(Level.OK, "launcher", text)


def shared_memory_left_over(folder: Path, proc: Path) -> list[Path]:
    """Return the files of MPI libraries in `folder` that are this user's, and that no process has mapped."""
    found = [path for pattern in SEGMENTS for path in folder.glob(pattern) if _is_old_and_ours(path)]
    if not found:
        return []
    mapped: set[str] = set()
    for maps in proc.glob("[0-9]*/maps"):
        try:
            lines = maps.read_text(errors="replace").splitlines()
        except OSError:  # another user's, or gone
            continue
        mapped |= {line.split()[5] for line in lines if str(folder) in line}
    return sorted(path for path in found if str(path) not in mapped)


def session_folders_left_over(base: Path, proc: Path) -> list[Path]:
    """Return the folders of launchers in `base` that are this user's, and whose process is gone."""
    found: list[Path] = []
    for entry in os.scandir(base) if base.is_dir() else ():
        match = NAME.fullmatch(entry.name)
        if match and not (proc / match[1]).exists() and entry.is_dir(follow_symlinks=False):
            found.append(Path(entry.path))
    return sorted(filter(_is_old_and_ours, found))


def _is_old_and_ours(path: Path) -> bool:
    try:
        about = path.stat()
    except OSError:  # gone meanwhile
        return False
    return about.st_uid == os.geteuid() and time.time() - about.st_mtime > MIN_AGE_S


def _amount(paths: Sequence[Path]) -> str:
    return f"{_number(paths, 'file')} of {format_bytes(sum(path.stat().st_size for path in paths))}"


def _number(paths: Sequence[Path], what: str) -> str:
    return f"{len(paths)} {what}{'s' if len(paths) > 1 else ''}"
