"""Folders of tasks in local storage: how they are made, filled from mirrored storage, and removed.

A task's folder is ``<local>/taskfarm-<user>/<name>[_n]``. The functions keep no state and communicate with nobody; the
file system is all they know.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import re
import shutil
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from taskfarm.errors import UsageError
from taskfarm.vm._paths import (
    LOCAL_VARIABLE,
    MIRRORED_VARIABLE,
    USER_PREFIX,
    AnyPath,
    is_within,
    join_mirrored,
    path_inside,
    split_mirrored,
    user_folder,
)

__all__ = [
    "MirrorEntry",
    "copy_mirrored",
    "create_folder",
    "current_directory",
    "parse_mirror_map",
    "remove_folder",
    "return_to_directory",
]

logger = logging.getLogger(__name__)

ATTEMPTS = 10  # tries (count) against processes that create or remove in the same folder; each lost race costs one
WILDCARD = re.compile(r"[*?[]")  # the characters that `glob` gives a meaning to


@dataclass(frozen=True)
class MirrorEntry:
    """One source of files and folders that every task finds in its folder.

    Attributes
    ----------
    index : int
        Mirrored storage that the source is in.
    folder : str
        Path below it of the folder in which `pattern` is looked up.
    pattern : str
        Glob; matched on the worker, before each task.
    target : str
        Folder that receives what matches, relative to the task's folder.
    """

    index: int
    folder: str
    pattern: str
    target: str

    def sources(self) -> list[str]:
        """Return what the glob matches on this host now, sorted; hidden names only where the glob spells the dot.

        Raises
        ------
        UsageError
            If the folder that the glob is looked up in is not there on this host.
        """
        base = join_mirrored(self.index, self.folder)
        if not os.path.isdir(base):
            raise UsageError(
                f"the mirrorMap source folder {base} is not there on host {socket.gethostname()}; "
                f"does {MIRRORED_VARIABLE} name the same storage on all hosts?"
            )
        return [os.path.join(base, match) for match in sorted(glob.glob(self.pattern, root_dir=base))]


def parse_mirror_map(mirror_map: Mapping[str, AnyPath]) -> list[MirrorEntry]:
    """Translate a ``mirrorMap`` to what travels to the workers.

    The part of each source before its first wildcard is translated here, once; the globs are matched on the worker,
    so that a task finds what is there when it starts.

    Raises
    ------
    UsageError
        If `mirror_map` is not a mapping, a source is outside mirrored storage or has ``..`` after a wildcard, or a
        target is outside the task's folder.
    """
    if not isinstance(mirror_map, Mapping):
        raise UsageError(f"mirrorMap must map sources to target folders, as in {{'*.txt': '.'}}, not be {mirror_map!r}")
    entries = []
    for source, target in mirror_map.items():
        head, pattern = _split_pattern(os.path.expanduser(source))
        if os.pardir in pattern.split(os.sep):
            raise UsageError(f"mirrorMap source {os.fspath(source)!r} has '..' after a wildcard; write it without")
        entry = MirrorEntry(*split_mirrored(head or os.curdir), pattern, path_inside(target, "mirrorMap target"))
        if not os.path.isdir(head or os.curdir) or not entry.sources():
            logger.warning("mirrorMap source %s matches nothing so far", os.fspath(source))
        entries.append(entry)
    return entries


def copy_mirrored(entries: list[MirrorEntry], folder: str, refresh: bool = False) -> None:
    """Copy what the sources match into `folder`.

    Parameters
    ----------
    entries : list of MirrorEntry
        Later ones win where two bring the same file.
    folder : str
        The task's folder, canonical; target folders below it are made as needed.
    refresh : bool
        True if the folder was filled before: files with the size and time of their source are not copied again.

    Notes
    -----
    What matches is copied with symbolic links followed; links deeper in a copied folder stay links. A folder that
    exists merges, anything else that exists is replaced (links are never written through). Sockets, pipes and devices
    are left out, and so is local storage itself.
    """
    for entry in entries:
        target = os.path.normpath(os.path.join(folder, entry.target))
        os.makedirs(target, exist_ok=True)
        if not is_within(os.path.realpath(target), folder):  # through a link that was mirrored before
            raise UsageError(f"mirrorMap target {entry.target!r} leads out of the task's folder, over a link")
        for source in entry.sources():
            name = os.path.basename(source.rstrip(os.sep))  # a glob like "run*/" matches with its separator
            _copy(source, os.path.join(target, name), refresh, follow=True)


def _split_pattern(path: str) -> tuple[str, str]:
    """Split at the first component with a wildcard; without one, before the last component."""
    parts = path.split(os.sep)
    for position, part in enumerate(parts):
        if WILDCARD.search(part):
            head = os.sep.join(parts[:position])
            return (os.sep if position and not head else head), os.sep.join(parts[position:])
    if os.path.basename(path) in ("", os.curdir, os.pardir):  # "folder/" and ".": its own name is needed
        path = os.path.realpath(path)
    head, name = os.path.split(path)
    return (head, name) if name else (head, os.curdir)


def _copy(source: str, target: str, refresh: bool, follow: bool) -> None:
    if os.path.islink(source) and not (follow and os.path.exists(source)):
        _make_way(target)
        os.symlink(os.readlink(source), target)
    elif os.path.isdir(source):
        _copy_folder(source, target, refresh)
    elif os.path.isfile(source):
        if not (refresh and _is_unchanged(source, target)):
            _make_way(target)
            shutil.copy2(source, target)
    else:
        logger.debug("%s is neither file, folder nor link: not mirrored", source)


def _copy_folder(source: str, target: str, refresh: bool) -> None:
    if os.path.basename(source).startswith(USER_PREFIX) and os.path.realpath(source) == user_folder():
        return  # local storage inside mirrored storage: a copy would contain itself
    if os.path.islink(target):
        os.unlink(target)
    os.makedirs(target, exist_ok=True)
    for name in os.listdir(source):
        _copy(os.path.join(source, name), os.path.join(target, name), refresh, follow=False)
    os.chmod(target, stat.S_IMODE(os.stat(source).st_mode) | stat.S_IRWXU)  # it must be possible to remove it


def _make_way(target: str) -> None:
    if os.path.isdir(target) and not os.path.islink(target):
        raise UsageError(f"mirroring would replace the folder {target} by a file; give mirrorMap another target")
    if os.path.lexists(target):
        os.unlink(target)


def _is_unchanged(source: str, target: str) -> bool:
    try:
        copy = os.lstat(target)
    except FileNotFoundError:
        return False
    original = os.stat(source)
    return stat.S_ISREG(copy.st_mode) and (copy.st_size, copy.st_mtime_ns) == (original.st_size, original.st_mtime_ns)


def create_folder(name: str) -> str:
    """Make a folder that nobody else has: ``<local>/taskfarm-<user>/<name>``, or ``<name>_1`` and so on if taken.

    Workers of different hosts that share the storage may have the same process number, hence the same `name`: the
    folder is made exclusively, and one that exists already is left alone whoever made it.

    Raises
    ------
    UsageError
        If the user's folder in local storage belongs to another user or is a symbolic link.
    """
    for _ in range(ATTEMPTS):
        try:
            parent = _secured_user_folder()
            for n in count():
                path = os.path.join(parent, f"{name}_{n}" if n else name)
                try:
                    os.mkdir(path, 0o700)
                except FileExistsError:
                    continue
                return path
        except FileNotFoundError:  # a cleaner removed the parent meanwhile
            continue
    raise UsageError(f"{user_folder()} is removed again and again; clear local storage only while no task runs")


def remove_folder(path: str) -> None:
    """Remove a folder with all that is in it; one that is not there, wholly or in part, is fine.

    Raises
    ------
    OSError
        If it cannot be removed, or others keep filling it.
    """
    last: OSError
    for _ in range(ATTEMPTS):
        try:
            shutil.rmtree(path)
        except FileNotFoundError as exc:  # somebody else removes it too
            if not os.path.lexists(path):
                return
            last = exc
        except PermissionError as exc:  # a read-only folder in it
            _unlock(path)
            last = exc
        except OSError as exc:
            if exc.errno != errno.ENOTEMPTY:
                raise
            last = exc
        else:
            return
    raise last


def current_directory() -> str:
    """Return the working directory, or the root directory if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.path.abspath(os.sep)


def return_to_directory(path: str) -> None:
    """Return to the working directory `path`; if it is gone, go to the root directory and log it."""
    try:
        os.chdir(path)
    except OSError as exc:
        logger.warning("cannot return to the working directory %s (%s), going to %s", path, exc, os.sep)
        os.chdir(os.sep)


def _secured_user_folder() -> str:
    """Make the user's folder if need be; refuse one that another user has put into a shared temporary directory."""
    path = user_folder()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "geteuid") and found.st_uid != os.geteuid()):
            raise UsageError(
                f"{path} is not a folder of this user; remove it, or let {LOCAL_VARIABLE} name another place"
            ) from None
    return path


def _unlock(path: str) -> None:
    """Make every folder below and including `path` readable and writable for its owner."""
    with suppress(FileNotFoundError):
        os.chmod(path, stat.S_IRWXU)
    for folder, names, _ in os.walk(path):  # top down: a folder is unlocked before it is looked into
        for name in names:
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):
                with suppress(FileNotFoundError):
                    os.chmod(inner, stat.S_IRWXU)
