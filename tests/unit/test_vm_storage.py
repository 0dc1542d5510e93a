"""Folders of the virtual machine's tasks: made, kept or removed."""

from __future__ import annotations

import getpass
import logging
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vm_support import Host, fill, run_task, standing_host, tree

from taskfarm.errors import UsageError
from taskfarm.vm import _storage
from taskfarm.vm.base import (
    TaskEnvironment,
    VirtualMachine,
    localStorageCleaner,
)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host with empty storages of its own."""
    with standing_host(tmp_path, monkeypatch) as standing:
        yield standing


def test_task_folder_lives_as_long_as_the_task(host: Host) -> None:
    """The folder has the agreed name, is the working directory, private and empty, and goes with the task."""
    vm = VirtualMachine(mirrorMap={})
    token = vm.prepareEnvironment()
    folder = host.folder(vm)
    assert token == os.getcwd() == str(folder) == vm.localStoragePath()
    assert os.listdir(folder) == []
    assert folder.stat().st_mode & 0o077 == 0 and host.user_folder.stat().st_mode & 0o077 == 0
    fill(folder, sub__file="x")
    vm.cleanupEnvironment(token)
    assert os.getcwd() == str(host.start)
    assert host.left_over() == []


def test_local_storage_is_made_if_missing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage that the variable names need not exist."""
    monkeypatch.setenv("PARALLEL_LOCAL_STORAGE", str(host.local / "deep" / "er"))
    assert run_task(VirtualMachine(mirrorMap={}), os.getcwd).startswith(str(host.local / "deep" / "er"))


def test_same_process_number_on_two_hosts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers with one process number that share local storage get folders of their own, persistent or not."""
    for persistent in (False, True):
        vm = VirtualMachine(mirrorMap={}, persistentStorage=persistent)
        for n in ("", "_1"):
            fill(host.folder(vm, n), theirs=f"other host {n}")
        with monkeypatch.context() as this_process:
            this_process.setattr(VirtualMachine, "_persistentFolders", {})
            token = vm.prepareEnvironment()
            assert token == str(host.folder(vm, "_2"))
            assert os.listdir() == []
            vm.cleanupEnvironment(token, forceCleanup=True)
        assert tree(host.folder(vm)) == {"theirs": "other host "}
        assert not host.folder(vm, "_2").exists()


def test_create_local_storage_makes_new_folders(host: Host) -> None:
    """Each call makes another folder, unless the storage is persistent."""
    vm = VirtualMachine()
    assert [vm.createLocalStorage() for _ in range(3)] == [str(host.folder(vm, n)) for n in ("", "_1", "_2")]
    kept = VirtualMachine(persistentStorage=True)
    assert kept.createLocalStorage() == kept.createLocalStorage() == kept.localStoragePath() == str(host.folder(kept))


def test_user_folder_of_somebody_else_is_refused(host: Host, tmp_path: Path) -> None:
    """In a shared temporary directory nobody can lead the tasks' files elsewhere."""
    (tmp_path / "theirs").mkdir()
    host.user_folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(UsageError, match=r"not a folder of this user.*PARALLEL_LOCAL_STORAGE"):
        VirtualMachine(mirrorMap={}).prepareEnvironment()
    assert os.listdir(tmp_path / "theirs") == []


def test_user_without_a_name(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that is not in the user database has a folder by number; odd names stay one component."""

    def no_entry() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", no_entry)
    assert str(os.getuid()) in run_task(VirtualMachine(mirrorMap={}), os.getcwd)
    monkeypatch.setattr(getpass, "getuser", lambda: "DOMAIN\\me/../you")
    folder = Path(run_task(VirtualMachine(mirrorMap={}), os.getcwd))
    assert folder.parent == host.local / "taskfarm-DOMAIN_me_.._you"


def test_persistent_storage_is_reused(host: Host) -> None:
    """What a task leaves in persistent storage the next one finds; mirrored files are fresh again."""
    fill(host.mirrored, f="1")
    vm = VirtualMachine(mirrorMap={str(host.mirrored / "f"): "."}, persistentStorage=True)
    assert run_task(vm, lambda: fill(Path(), own="mine", f="spoilt")) is None
    assert host.left_over() == [host.folder(vm).name]
    assert run_task(vm) == {"f": "1", "own": "mine"}
    fill(host.mirrored, f="22")
    assert run_task(vm) == {"f": "22", "own": "mine"}


def test_unchanged_files_are_not_copied_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reusing persistent storage costs no copy of files that are what they were."""
    fill(host.mirrored, f="1", d__g="2")
    vm = VirtualMachine(mirrorMap={str(host.mirrored / "*"): "."}, persistentStorage=True)
    first = run_task(vm)
    monkeypatch.setattr(shutil, "copy2", None)
    assert run_task(vm) == first


def test_persistent_storage_belongs_to_one_virtual_machine(host: Host) -> None:
    """Each vmIndex starts with an empty folder, in this process and in one forked from it."""
    one, two = (VirtualMachine(mirrorMap={}, persistentStorage=True) for _ in range(2))
    run_task(one, lambda: fill(Path(), own="mine"))
    assert run_task(two) == {}
    assert run_task(one) == {"own": "mine"}


def test_persistent_storage_is_not_inherited(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child knows its parent's folders and makes its own."""
    vm = VirtualMachine(mirrorMap={}, persistentStorage=True)
    run_task(vm, lambda: fill(Path(), own="mine"))
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 0xABC)
        assert run_task(vm) == {}
        assert (host.user_folder / f"abc_vm{vm.vmIndex:x}").is_dir()
    assert run_task(vm) == {"own": "mine"}


def test_persistent_storage_that_was_cleared_is_made_again(host: Host) -> None:
    """After local storage was cleared the next task gets a new, mirrored folder."""
    fill(host.mirrored, f="1")
    vm = VirtualMachine(mirrorMap={str(host.mirrored / "f"): "."}, persistentStorage=True)
    run_task(vm, lambda: fill(Path(), own="mine"))
    localStorageCleaner()
    assert run_task(vm) == {"f": "1"}


def test_a_failed_start_keeps_what_was_there(host: Host) -> None:
    """A task that cannot start does not cost the persistent storage of those before it."""
    fill(host.mirrored, d__f="1")
    vm = VirtualMachine(mirrorMap={str(host.mirrored / "d"): "."}, startupDir="d", persistentStorage=True)
    run_task(vm, lambda: fill(Path(), own="mine"))
    shutil.rmtree(host.mirrored)
    with pytest.raises(UsageError, match="not there"):
        vm.prepareEnvironment()
    assert tree(host.folder(vm)) == {"d": "", "d/f": "1", "d/own": "mine"}


def test_force_removes_persistent_storage(host: Host) -> None:
    """forceCleanup removes the folder, and the next task starts with an empty one of the same name."""
    vm = VirtualMachine(mirrorMap={}, persistentStorage=True)
    token = vm.prepareEnvironment()
    fill(Path(), own="mine")
    vm.cleanupEnvironment(token, forceCleanup=True)
    assert host.left_over() == []
    assert run_task(vm) == {}
    assert host.left_over() == [host.folder(vm).name]


def test_cleanup_returns_from_wherever_the_task_went(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task may change directory and environment: its own folder goes and the worker is back where it was."""
    vm = VirtualMachine(mirrorMap={})
    token = vm.prepareEnvironment()
    os.chdir(host.mirrored)
    monkeypatch.setenv("PARALLEL_LOCAL_STORAGE", str(host.mirrored))
    vm.cleanupEnvironment(token)
    assert os.getcwd() == str(host.start)
    assert host.left_over() == []


def test_cleanup_does_not_mind_a_missing_folder(host: Host) -> None:
    """A task may remove its own folder, or clean local storage while standing in it."""
    for clean in (localStorageCleaner, lambda: shutil.rmtree(os.getcwd())):
        run_task(VirtualMachine(mirrorMap={}), clean)
        assert host.left_over() == []


def test_cleanup_when_the_former_directory_is_gone(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """If the directory of before was removed, the worker goes on in the root directory, and again from there."""
    gone = host.start / "gone"
    gone.mkdir()
    os.chdir(gone)
    vm = VirtualMachine(mirrorMap={})
    assert run_task(vm, gone.rmdir) is None
    assert os.getcwd() == os.sep
    assert "cannot return" in caplog.text
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    run_task(vm)  # starts in a directory that is no more
    os.chdir(host.start)
    assert host.left_over() == []


def test_cleanup_takes_the_path_too(host: Host) -> None:
    """The plain path of a task's folder does; any other path is refused, so that nothing else can be removed."""
    vm = VirtualMachine(mirrorMap={})
    path = str(vm.prepareEnvironment())
    assert type(path) is str
    vm.cleanupEnvironment(path)
    assert os.getcwd() == str(host.user_folder)
    os.chdir(host.start)
    assert host.left_over() == []
    for other in (str(host.mirrored), str(host.user_folder), ""):
        with pytest.raises(UsageError, match="not a task's folder"):
            vm.cleanupEnvironment(other)
    assert host.mirrored.is_dir()


def test_token_travels(host: Host) -> None:
    """What prepareEnvironment returned can be pickled with the directory to return to."""
    token = pickle.loads(pickle.dumps(TaskEnvironment("/a", "/b")))
    assert (token, token.previous, type(token)) == ("/a", "/b", TaskEnvironment)


def test_a_folder_that_stays_is_logged(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that cannot be removed does not fail the task that ran in it."""

    def busy(path: str) -> None:
        raise OSError(16, "Device or resource busy", path)

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", busy)
        with caplog.at_level(logging.WARNING):
            run_task(VirtualMachine(mirrorMap={}))
    assert "cannot remove the task's folder" in caplog.text


def test_cleaner_removes_this_users_storage_only(host: Host) -> None:
    """The cleaner removes everything of this user, nothing else, and does not mind if there is nothing."""
    localStorageCleaner()
    vm = VirtualMachine(mirrorMap={}, persistentStorage=True)
    run_task(vm, lambda: fill(Path(), sub__f="f"))
    fill(host.local / "taskfarm-somebody-else", f="f")
    localStorageCleaner()
    assert os.listdir(host.local) == ["taskfarm-somebody-else"]
    localStorageCleaner()


def test_cleaners_that_run_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another cleaner removes, or a task adds, while this one is at work is no error."""
    fill(host.user_folder, a__f="f")
    real = shutil.rmtree
    races = iter([FileNotFoundError(2, "gone"), OSError(39, "Directory not empty")])

    def racing(path: str) -> None:
        for error in races:
            raise error
        real(path)

    monkeypatch.setattr(shutil, "rmtree", racing)
    localStorageCleaner()
    assert os.listdir(host.local) == []


def test_folder_is_unlocked_to_be_removed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-only folders that a task made are removed too."""
    fill(host.user_folder, a__b__f="f")
    (host.user_folder / "a" / "b").chmod(0o500)
    (host.user_folder / "a").chmod(0o000)
    real, refused = shutil.rmtree, iter([PermissionError(13, "denied")])  # as it is for users other than root

    def refuse_once(path: str) -> None:
        for error in refused:
            raise error
        assert (host.user_folder / "a" / "b").stat().st_mode & 0o777 == 0o700
        real(path)

    monkeypatch.setattr(shutil, "rmtree", refuse_once)
    localStorageCleaner()
    assert os.listdir(host.local) == []


def test_creation_survives_a_cleaner(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cleaner that removes the user's folder while one is made in it is outlived, within bounds."""
    real, races = os.mkdir, iter([FileNotFoundError(2, "gone")])

    def racing(path: Any, mode: int = 0o777) -> None:
        for error in races:
            raise error
        real(path, mode)

    with monkeypatch.context() as race:
        race.setattr(os, "mkdir", racing)
        assert run_task(VirtualMachine(mirrorMap={})) == {}

    def always(*_: Any) -> None:
        raise FileNotFoundError(2, "gone")

    monkeypatch.setattr(os, "mkdir", always)
    with pytest.raises(UsageError, match="removed again and again"):
        _storage.create_folder("x")
