"""``taskfarm.objects``: how a job starts and ends, from the outside: statuses, output, launchers."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import pytest
from harness import Launch, Result, mpiexec_path

START = """
    import sys
    from taskfarm import objects
    objects.launch_event_loop()
    if not objects.rank0:
        sys.exit(0)
"""


def program(body: str) -> str:
    """A program whose workers serve calls; `body` is rank 0's part, indented like `START`."""
    return START + body


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("quits", [True, False])
def test_normal_end(run_mpi: Launch[Result], n: int, quits: bool) -> None:
    """With `quit` or without, the job ends with status 0 and prints nothing of its own."""
    body = "    assert objects.call(lambda: objects.size) == objects.size\n" + ("    objects.quit()\n" if quits else "")
    result = run_mpi(program(body), n, timeout_s=20).check(0)
    assert result.output.strip() == ""


@pytest.mark.parametrize("launcher", ["mpiexec", "objects", "taskfarm run"])
@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('a message for the user')", 1, "a message for the user"),
        ("raise ValueError('rank 0 failed')", 1, "ValueError: rank 0 failed"),
        ("objects.quit(); sys.exit(4)", 4, ""),
        ("objects.quit(); raise ValueError('after quit')", 1, "ValueError: after quit"),
    ],
)
def test_status_is_that_of_rank0(run_mpi: Launch[Result], launcher: str, body: str, status: int, text: str) -> None:
    """`sys.exit(n)` and exceptions of rank 0, with and without `quit`, end all ranks with that status."""
    n = 4 if launcher == "mpiexec" else 2
    result = run_mpi(program(f"    objects.call(len, ())\n    {body}\n"), n, launcher=launcher, timeout_s=20)
    assert result.status == status, result.describe()
    assert text in result.stderr
    assert result.elapsed_s < 15


def test_rank0_interrupted_by_its_own_code(run_mpi: Launch[Result]) -> None:
    """A KeyboardInterrupt of rank 0 ends the job with a status that is not 0."""
    result = run_mpi(program("    raise KeyboardInterrupt\n"), 2, timeout_s=20)
    assert result.status != 0 and "KeyboardInterrupt" in result.stderr, result.describe()


def test_exception_inside_a_call_ends_the_job(run_mpi: Launch[Result]) -> None:
    """An exception that all ranks raise, uncaught on rank 0: one traceback, status 1."""
    result = run_mpi(program("    objects.call(lambda: 1 // 0)\n"), 4, timeout_s=20).check(1)
    assert result.stderr.count("ZeroDivisionError: integer") >= 1, result.describe()


@pytest.mark.parametrize("ending", ["", "    objects.quit()\n", "    import time; time.sleep(0.5)\n"])
def test_failure_first_seen_at_the_end(run_mpi: Launch[Result], ending: str) -> None:
    """A worker's failure in the last call is printed and makes the status 1, with and without `quit`."""
    body = "    objects.call(lambda: 1 // 0 if objects.rank == 1 else 5)\n" + ending
    result = run_mpi(program(body), 2, timeout_s=20).check(1)
    assert "ZeroDivisionError" in result.stderr and "rank 1" in result.stderr, result.describe()


def test_failure_seen_at_the_end_with_a_status_of_its_own(run_mpi: Launch[Result]) -> None:
    """`sys.exit(5)` after a failed call: the failure is printed, the status is not 0."""
    body = "    objects.call(lambda: 1 // 0 if objects.rank == 1 else 5)\n    sys.exit(5)\n"
    result = run_mpi(program(body), 2, timeout_s=20)
    assert result.status in (1, 5), result.describe()
    assert "ZeroDivisionError" in result.stderr, result.describe()


def test_quit(run_mpi: Launch[Result]) -> None:
    """`quit` warns of objects that are left and names them, removes them, lets workers go on; later uses do nothing."""
    source = """
        import sys, warnings
        from taskfarm import objects
        objects.launch_event_loop()
        log = open(f"{__import__('os').environ['TF_LOG_DIR']}/rank-{objects.rank}.log", "w")
        if objects.rank0:
            keep = objects.call(objects.function_call_manage, list)
            gone = objects.call(objects.function_call_manage, list)
            other = objects.call(objects.function_call_manage, list)
            number = int(keep), int(other)
            del gone
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert objects.quit() is None
            texts = [str(w.message) for w in caught]
            assert len(texts) == 1 and all(str(k) in texts[0] for k in number), texts
            assert objects.finished and not objects._event_loop_running
            assert not objects._managed_objects
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert objects.quit() is None
                assert objects.call(lambda: 5) is None
                del keep
            assert objects.call(objects.function_call_manage, list) is None
        else:
            assert not objects._managed_objects, objects._managed_objects
        from mpi4py import MPI
        total = MPI.COMM_WORLD.allreduce(1)
        log.write(f"after quit {total}")
        log.close()
    """
    result = run_mpi(source, 4, timeout_s=20).check(0)
    assert [result.log(f"rank-{r}.log") for r in range(4)] == ["after quit 4"] * 4
    assert result.stderr == ""


def test_quit_without_objects_is_silent(run_mpi: Launch[Result]) -> None:
    """No warning when every handle died before."""
    body = """
    import warnings
    warnings.simplefilter("error")
    oid = objects.call(objects.function_call_manage, list)
    del oid
    objects.quit()
    """
    assert run_mpi(program(body), 2, timeout_s=20).check(0).stderr == ""


def test_event_loop_by_hand(run_mpi: Launch[Result]) -> None:
    """Workers may call `event_loop()` themselves, as older programs do, and get it back after `quit`."""
    source = """
        from taskfarm import objects
        if objects.rank0:
            assert objects.call(lambda: objects.comm.allreduce(1)) == objects.size
            objects.quit()
        else:
            objects.event_loop()
        print(f"end {objects.rank}\\n", end="")
    """
    result = run_mpi(source, 2, timeout_s=20).check(0)
    assert sorted(result.stdout.split("\n")) == ["", "end 0", "end 1"]


def test_call_waits_for_late_workers(run_mpi: Launch[Result]) -> None:
    """Workers that enter their loop later than rank 0 calls are waited for."""
    source = """
        import time
        from taskfarm import objects
        if objects.rank:
            time.sleep(1.5)
        objects.launch_event_loop()
        if objects.rank0:
            assert objects.call_all(lambda: objects.rank) == list(range(objects.size))
            objects.quit()
    """
    run_mpi(source, 4, timeout_s=20).check(0)


@pytest.mark.parametrize("mode", ["wait", "print", "deferred", "nonsense"])
def test_mode_by_environment(run_mpi: Launch[Result], mode: str) -> None:
    """``TASKFARM_ON_ERROR`` chooses the mode; ``print`` prints as the original does and the status stays 0."""
    body = """
    from taskfarm.errors import RemoteError
    try:
        objects.call(lambda: 1 // 0 if objects.rank == 1 else 5)
    except RemoteError:
        print("raised in the call")
    objects.quit()
    """
    result = run_mpi(program(body), 2, env={"TASKFARM_ON_ERROR": mode}, timeout_s=20)
    if mode == "wait":
        assert result.check(0).stdout == "raised in the call\n"
    elif mode == "print":
        assert "raised" not in result.check(0).stdout
        assert "rank 1" in result.output and "ZeroDivisionError" in result.output
    elif mode == "deferred":
        assert "ZeroDivisionError" in result.check(1).stderr
    else:
        assert result.status != 0 and "TASKFARM_ON_ERROR" in result.stderr and "nonsense" in result.stderr


# The module as a program

PARITY = """
    import json, os, sys
    if "taskfarm.objects" in sys.argv:
        raise SystemExit("not this script's arguments")
    facts = {
        "name": __name__, "file": __file__, "argv": sys.argv, "path0": sys.path[0],
        "main": sys.modules["__main__"].__dict__ is globals(), "doc": __doc__,
        "annotations": "__annotations__" in globals(),
    }
    class C: pass
    facts["qualified"] = C.__module__
    with open(os.environ["TF_LOG_DIR"] + "/facts.json", "w") as file:
        json.dump(facts, file)
"""


@pytest.mark.parametrize("name", ["prog.py", "folder/prog.py"])
def test_script_sees_what_python_gives(run_mpi: Launch[Result], name: str) -> None:
    """Under ``-m taskfarm.objects`` a script has the name, file, arguments and path that ``python script`` gives it."""

    def relative(n: int, target: Sequence[str]) -> list[str]:
        return [sys.executable, name, *target[1:]]

    def under_objects(n: int, target: Sequence[str]) -> list[str]:
        return [mpiexec_path(), "-n", str(n), sys.executable, "-m", "taskfarm.objects", name, *target[1:]]

    facts = []
    for launcher in (relative, under_objects):
        result = run_mpi(PARITY, 2, args=["a", "--b=c", "-n", "3"], launcher=launcher, name=name, timeout_s=20).check(0)
        text = result.log("facts.json").replace(str(result.work_dir), "WORK")
        facts.append(json.loads(text))
    assert facts[1] == facts[0]


def test_main_and_module_share_one_state(run_mpi: Launch[Result]) -> None:
    """`__main__`'s script, ``taskfarm.objects`` and an alias of it see one registry; other ranks run the loop."""
    source = """
        import sys
        import __main__
        import taskfarm.objects as objects
        sys.modules["an.alias"] = objects
        alias = sys.modules["an.alias"]
        assert objects.rank0 and objects._event_loop_running
        assert __main__.filename == filename and filename.endswith("prog.py"), filename
        oid = alias.call(alias.function_call_manage, lambda: {"rank": alias.rank})
        def look(i):
            return objects.get_object(i)["rank"], "an.alias" in sys.modules, objects._event_loop_running
        seen = objects.call_all(look, oid)
        assert seen == [(r, r == 0, True) for r in range(objects.size)], seen
        assert alias._managed_objects == objects._managed_objects
        del oid
        if len(sys.argv) > 1:
            objects.quit()
    """
    run_mpi(source, 4, launcher="objects", timeout_s=20).check(0)
    run_mpi(source, 2, launcher="objects", args=["quit"], timeout_s=20).check(0)
    run_mpi(source, 1, launcher="objects", timeout_s=20).check(0)


def test_workers_do_not_run_the_script(run_mpi: Launch[Result]) -> None:
    """Under ``-m taskfarm.objects`` only rank 0 runs the script."""
    result = run_mpi("print('once', flush=True)\n", 4, launcher="objects", timeout_s=20).check(0)
    assert result.stdout.count("once") == 1


def test_classes_of_the_script_travel_under_m(run_mpi: Launch[Result]) -> None:
    """The script is not imported on workers: its functions and classes travel all the same."""
    source = """
        from taskfarm import objects
        import math
        class Shape:
            def __init__(self, r): self.r = r
            def area(self): return area(self)
        def area(shape): return round(math.pi * shape.r ** 2, 3) + objects.rank
        oid = objects.call(objects.function_call_manage, Shape, 2)
        assert objects.call_all(objects.method_call, oid, "area") == [12.566 + r for r in range(objects.size)]
    """
    run_mpi(source, 4, launcher="objects", timeout_s=20).check(0)


def test_without_a_script_a_prompt(run_mpi: Launch[Result]) -> None:
    """Without a script rank 0 reads from a plain prompt where ipykernel is not installed; leaving it ends the job."""
    # Open MPI's launcher does not pass the end of a file on: the session ends itself
    stdin = "from taskfarm import objects\nprint('seen', objects.call_all(lambda: objects.rank * 2))\nexit()\n"

    def launcher(n: int, target: Sequence[str]) -> list[str]:
        hidden = "import runpy, sys; sys.modules['ipykernel'] = None; "
        code = hidden + "runpy.run_module('taskfarm.objects', run_name='__main__')"
        return [mpiexec_path(), "-n", str(n), sys.executable, "-c", code]

    result = run_mpi("", 2, launcher=launcher, stdin=stdin, timeout_s=20).check(0)
    assert "seen [0, 2]" in result.stdout


def test_missing_script(run_mpi: Launch[Result]) -> None:
    """A script that is not there is one clear message and a status that is not 0."""

    def launcher(n: int, target: Sequence[str]) -> list[str]:
        return [mpiexec_path(), "-n", str(n), sys.executable, "-m", "taskfarm.objects", "not_there.py"]

    result = run_mpi("", 2, launcher=launcher, timeout_s=20)
    assert result.status != 0 and "not_there.py" in result.stderr, result.describe()


# Without MPI


@pytest.mark.parametrize("missing", ["mpi4py", "mpi4py.MPI"])
def test_without_mpi_it_is_one_process(run_mpi: Launch[Result], missing: str) -> None:
    """Without mpi4py, or with one that finds no MPI library, the module acts as one process."""
    source = f"""
        import sys
        from importlib.abc import MetaPathFinder
        class Refuse(MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == {missing!r}:
                    if name == "mpi4py":
                        raise ModuleNotFoundError("No module named 'mpi4py'", name="mpi4py")
                    raise RuntimeError("cannot load MPI library")
        sys.meta_path.insert(0, Refuse())
        from taskfarm import objects
        assert (objects.comm, objects.rank, objects.size, objects.rank0, objects.parallel) == (None, 0, 1, True, False)
        objects.launch_event_loop()
        mine = []
        assert objects.call(lambda x: x, mine) is mine
        assert objects.call_all(lambda: 5) == [5]
        oid = objects.call(objects.function_call_manage, lambda: 7)
        assert objects.call(objects.function_call, lambda x: x + 1, oid) == 8
        objects.call(objects.run_code, "import sys; sys.seen = 1")
        objects.call(objects.mpi_info)
        del oid
        objects.quit()
    """
    result = run_mpi(source, 1, launcher="plain", timeout_s=20).check(0)
    assert len(result.stdout.strip().splitlines()) == 1


def test_plain_python_is_one_process(run_mpi: Launch[Result]) -> None:
    """``python script.py`` without a launcher works with one rank."""
    body = "    assert objects.call_all(lambda: objects.comm.allreduce(1)) == [1]\n    assert not objects.parallel\n"
    run_mpi(program(body), 1, launcher="plain", timeout_s=20).check(0)


# Memory


def test_a_large_argument_leaves_from_its_own_memory(run_mpi: Launch[Result]) -> None:
    """200 MB to one worker: rank 0's peak grows by at most a tenth of it, the worker's by 1.1 times."""
    body = """
    import numpy as np
    from tf_checks import peak_bytes
    small = np.ones(1000)
    objects.call_all(lambda a: a.sum(), small)
    array = np.ones(25_000_000)
    before = objects.call_all(peak_bytes)
    objects.call(lambda a: None, array)
    after = objects.call_all(peak_bytes)
    growth = [(b - a) / array.nbytes for a, b in zip(before, after)]
    print("growth", growth)
    assert growth[0] <= 0.1 and growth[1] <= 1.12, growth
    """
    run_mpi(program(body), 2, timeout_s=30).check(0)
