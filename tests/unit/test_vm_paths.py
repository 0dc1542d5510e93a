"""Storages, path translation and startupDir of the virtual machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from vm_support import Host, fill, run_task, standing_host

from taskfarm.errors import UsageError
from taskfarm.vm import base
from taskfarm.vm.base import (
    VirtualMachine,
    translateToAbstractPath,
    translateToActualPath,
)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host with empty storages of its own."""
    with standing_host(tmp_path, monkeypatch) as standing:
        yield standing


def test_storages_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both storages are read when they are asked for, ``~`` expanded, links followed, mirrored ones in their order."""
    root = tmp_path.resolve()
    (root / "real").mkdir()
    (root / "link").symlink_to(root / "real")
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.setenv("PARALLEL_LOCAL_STORAGE", "~/link/scratch")
    monkeypatch.setenv("PARALLEL_MIRRORED_STORAGE", os.pathsep.join(["~/b", str(root / "link"), "", "/a/../c"]))
    assert base.ParallelLocalStorage == str(root / "real" / "scratch")
    assert base.ParallelMirroredStorage == [str(root / "b"), str(root / "real"), "", "/c"]


@pytest.mark.parametrize("unset", [True, False])
def test_storages_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unset: bool) -> None:
    """Without the variables, or with empty ones, it is the temporary directory and the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PARALLEL_LOCAL_STORAGE", "PARALLEL_MIRRORED_STORAGE"):
        monkeypatch.delenv(name, raising=False) if unset else monkeypatch.setenv(name, "")
    assert base.ParallelLocalStorage == os.path.realpath(tempfile.gettempdir())
    assert base.ParallelMirroredStorage == [os.path.realpath(tmp_path)]


def test_paths_are_translated_there_and_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path in mirrored storage is found on a host that mounts it elsewhere; it need not exist."""
    assert translateToAbstractPath(host.mirrored / "a" / "b.txt") == (0, "a/b.txt")
    assert translateToAbstractPath(str(host.mirrored) + "/x/..//a/") == (0, "a")
    assert translateToAbstractPath(host.mirrored) == (0, ".")
    monkeypatch.setenv("PARALLEL_MIRRORED_STORAGE", "/mnt/elsewhere")
    assert translateToActualPath(0, "a/b.txt") == "/mnt/elsewhere/a/b.txt"
    assert translateToActualPath(0, ".") == "/mnt/elsewhere"


def test_relative_home_and_linked_paths_are_translated(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths start at the working directory, ``~`` is the home directory, links are followed."""
    monkeypatch.setenv("HOME", str(host.mirrored))
    (host.start / "link").symlink_to(host.mirrored)
    assert translateToAbstractPath("link/a") == (0, "a")
    assert translateToAbstractPath("../mst/a") == (0, "a")
    assert translateToAbstractPath("~/a") == (0, "a")


def test_whole_components_decide(host: Host) -> None:
    """``/x/mst2`` is not under ``/x/mst``, and a link out of the storage is out of it."""
    (host.mirrored / "out").symlink_to(host.start)
    for path in (f"{host.mirrored}2", f"{host.mirrored}2/f", host.mirrored.parent, host.mirrored / "out" / "f"):
        with pytest.raises(UsageError, match="PARALLEL_MIRRORED_STORAGE"):
            translateToAbstractPath(path)


def test_the_innermost_storage_holds_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nested storages, the root among them, the deepest one counts and the order does not."""
    monkeypatch.setenv("PARALLEL_MIRRORED_STORAGE", os.pathsep.join(["/", "/nowhere", "/nowhere/deep"]))
    assert translateToAbstractPath("/nowhere/deep/f") == (2, "f")
    assert translateToAbstractPath("/nowhere/f") == (1, "f")
    assert translateToAbstractPath("/f") == (0, "f")
    assert translateToActualPath(0, "f") == "/f"


@pytest.mark.parametrize("index", [1, 2, -1])
def test_a_storage_that_a_host_lacks_is_named(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """An index that this host's list does not have, or has left empty, is a clear error."""
    monkeypatch.setenv("PARALLEL_MIRRORED_STORAGE", os.pathsep.join(["/a", ""]))
    with pytest.raises(UsageError, match=rf"no mirrored storage number {index}.*PARALLEL_MIRRORED_STORAGE"):
        translateToActualPath(index, "f")


def test_nothing_asked_nothing_done(host: Host) -> None:
    """Without mirrorMap and startupDir a task runs where the worker is, and no folder is made."""
    vm = VirtualMachine(persistentStorage=True)
    assert (vm.startupDirIndex, vm.startupDirSuffix, vm.mirrorList) == (None, None, None)
    assert vm.prepareEnvironment() is None
    assert os.getcwd() == str(host.start)
    vm.cleanupEnvironment(None)
    assert os.listdir(host.local) == []


def test_startup_dir_in_mirrored_storage_is_translated(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A startupDir in mirrored storage is entered where the worker's host has it, and left after the task."""
    (host.mirrored / "work").mkdir()
    vm = VirtualMachine(startupDir=str(host.mirrored / "work"))
    assert (vm.startupDirIndex, vm.startupDirSuffix) == (0, "work")
    moved = host.mirrored.with_name("elsewhere")
    host.mirrored.rename(moved)
    monkeypatch.setenv("PARALLEL_MIRRORED_STORAGE", str(moved))
    assert run_task(vm, os.getcwd) == str(moved / "work")
    assert os.listdir(host.local) == []


def test_startup_dir_elsewhere_is_used_as_it_is(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside mirrored storage, or without translation, startupDir is the spawner's path."""
    for folder, translate in ((host.start, True), (host.mirrored, False), (Path(f"{host.mirrored}2"), True)):
        folder.mkdir(exist_ok=True)
        vm = VirtualMachine(startupDir=folder, translateStartupDir=translate)
        assert (vm.startupDirIndex, vm.startupDirSuffix) == (None, str(folder))
        assert run_task(vm, os.getcwd) == str(folder)
    (host.start / "sub").mkdir()
    vm = VirtualMachine(startupDir="sub")
    with monkeypatch.context() as other_place:
        other_place.chdir(host.local)
        assert run_task(vm, os.getcwd) == str(host.start / "sub")


@pytest.mark.parametrize("place", ["mst/gone", "gone", "mst/file"])
def test_startup_dir_that_is_not_there(host: Host, place: str) -> None:
    """A missing startupDir is no error for the spawner, a clear one on the worker, which stays where it was."""
    fill(host.mirrored, file="x")
    vm = VirtualMachine(startupDir=host.mirrored.parent / place)
    with pytest.raises(UsageError, match=rf"startupDir .*{place} on host") as caught:
        vm.prepareEnvironment()
    assert isinstance(caught.value.__cause__, OSError)
    assert os.getcwd() == str(host.start)
