"""Mirroring of files into the folders of the virtual machine's tasks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vm_support import Host, fill, run_task, standing_host, tree

from taskfarm.errors import UsageError
from taskfarm.vm.base import (
    VirtualMachine,
)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host with empty storages of its own."""
    with standing_host(tmp_path, monkeypatch) as standing:
        yield standing


def test_globs_are_copied_to_their_targets(host: Host) -> None:
    """Each source lands in its target folder under its own name; folders with all that is in them."""
    fill(host.mirrored, **{"a.txt": "a", "b.txt": "b", "c.dat": "c", "in__d__e.txt": "e", "in__.hid": "h"})
    mirror_map = {
        str(host.mirrored / "*.txt"): ".",
        str(host.mirrored / "c.dat"): "data/deep",
        str(host.mirrored / "in"): "copy",
        str(host.mirrored / "i?" / "d") + "/": "data",
    }
    assert run_task(VirtualMachine(mirrorMap=mirror_map)) == {
        "a.txt": "a",
        "b.txt": "b",
        "copy": "",
        "copy/in": "",
        "copy/in/.hid": "h",
        "copy/in/d": "",
        "copy/in/d/e.txt": "e",
        "data": "",
        "data/d": "",
        "data/d/e.txt": "e",
        "data/deep": "",
        "data/deep/c.dat": "c",
    }
    assert host.left_over() == []


def test_sources_may_be_relative_home_or_linked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source starts at the spawner's working directory or home; a file link is copied as the file, by its name."""
    fill(host.mirrored, work__one="1", home__two="2")
    (host.mirrored / "work" / "alias").symlink_to("one")
    monkeypatch.setenv("HOME", str(host.mirrored / "home"))
    with monkeypatch.context() as spawner:
        spawner.chdir(host.mirrored / "work")
        vm = VirtualMachine(mirrorMap={"*": ".", "~/two": ".", "alias": "again", "../home/*": "x"})
    assert run_task(vm) == {
        "again": "",
        "again/alias": "1",
        "alias": "1",
        "one": "1",
        "two": "2",
        "x": "",
        "x/two": "2",
    }


def test_a_folder_named_by_a_dot_is_copied_under_its_name(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """``.`` and ``folder/`` mean the folder, not its contents."""
    fill(host.mirrored, work__one="1")
    with monkeypatch.context() as spawner:
        spawner.chdir(host.mirrored / "work")
        vm = VirtualMachine(mirrorMap={".": ".", "../work/": "x"})
    assert run_task(vm) == {"work": "", "work/one": "1", "x": "", "x/work": "", "x/work/one": "1"}


def test_hidden_files_are_not_matched(host: Host) -> None:
    """A wildcard matches no hidden file; a glob that spells the dot does."""
    fill(host.mirrored, **{".hidden": "h", "seen": "s"})
    assert run_task(VirtualMachine(mirrorMap={str(host.mirrored / "*"): "."})) == {"seen": "s"}
    assert run_task(VirtualMachine(mirrorMap={str(host.mirrored / ".*"): "."})) == {".hidden": "h"}


def test_links_in_a_copied_folder_stay_links(host: Host) -> None:
    """Links below what was matched are copied as links, whatever they point to; a matched folder link as the folder."""
    fill(host.mirrored, real__f="f", outer__g="g")
    (host.mirrored / "outer" / "to_file").symlink_to("g")
    (host.mirrored / "outer" / "to_folder").symlink_to(host.mirrored / "real")
    (host.mirrored / "outer" / "to_nothing").symlink_to("nothing")
    (host.mirrored / "top").symlink_to("real")
    (host.mirrored / "tornado").symlink_to("nothing")
    mirror_map = {str(host.mirrored / name): "." for name in ("outer", "to*")}
    assert run_task(VirtualMachine(mirrorMap=mirror_map)) == {
        "outer": "",
        "outer/g": "g",
        "outer/to_file": "-> g",
        "outer/to_folder": f"-> {host.mirrored / 'real'}",
        "outer/to_nothing": "-> nothing",
        "top": "",
        "top/f": "f",
        "tornado": "-> nothing",
    }


def test_targets_that_exist_merge(host: Host) -> None:
    """Two sources with folders of one name end up in one folder; the later source wins a file, links included."""
    fill(host.mirrored, a__in__one="1", a__in__both="a", b__in__two="2", b__in__both="b")
    (host.mirrored / "b" / "in" / "link").symlink_to("two")
    (host.mirrored / "a" / "in" / "link").symlink_to("one")
    vm = VirtualMachine(mirrorMap={str(host.mirrored / name / "in"): "." for name in "ab"})
    expected = {"in": "", "in/both": "b", "in/link": "-> two", "in/one": "1", "in/two": "2"}
    assert run_task(vm) == expected


def test_links_are_never_written_through(host: Host) -> None:
    """A copy replaces a link that is in its way: what the link points to stays as it is."""
    fill(host.mirrored, precious__f="precious", file="precious", b__in__f="new", b__in__g="new", c__f="new")
    (host.mirrored / "a" / "in").mkdir(parents=True)
    (host.mirrored / "a" / "in" / "f").symlink_to(host.mirrored / "file")
    (host.mirrored / "a" / "link").symlink_to(host.mirrored / "precious")
    source = {name: str(host.mirrored / name) for name in ("a", "b", "c", "precious")}
    vm = VirtualMachine(mirrorMap={source["a"] + "/in": ".", source["b"] + "/in": "."})
    assert run_task(vm) == {"in": "", "in/f": "new", "in/g": "new"}
    vm = VirtualMachine(mirrorMap={source["a"]: ".", source["c"] + "/f": "a/link"})
    with pytest.raises(UsageError, match="out of the task's folder"):
        run_task(vm)
    assert tree(host.mirrored / "precious") == {"f": "precious"}
    assert (host.mirrored / "file").read_text() == "precious"
    assert host.left_over() == []


def test_a_folder_link_in_the_way_of_a_folder_is_replaced(host: Host) -> None:
    """A folder that meets a link to a folder of the same name takes its place and does not merge into the original."""
    fill(host.mirrored, precious__f="precious", b__in__sub__f="new")
    (host.mirrored / "a" / "in").mkdir(parents=True)
    (host.mirrored / "a" / "in" / "sub").symlink_to(host.mirrored / "precious")
    vm = VirtualMachine(mirrorMap={str(host.mirrored / name / "in"): "." for name in "ab"})
    assert run_task(vm) == {"in": "", "in/sub": "", "in/sub/f": "new"}
    assert tree(host.mirrored / "precious") == {"f": "precious"}


def test_a_file_does_not_replace_a_folder(host: Host) -> None:
    """Where a file would replace a whole folder the task fails, and its folder is removed."""
    fill(host.mirrored, a__x__f="folder", b__x="file")
    vm = VirtualMachine(mirrorMap={str(host.mirrored / "a" / "x"): ".", str(host.mirrored / "b" / "x"): "."})
    with pytest.raises(UsageError, match="would replace the folder"):
        run_task(vm)
    assert host.left_over() == []


def test_special_characters_in_paths_are_no_wildcards(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the source as the caller wrote it is a glob, not the place of the storage on the worker."""
    odd = host.mirrored.with_name("m[1]")
    fill(odd, f="f")
    monkeypatch.setenv("PARALLEL_MIRRORED_STORAGE", str(odd))
    os.chdir(odd)
    vm = VirtualMachine(mirrorMap={"*": "."})
    os.chdir(host.start)
    assert run_task(vm) == {"f": "f"}


def test_pipes_and_local_storage_are_left_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe does not block the copy; local storage inside mirrored storage is not copied into itself."""
    fill(host.mirrored, scratch__f="f", g="g")
    os.mkfifo(host.mirrored / "pipe")
    monkeypatch.setenv("PARALLEL_LOCAL_STORAGE", str(host.mirrored / "scratch"))
    vm = VirtualMachine(mirrorMap={str(host.mirrored / "*"): ".", str(host.mirrored / "scratch" / "*"): "x"})
    assert run_task(vm) == {"g": "g", "scratch": "", "scratch/f": "f", "x": "", "x/f": "f"}


def test_mirrored_files_are_those_of_the_moment(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """Globs are matched before each task; one that matches nothing yet copies nothing and is logged."""
    vm = VirtualMachine(mirrorMap={str(host.mirrored / "*.txt"): "."})
    assert "matches nothing so far" in caplog.text
    assert run_task(vm) == {}
    fill(host.mirrored, **{"a.txt": "1"})
    assert run_task(vm) == {"a.txt": "1"}


def test_read_only_sources(host: Host) -> None:
    """Read-only files and folders are mirrored and removed like others, and stay read-only where that is harmless."""
    fill(host.mirrored, ro__f="f")
    (host.mirrored / "ro" / "f").chmod(0o444)
    (host.mirrored / "ro").chmod(0o555)

    def modes() -> list[int]:
        return [os.stat(name).st_mode & 0o777 for name in ("ro", "ro/f")]

    vm = VirtualMachine(mirrorMap={str(host.mirrored / "ro"): "."}, persistentStorage=True)
    assert run_task(vm, modes) == run_task(vm, modes) == [0o755, 0o444]
    (host.mirrored / "ro").chmod(0o755)


@pytest.mark.parametrize("source", ["{mst}2/*", "{mst}/../start/f", "/", "relative/*", "{mst}/out/*"])
def test_sources_outside_mirrored_storage_are_refused(host: Host, source: str) -> None:
    """A source that workers could not see raises on the spawner, when the virtual machine is made."""
    (host.mirrored / "out").symlink_to(host.start)
    with pytest.raises(UsageError, match="not in mirrored storage"):
        VirtualMachine(mirrorMap={source.format(mst=host.mirrored): "."})


@pytest.mark.parametrize("target", ["..", "/abs", "a/../../b"])
def test_targets_outside_the_folder_are_refused(host: Host, target: str) -> None:
    """A target or startupDir that would leave the task's folder raises when the virtual machine is made."""
    with pytest.raises(UsageError, match="mirrorMap target"):
        VirtualMachine(mirrorMap={str(host.mirrored / "*"): target})
    with pytest.raises(UsageError, match="startupDir"):
        VirtualMachine(mirrorMap={}, startupDir=target)


def test_odd_mirror_maps_are_refused(host: Host) -> None:
    """What is not a mapping, or climbs after a wildcard, is named."""
    with pytest.raises(UsageError, match="must map sources"):
        VirtualMachine(mirrorMap=["*"])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="after a wildcard"):
        VirtualMachine(mirrorMap={str(host.mirrored / "*" / ".."): "."})


def test_a_host_without_the_source_is_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker on whose host the source's folder is missing fails the task, with the cause, and leaves nothing."""
    vm = VirtualMachine(mirrorMap={str(host.mirrored / "*"): "."})
    monkeypatch.setenv("PARALLEL_MIRRORED_STORAGE", str(host.local / "unmounted"))
    with pytest.raises(UsageError, match=r"unmounted is not there on host .*PARALLEL_MIRRORED_STORAGE"):
        vm.prepareEnvironment()
    assert host.left_over() == []


def test_startup_dir_in_the_task_folder(host: Host) -> None:
    """With mirrorMap, startupDir is relative to the task's folder; the whole folder goes after the task."""
    fill(host.mirrored, in__sub__f="f")
    vm = VirtualMachine(mirrorMap={str(host.mirrored / "in"): "x"}, startupDir="x/in/sub")
    assert (vm.startupDirIndex, vm.startupDirSuffix) == (None, "x/in/sub")
    assert run_task(vm, os.getcwd) == str(host.folder(vm) / "x" / "in" / "sub")
    assert host.left_over() == []


@pytest.mark.parametrize("persistent", [False, True])
def test_whatever_fails_leaves_nothing_behind(host: Host, monkeypatch: pytest.MonkeyPatch, persistent: bool) -> None:
    """A startupDir missing in the folder, a failing copy, an interrupt: nothing stays, nothing moves."""
    fill(host.mirrored, f="f")
    mirror_map = {str(host.mirrored / "f"): "."}
    options: dict[str, Any] = {"mirrorMap": mirror_map, "persistentStorage": persistent}
    with pytest.raises(UsageError, match="cannot enter the startupDir"):
        VirtualMachine(startupDir="missing", **options).prepareEnvironment()
    assert (os.getcwd(), host.left_over()) == (str(host.start), [])
    for error in (OSError("disk full"), KeyboardInterrupt()):

        def fail(*_: Any, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as broken:
            broken.setattr(shutil, "copy2", fail)
            with pytest.raises(type(error)):
                VirtualMachine(**options).prepareEnvironment()
        assert (os.getcwd(), host.left_over()) == (str(host.start), [])
