"""Virtual machines, whatever they run on: identifiers, messages, the task's environment.

Importing this module has no effect. A concrete virtual machine (``taskfarm.vm.MPI``) derives from `VirtualMachine` and
supplies what communicates; everything here works within one process.

Life of a task's environment, on the worker::

    prepareEnvironment()  -> make the folder, mirror into it, enter it   (or enter startupDir, or do nothing)
    ... the task runs ...
    cleanupEnvironment()  -> return to the directory of before, remove the folder unless it is persistent

``ParallelLocalStorage`` and ``ParallelMirroredStorage`` are read from the environment whenever they are looked up.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import count
from typing import Any, ClassVar

from taskfarm.errors import UsageError
from taskfarm.vm import _describe, _paths, _storage
from taskfarm.vm._interface import Interface
from taskfarm.vm._messages import (
    HostID,
    Msg,
    MsgHostAdd,
    MsgHostDelete,
    MsgTaskExit,
    MsgTaskResult,
    TaskID,
)

__all__ = [
    "HostID",
    "Msg",
    "MsgHostAdd",
    "MsgHostDelete",
    "MsgTaskExit",
    "MsgTaskResult",
    "ParallelLocalStorage",
    "ParallelMirroredStorage",
    "TaskID",
    "VirtualMachine",
    "getNumberOfCores",
    "localStorageCleaner",
    "translateToAbstractPath",
    "translateToActualPath",
]

logger = logging.getLogger(__name__)

ParallelLocalStorage: str
ParallelMirroredStorage: list[str]


def __getattr__(name: str) -> Any:
    if name == "ParallelLocalStorage":
        return _paths.local_storage()
    if name == "ParallelMirroredStorage":
        return _paths.mirrored_storages()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def getNumberOfCores() -> int:
    """Return the number of cores of this host, at least 1, whether this process may use them all or not."""
    return os.cpu_count() or 1


def localStorageCleaner() -> None:
    """Remove what the tasks of this user have in local storage on the host that this runs on.

    Call it only while none of them runs, in whatever job. A folder that is not there is fine.
    """
    _storage.remove_folder(_paths.user_folder())


def translateToAbstractPath(path: _paths.AnyPath) -> tuple[int, str]:
    """Translate a path on this host to the form that has the same meaning on all hosts.

    Parameters
    ----------
    path : path
        A path in mirrored storage; ``~`` is expanded and symbolic links are followed.

    Returns
    -------
    index : int
        Which entry of ``ParallelMirroredStorage`` holds it; the innermost of nested ones.
    suffix : str
        Path relative to that entry, ``"."`` for the entry itself.

    Raises
    ------
    UsageError
        If the path is not in mirrored storage. Whole components count: ``/x/mst2`` is not in ``/x/mst``.
    """
    return _paths.split_mirrored(path)


def translateToActualPath(index: int, suffix: str) -> str:
    """Translate what `translateToAbstractPath` returned, on whatever host, to the path on this host.

    Raises
    ------
    UsageError
        If ``ParallelMirroredStorage`` has no such entry on this host.
    """
    return _paths.join_mirrored(index, suffix)


class TaskEnvironment(str):
    """What `VirtualMachine.prepareEnvironment` did: the path of the task's folder, ``""`` if it has none.

    Attributes
    ----------
    previous : str
        The working directory to return to.
    """

    __slots__ = ("previous",)
    previous: str

    def __new__(cls, path: str, previous: str = os.sep) -> TaskEnvironment:
        environment = super().__new__(cls, path)
        environment.previous = previous
        return environment


class VirtualMachine(Interface):
    """The base of virtual machines: what a task's environment shall be, and how to make it.

    Parameters
    ----------
    debug : int
        0 is silent; the higher, the more the virtual machine tells.
    startupDir : path, optional
        Working directory of tasks. With `mirrorMap` it is relative to the task's folder, which is also the default.
        Without, a relative one starts at the spawner's working directory; by default workers stay where they are.
    translateStartupDir : bool
        Without `mirrorMap`: True translates a `startupDir` in mirrored storage to its place on the worker's host.
    mirrorMap : mapping of str to path, optional
        Sources (globs; in mirrored storage) and for each the folder, relative to the task's own, to copy them to.
        Given, even if empty, each task gets a folder of its own in local storage.
    persistentStorage : bool
        True keeps a worker's folder for the next tasks of this virtual machine; it starts empty.

    Attributes
    ----------
    debug, persistentStorage
        As given. These and the following are all that travels when a virtual machine is pickled.
    vmIndex : int
        Unique in the process that made this object.
    startupDirIndex, startupDirSuffix : int or None, str or None
        The working directory of tasks in abstract form; without index the suffix is a path as it is.
    mirrorList : list or None
        The translated `mirrorMap`.

    Raises
    ------
    UsageError
        If a source is outside mirrored storage, or a target or `startupDir` outside the task's folder.
    """

    _indices: ClassVar[count[int]] = count(1)
    # Persistent folders of this process, by (process number, vmIndex). The process number is there for fork: a child
    # must not share its parent's folder.
    _persistentFolders: ClassVar[dict[tuple[int, int], str]] = {}

    def __init__(
        self,
        debug: int = 0,
        startupDir: _paths.AnyPath | None = None,
        translateStartupDir: bool = True,
        mirrorMap: Mapping[str, _paths.AnyPath] | None = None,
        persistentStorage: bool = False,
    ) -> None:
        self.debug = debug
        self.vmIndex = next(VirtualMachine._indices)
        self.persistentStorage = persistentStorage
        self.startupDirIndex: int | None = None
        self.startupDirSuffix: str | None = None
        self.mirrorList: list[_storage.MirrorEntry] | None = None
        if mirrorMap is not None:
            self.mirrorList = _storage.parse_mirror_map(mirrorMap)
            if startupDir is not None:
                self.startupDirSuffix = _paths.path_inside(startupDir, "startupDir")
        elif startupDir is not None:
            self._setStartupDir(startupDir, translateStartupDir)

    def _setStartupDir(self, startupDir: _paths.AnyPath, translate: bool) -> None:
        if translate:
            try:
                self.startupDirIndex, self.startupDirSuffix = _paths.split_mirrored(startupDir)
                return
            except UsageError:  # outside mirrored storage: used as it is
                pass
        self.startupDirSuffix = os.path.abspath(os.path.expanduser(startupDir))

    def __getstate__(self) -> dict[str, Any]:
        return {
            "debug": self.debug,
            "vmIndex": self.vmIndex,
            "persistentStorage": self.persistentStorage,
            "startupDirIndex": self.startupDirIndex,
            "startupDirSuffix": self.startupDirSuffix,
            "mirrorList": self.mirrorList,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def prepareEnvironment(self) -> TaskEnvironment | None:
        """Make the environment that tasks of this virtual machine run in, and enter it.

        Returns
        -------
        TaskEnvironment or None
            To be given to `cleanupEnvironment`: as a string the path of the task's folder, empty if there is none.
            None if nothing was to be done.

        Raises
        ------
        UsageError
            If `startupDir` is not there, or a source of `mirrorMap` has no place on this host.
        OSError
            If the folder cannot be made or filled. After any error the working directory is that of before, and a
            folder that was made is removed.
        """
        if self.mirrorList is None and self.startupDirSuffix is None:
            return None
        previous = _storage.current_directory()
        with ExitStack() as undo:
            undo.callback(_storage.return_to_directory, previous)
            path = ""
            if self.mirrorList is not None:
                reused = self._persistentFolder() is not None
                path = self.createLocalStorage()
                if not reused:
                    undo.callback(self._removeStorage, path)
                _storage.copy_mirrored(self.mirrorList, path, refresh=reused)
            self._enterStartupDir(path)
            undo.pop_all()
        return TaskEnvironment(path, previous)

    def cleanupEnvironment(self, path: str | None, forceCleanup: bool = False) -> None:
        """Leave and remove the environment of a task.

        Parameters
        ----------
        path : TaskEnvironment, str or None
            What `prepareEnvironment` returned.
        forceCleanup : bool
            True removes the folder even if it is persistent.

        Raises
        ------
        UsageError
            If `path` is not a task's folder in local storage.

        Notes
        -----
        A folder that cannot be removed is logged, not raised: the task's result counts for more.
        """
        if path is None:
            return
        if isinstance(path, TaskEnvironment):
            _storage.return_to_directory(path.previous)
        elif os.path.dirname(path) != _paths.user_folder():
            raise UsageError(f"{path!r} is not a task's folder; pass what prepareEnvironment returned")
        elif _paths.is_within(_storage.current_directory(), path):
            _storage.return_to_directory(os.path.dirname(path))
        if path and (forceCleanup or not self.persistentStorage):
            self._removeStorage(path)

    def createLocalStorage(self) -> str:
        """Return a folder for a task on this host: a new, empty one, or the persistent one if it is there already.

        Returns
        -------
        str
            Path of ``<local>/taskfarm-<user>/<process number>_vm<vmIndex>[_n]``, numbers in hexadecimal. ``_n`` is
            added where another process has that folder already; what is in that one is never touched or seen.
        """
        known = self._persistentFolder()
        if known is not None:
            return known
        path = _storage.create_folder(self._folderName())
        if self.persistentStorage:
            self._persistentFolders[os.getpid(), self.vmIndex] = path
        return path

    def localStoragePath(self) -> str:
        """Return the path of this process's folder; whether it is there, and for itself, `createLocalStorage` tells."""
        return self._persistentFolder() or os.path.join(_paths.user_folder(), self._folderName())

    def _folderName(self) -> str:
        return f"{os.getpid():x}_vm{self.vmIndex:x}"

    def _persistentFolder(self) -> str | None:
        path = self._persistentFolders.get((os.getpid(), self.vmIndex)) if self.persistentStorage else None
        return path if path is not None and os.path.isdir(path) else None

    def _enterStartupDir(self, path: str) -> None:
        suffix = self.startupDirSuffix or os.curdir
        if self.startupDirIndex is not None:
            directory = _paths.join_mirrored(self.startupDirIndex, suffix)
        else:
            directory = os.path.normpath(os.path.join(path, suffix))
        try:
            os.chdir(directory)
        except OSError as exc:
            raise UsageError(
                f"cannot enter the startupDir {directory} on host {socket.gethostname()}: {exc.strerror}"
            ) from exc

    def _removeStorage(self, path: str) -> None:
        if self._persistentFolders.get((os.getpid(), self.vmIndex)) == path:
            del self._persistentFolders[os.getpid(), self.vmIndex]
        try:
            _storage.remove_folder(path)
        except OSError as exc:
            logger.warning("cannot remove the task's folder %s: %s", path, exc)

    @staticmethod
    def func2desc(function: Callable[..., Any]) -> _describe.Description:
        """Describe a callable so that `desc2func` can rebuild it in another process.

        Functions and classes that can be imported are described by name, methods by their owner and name, partials by
        their parts. Anything else, and what is defined in ``__main__`` or in a function, describes itself.
        """
        return _describe.describe(function)

    @staticmethod
    def desc2func(description: _describe.Description) -> Any:
        """Rebuild the callable that `func2desc` described.

        Raises
        ------
        UsageError
            If `description` is not one.
        ImportError, AttributeError
            If the callable is not where it was.
        """
        return _describe.rebuild(description)
