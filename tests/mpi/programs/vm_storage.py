"""Checks of ``taskfarm.vm``: working directories, mirrored files and local storage, seen by real tasks."""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path

from tf_checks import equal, holds, raises, run_checks
from tf_vm import collect, failure, idle, results, run

from taskfarm.errors import TaskfarmError
from taskfarm.vm import MPI, MsgTaskExit

N = 0
VM = None
LOCAL = Path(os.environ["PARALLEL_LOCAL_STORAGE"]).expanduser().resolve()
MIRROR = Path(os.environ["PARALLEL_MIRRORED_STORAGE"].split(os.pathsep)[0]).resolve()
USER = LOCAL / f"taskfarm-{getpass.getuser()}"


def make_sources():
    source = MIRROR / "source"
    (source / "folder" / "deep").mkdir(parents=True, exist_ok=True)
    (source / "a.txt").write_text("a")
    (source / "b.txt").write_text("b")
    (source / ".hidden").write_text("hidden")
    (source / "folder" / "c.txt").write_text("c")
    (source / "folder" / ".inner").write_text("inner")
    (source / "folder" / "deep" / "d.txt").write_text("d")
    for link, target in ((source / "link.txt", "a.txt"), (source / "folder" / "link_inside", "c.txt")):
        if not link.is_symlink():
            link.symlink_to(target)
    return source


def look():
    """What a task sees: its working directory and all files below it."""
    found = {}
    for base, folders, files in os.walk("."):
        for name in folders + files:
            path = os.path.join(base, name)
            link = os.readlink(path) if os.path.islink(path) else None
            text = None if os.path.isdir(path) else Path(path).read_text()
            found[os.path.normpath(path)] = ("link " + link) if link else text
    return os.getcwd(), os.getpid(), found


def left():
    return sorted(p.name for p in USER.iterdir()) if USER.exists() else []


def check_library_reads_the_environment():
    import taskfarm.vm as module

    equal(module.ParallelLocalStorage, str(LOCAL))
    equal(next(iter(module.ParallelMirroredStorage)), str(MIRROR))


def check2_mirrored_files():
    source = make_sources()
    vm = MPI(mirrorMap={str(source / "*"): "."})
    ids = vm.spawnFunction(look)
    for task, (cwd, pid, found) in zip(ids, results(vm, ids), strict=True):
        holds(re.fullmatch(rf"{pid:x}_vm{vm.vmIndex:x}(_\d+)?", os.path.basename(cwd)), f"{cwd} {task}")
        equal(os.path.dirname(cwd), str(USER))
        expected = {
            "a.txt": "a",
            "b.txt": "b",
            "link.txt": "a",
            "folder": None,
            "folder/c.txt": "c",
            "folder/.inner": "inner",
            "folder/deep": None,
            "folder/deep/d.txt": "d",
            "folder/link_inside": "link c.txt",
        }
        equal(found, expected)
        holds(not os.path.exists(cwd), f"{cwd} was not removed")
    equal(left(), [])


def check2_targets_and_merging():
    source = make_sources()
    other = MIRROR / "other" / "folder"
    other.mkdir(parents=True, exist_ok=True)
    (other / "e.txt").write_text("e")
    (other / "c.txt").write_text("newer c")
    vm = MPI(
        mirrorMap={str(source / "a.txt"): "sub/dir", str(source / "folder"): ".", str(MIRROR / "other" / "*"): "."}
    )
    ((_, _, found),) = run(vm, look)
    equal(found["sub/dir/a.txt"], "a")
    equal((found["folder/e.txt"], found["folder/deep/d.txt"]), ("e", "d"))
    holds(found["folder/c.txt"] in ("c", "newer c") and "b.txt" not in found, found)


def check2_task_folder_is_removed_also_after_a_failure():
    vm = MPI(mirrorMap={str(make_sources() / "*.txt"): "."})

    def fail():
        open("left.txt", "w").close()
        os.chmod(".", 0o555)
        raise ValueError(os.getcwd())

    message = failure(vm, vm.spawnFunction(fail, count=1))
    folder = str(message.exception)
    holds(folder.startswith(str(USER)) and not os.path.exists(folder), folder)
    equal(left(), [])
    (cwd,) = run(VM, os.getcwd)
    holds(os.path.isdir(cwd) and not cwd.startswith(str(USER)), cwd)


def check2_task_that_leaves_or_removes_its_folder():
    import shutil

    vm = MPI(mirrorMap={str(make_sources() / "*.txt"): "."})
    run(vm, os.chdir, ("/",))
    run(vm, lambda: shutil.rmtree(os.getcwd()))
    equal(run(vm, lambda: sorted(os.listdir("."))), [["a.txt", "b.txt", "link.txt"]])
    equal(left(), [])


def check2_persistent_storage_is_reused():
    vm = MPI(mirrorMap={str(make_sources() / "a.txt"): "."}, persistentStorage=True)

    def count():
        seen = sorted(os.listdir("."))
        open(f"left{len(seen)}.txt", "w").close()
        return os.getcwd(), seen

    ((first, seen),) = run(vm, count)
    equal(seen, ["a.txt"])
    holds(os.path.isdir(first), "the folder is gone")
    ((second, seen),) = run(vm, count)
    equal((second, seen), (first, ["a.txt", "left1.txt"]))
    other = MPI(mirrorMap={str(make_sources() / "a.txt"): "."}, persistentStorage=True)
    ((third, seen),) = run(other, count)
    holds(third != first and seen == ["a.txt"], (third, seen))
    VM.clearLocalStorage()
    equal(left(), [])


def check_clear_local_storage():
    USER.mkdir(parents=True, exist_ok=True)
    (USER / "old_vm1").mkdir(exist_ok=True)
    (USER / "old_vm1" / "file").write_text("x")
    VM.clearLocalStorage()
    equal(left(), [])
    VM.clearLocalStorage(timeout=5.0)
    VM.clearLocalStorage()


def check2_startup_dir_inside_mirrored_storage():
    make_sources()
    vm = MPI(startupDir=str(MIRROR / "source" / "folder"))
    equal(run(vm, os.getcwd), [str(MIRROR / "source" / "folder")])
    vm = MPI(startupDir=str(MIRROR / "source" / "folder"), translateStartupDir=False)
    equal(run(vm, os.getcwd), [str(MIRROR / "source" / "folder")])


def check2_startup_dir_is_translated():
    """The worker's own mirrored storage is elsewhere: a translated path follows, an untranslated one does not."""
    make_sources()
    elsewhere = LOCAL.parent / "elsewhere"
    (elsewhere / "source" / "folder").mkdir(parents=True, exist_ok=True)
    inside = str(MIRROR / "source" / "folder")
    original = os.environ["PARALLEL_MIRRORED_STORAGE"]
    run(VM, lambda p: os.environ.update(PARALLEL_MIRRORED_STORAGE=p), (str(elsewhere),), count=None)
    try:
        equal(run(MPI(startupDir=inside), os.getcwd), [str(elsewhere / "source" / "folder")])
        equal(run(MPI(startupDir=inside, translateStartupDir=False), os.getcwd), [inside])
    finally:
        run(VM, lambda p: os.environ.update(PARALLEL_MIRRORED_STORAGE=p), (original,), count=None)


def check2_startup_dir_outside_is_used_as_it_is():
    outside = LOCAL.parent / "outside"
    outside.mkdir(exist_ok=True)
    equal(run(MPI(startupDir=str(outside)), os.getcwd), [str(outside)])


def check2_translation_is_by_whole_components():
    """A neighbour whose name starts like the mirrored folder is outside of it."""
    neighbour = Path(str(MIRROR) + "2")
    neighbour.mkdir(exist_ok=True)
    equal(run(MPI(startupDir=str(neighbour)), os.getcwd), [str(neighbour)])
    with raises(TaskfarmError):
        MPI(mirrorMap={str(neighbour / "*"): "."})


def check2_startup_dir_with_mirror_map():
    vm = MPI(startupDir="folder/deep", mirrorMap={str(make_sources() / "*"): "."})
    ((cwd, pid, found),) = run(vm, look)
    equal(found, {"d.txt": "d"})
    holds(re.fullmatch(rf"{re.escape(str(USER))}/{pid:x}_vm{vm.vmIndex:x}(_\d+)?/folder/deep", cwd), cwd)
    equal(left(), [])


def check2_missing_startup_dir_fails_the_task():
    for vm in (
        MPI(startupDir=str(MIRROR / "not_there")),
        MPI(startupDir="/not_there_at_all"),
        MPI(startupDir="not_there", mirrorMap={str(make_sources() / "*"): "."}),
    ):
        message = failure(vm, vm.spawnFunction(look, count=1))
        holds("not_there" in message.traceback, message.traceback)
        equal(MPI.freeSlots(), N - 1)
    ids = vm.spawnFunction(look, count=1, sendBack=False)
    equal([type(m) for m in collect(vm, ids)[ids[0]]], [MsgTaskExit])
    equal(run(VM, len, ("abc",)), [3])


def check_source_outside_mirrored_storage():
    outside = LOCAL.parent / "outside_source"
    outside.mkdir(exist_ok=True)
    with raises(TaskfarmError, match="outside_source"):
        MPI(mirrorMap={str(outside / "*"): "."})


def check_machines_are_numbered():
    numbers = [MPI().vmIndex for _ in range(3)]
    equal(len(set(numbers)), 3)


def check2_no_folder_without_a_mirror_map():
    ids = VM.spawnFunction(os.getcwd)
    for cwd in results(VM, ids):
        holds(not cwd.startswith(str(USER)), cwd)
    equal(left(), [])


def check2_environment_by_hand_in_a_task():
    vm = MPI(mirrorMap={str(make_sources() / "a.txt"): "."})

    def work(given):
        before = os.getcwd()
        path = given.prepareEnvironment()
        inside = os.getcwd(), sorted(os.listdir("."))
        given.cleanupEnvironment(path)
        return before == os.getcwd() or before, inside, os.path.exists(inside[0])

    ((back, inside, exists),) = run(VM, work, (vm,))
    holds(inside[0].startswith(str(USER)) and inside[1] == ["a.txt"] and not exists, inside)
    equal(back, True)


def check2_machine_with_storage_travels_in_arguments():
    vm = MPI(mirrorMap={str(make_sources() / "a.txt"): "."})
    equal(run(VM, lambda given: (given.vmIndex, len(given.mirrorList)), (vm,)), [(vm.vmIndex, 1)])


if __name__ == "__main__":
    MPI.spawnerBarrier()
    VM = MPI()
    N = MPI.slots()
    run_checks(globals(), N, after_each=lambda: idle(VM))
    VM.finalize()
