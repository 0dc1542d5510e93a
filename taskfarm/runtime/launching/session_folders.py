"""The folders that Open MPI's launchers keep for their jobs in the temporary directory, named after their process id.

A launcher that is killed leaves its folder. A later one that happens to get the same id finds its files there, and ends
with status 213: "The PMIx server's listener thread failed to start". With Open MPI 5.0.11 that was 1 of 150 launches on
a machine with 65 such folders, whose process ids begin anew at 32768.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

__all__ = ["NAME", "free_own_folder", "session_base"]

NAME = re.compile(r"(?:ompi|prte|prted)\.(\d+)")  # with the id; the last one: of a daemon on another host


def session_base(environ: Mapping[str, str]) -> Path:
    """Return where the folders lie: PRRTE looks at these variables, in this order."""
    names = ("PRTE_MCA_prte_tmpdir_base", "TMPDIR", "TEMP", "TMP")
    return Path(next(filter(None, map(environ.get, names)), "/tmp"))


def free_own_folder(environ: Mapping[str, str]) -> None:
    """Remove what a launcher has left that had the id of this process, which is about to become one.

    Nobody else can have it who is alive, and Open MPI's launcher itself removes it, too, but then gives up.
    """
    folder = session_base(environ) / f"ompi.{os.getpid()}"
    try:
        is_ours = folder.lstat().st_uid == os.geteuid()
    except OSError:  # not there, as usual
        return
    if is_ours and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
