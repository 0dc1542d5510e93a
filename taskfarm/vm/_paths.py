"""Where the storages of the virtual machine are, and what a path in them is called on other hosts.

*Mirrored storage* is seen by all hosts, perhaps mounted at different places: a path in it travels as an abstract pair,
the index of the mount point and the path below it. *Local storage* belongs to one host; tasks have their folders there.

The environment is read whenever a function is called, never at import. Paths that are returned are absolute and
canonical (``~`` expanded, symbolic links followed).
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import tempfile
from typing import TypeAlias

from taskfarm.errors import UsageError

__all__ = [
    "LOCAL_VARIABLE",
    "MIRRORED_VARIABLE",
    "USER_PREFIX",
    "AnyPath",
    "is_within",
    "join_mirrored",
    "local_storage",
    "mirrored_storages",
    "path_inside",
    "split_mirrored",
    "user_folder",
]

AnyPath: TypeAlias = str | os.PathLike[str]

LOCAL_VARIABLE = "PARALLEL_LOCAL_STORAGE"
MIRRORED_VARIABLE = "PARALLEL_MIRRORED_STORAGE"
USER_PREFIX = "taskfarm-"  # of the one folder that a user has in local storage


def local_storage() -> str:
    """Return the folder of this host that holds local storage: ``PARALLEL_LOCAL_STORAGE`` or the temporary one."""
    return _canonical(os.environ.get(LOCAL_VARIABLE) or tempfile.gettempdir())


def mirrored_storages() -> list[str]:
    """Return the mount points of mirrored storage on this host: ``PARALLEL_MIRRORED_STORAGE`` or the home directory.

    Returns
    -------
    list of str
        In the order of the variable, which must be the same on all hosts. An entry left empty (storage that this host
        does not mount) stays as ``""``, so that the indices of the others hold.
    """
    entries = os.environ.get(MIRRORED_VARIABLE, "").split(os.pathsep)
    if not any(entries):
        entries = ["~"]
    return [entry and _canonical(entry) for entry in entries]


def user_folder() -> str:
    """Return the folder in local storage that holds everything of this user; it need not exist."""
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # no such variable, and no entry in the user database
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return os.path.join(local_storage(), USER_PREFIX + re.sub(r"[/\\:\0]", "_", user))


def split_mirrored(path: AnyPath) -> tuple[int, str]:
    """Return the abstract form of `path`: the index of the mirrored storage it lies in, and the path below that.

    Parameters
    ----------
    path : path
        Relative ones start at the working directory, ``~`` is expanded, symbolic links are followed. It need not exist.

    Returns
    -------
    index : int
        Index into `mirrored_storages`; with nested storages that of the innermost.
    suffix : str
        Relative path, ``"."`` for the storage itself.

    Raises
    ------
    UsageError
        If the path is in no mirrored storage.
    """
    actual = _canonical(path)
    storages = mirrored_storages()
    holding = [index for index, storage in enumerate(storages) if storage and is_within(actual, storage)]
    if not holding:
        raise UsageError(
            f"{os.fspath(path)!r} ({actual}) is not in mirrored storage ({os.pathsep.join(storages)}); "
            f"move it there, or name the file system that all hosts share in {MIRRORED_VARIABLE}"
        )
    index = max(holding, key=lambda i: len(storages[i]))
    return index, os.path.relpath(actual, storages[index])


def join_mirrored(index: int, suffix: str) -> str:
    """Return the path on this host of the abstract path (`index`, `suffix`).

    Raises
    ------
    UsageError
        If this host has no mirrored storage of that index.
    """
    storages = mirrored_storages()
    if not 0 <= index < len(storages) or not storages[index]:
        raise UsageError(
            f"host {socket.gethostname()} has no mirrored storage number {index}, wanted for {suffix!r}: its list is "
            f"{os.pathsep.join(storages)!r}; set {MIRRORED_VARIABLE} on all hosts, with the entries in the same order"
        )
    return os.path.normpath(os.path.join(storages[index], suffix))


def path_inside(path: AnyPath, option: str) -> str:
    """Return `path` normalised; if it would leave the folder it is relative to, raise `UsageError` naming `option`."""
    relative = os.path.normpath(path)
    if os.path.isabs(relative) or relative.split(os.sep, 1)[0] == os.pardir:
        raise UsageError(
            f"{option} {os.fspath(path)!r} must be relative to the local storage folder and stay inside it"
        )
    return relative


def _canonical(path: AnyPath) -> str:
    return os.path.realpath(os.path.expanduser(path))


def is_within(path: str, folder: str) -> bool:
    """Return True if the canonical `path` is the canonical `folder` or lies in it, by whole components."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
