"""Real pyMOR on ``taskfarm.objects``: its own wrappers, pool, demos and defaults, unmodified."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from harness import PROGRAMS, Launch, Result, is_openmpi, mpiexec_path

if importlib.util.find_spec("pymor") is None and is_openmpi():
    pytest.skip("pyMOR is installed in the environment of MPICH only", allow_module_level=True)

WRAPPERS = PROGRAMS / "pymor_wrappers.py"
SITE = """
import sys
import taskfarm.objects
sys.modules["pymor.tools.mpi"] = taskfarm.objects
"""
LAUNCHERS = ["taskfarm run --replace pymor.tools.mpi", "objects", "bound by hand"]


def options(launcher: str, tmp_path: Path, variables: Mapping[str, str] | None = None) -> dict[str, object]:
    """Launch options; ``bound by hand`` puts a module on the path that every rank imports at start, before anything."""
    env = dict(variables or {})
    if launcher != "bound by hand":
        return {"launcher": launcher, "env": env}
    folder = tmp_path / "by_hand"
    folder.mkdir(exist_ok=True)
    (folder / "tf_by_hand.py").write_text(
        SITE + "import runpy\nsys.argv = sys.argv[1:]\nsys.path[0] = sys.argv[0].rpartition('/')[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )

    def command(n: int, target: Sequence[str]) -> list[str]:
        return [mpiexec_path(), "-n", str(n), sys.executable, str(folder / "tf_by_hand.py"), *target]

    return {"launcher": command, "env": env}


def pymor_demo(name: str) -> Path:
    spec = importlib.util.find_spec("pymordemos")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / f"{name}.py"


@pytest.mark.parametrize(
    ("launcher", "n"), [(LAUNCHERS[0], 1), (LAUNCHERS[0], 2), (LAUNCHERS[0], 4), (LAUNCHERS[1], 2), (LAUNCHERS[2], 4)]
)
def test_wrappers(run_mpi: Launch[Result], tmp_path: Path, launcher: str, n: int) -> None:
    """Wrapped models, operators and arrays, the pool and the greedy algorithm give what one process gives."""
    if launcher == "objects":
        source = "import sys\nimport taskfarm.objects\nsys.modules['pymor.tools.mpi'] = taskfarm.objects\n"
        source += "taskfarm.objects.call(taskfarm.objects.run_code, 'import sys, taskfarm.objects\\n"
        source += 'sys.modules["pymor.tools.mpi"] = taskfarm.objects\')\n'
        source += WRAPPERS.read_text()
        result = run_mpi(source, n, timeout_s=60, **options(launcher, tmp_path)).check(0)
    else:
        result = run_mpi(WRAPPERS, n, timeout_s=60, args=["errors"], **options(launcher, tmp_path)).check(0)
    assert f"pymor ok taskfarm.objects {n}" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("launcher", [LAUNCHERS[0], LAUNCHERS[2]])
def test_auto_launch_is_pymors(run_mpi: Launch[Result], tmp_path: Path, launcher: str) -> None:
    """pyMOR launches the loop at its import, on every rank, and workers leave with status 0 inside that import."""
    source = """
        import os, sys
        import pymor
        from pymor.tools import mpi
        import pymor.tools.mpi as again
        assert again is mpi is sys.modules["pymor.tools.mpi"] is sys.modules["taskfarm.objects"]
        assert mpi.rank0 and mpi._event_loop_running and mpi.event_loop_settings() == {"auto_launch": False}
        open(os.environ["TF_LOG_DIR"] + f"/behind-{mpi.rank}", "w").write("behind the import")
        assert mpi.call(lambda: mpi.comm.gather(mpi.rank)) == [0, 1, 2, 3]
        from pymor.parallel.mpi import MPIPool
        pool = MPIPool()
        assert pool.map(lambda x: x + 1, [1, 2, 3]) == [2, 3, 4]
    """
    result = run_mpi(source, 4, timeout_s=30, **options(launcher, tmp_path)).check(0)
    assert sorted(p.name for p in (result.work_dir / "logs").iterdir()) == ["behind-0"]


@pytest.mark.parametrize("launcher", [LAUNCHERS[0], LAUNCHERS[2]])
@pytest.mark.parametrize("launch", [True, False])
def test_defaults_file(run_mpi: Launch[Result], tmp_path: Path, launcher: str, launch: bool) -> None:
    """A defaults file may name ``event_loop_settings.auto_launch``: pyMOR imports, and the setting is obeyed."""
    (tmp_path / "defaults.py").write_text(f"d = {{'pymor.tools.mpi.event_loop_settings.auto_launch': {launch}}}\n")
    source = f"""
        import os
        import pymor
        from pymor.tools import mpi
        if not {launch}:
            assert mpi.event_loop_settings() == {{"auto_launch": False}}
            assert not mpi._event_loop_running
            mpi.launch_event_loop()
        if mpi.rank0:
            assert mpi.call(lambda: mpi.comm.gather(mpi.rank)) == [0, 1]
            from pymor.core.defaults import get_defaults
            assert get_defaults(code=False) == {{"pymor.tools.mpi.event_loop_settings.auto_launch": {launch}}}
            mpi.quit()
        open(os.environ["TF_LOG_DIR"] + f"/end-{{mpi.rank}}", "w").write("end")
    """
    variables = {"PYMOR_DEFAULTS": str(tmp_path / "defaults.py")}
    result = run_mpi(source, 2, timeout_s=30, **options(launcher, tmp_path, variables)).check(0)
    assert len(list((result.work_dir / "logs").glob("end-*"))) == (1 if launch else 2)


def test_defaults_file_in_the_working_directory(run_mpi: Launch[Result], tmp_path: Path) -> None:
    """The same with ``pymor_defaults.py``, written by pyMOR itself with all its defaults."""
    write = """
        from pymor.core.defaults import set_defaults, write_defaults_to_file
        set_defaults({"pymor.tools.mpi.event_loop_settings.auto_launch": False})
        write_defaults_to_file("pymor_defaults.py")
    """
    launcher = LAUNCHERS[0]
    written = run_mpi(write, 1, timeout_s=60, **options(launcher, tmp_path)).check(0).work_dir / "pymor_defaults.py"
    assert re.search(r"^d\['pymor.tools.mpi.event_loop_settings.auto_launch' *\] *= False", written.read_text(), re.M)


@pytest.mark.parametrize("launcher", [LAUNCHERS[0], LAUNCHERS[2]])
def test_defaults_changed_before_the_launch_reach_workers(
    run_mpi: Launch[Result], tmp_path: Path, launcher: str
) -> None:
    """Defaults that rank 0 changes before and after it launches the loop are seen by all ranks."""
    (tmp_path / "defaults.py").write_text("d = {'pymor.tools.mpi.event_loop_settings.auto_launch': False}\n")
    source = """
        import pymor
        from pymor.tools import mpi
        from pymor.core.defaults import get_defaults, set_defaults
        from pymor.algorithms.greedy import rb_greedy
        from pymor.algorithms.gram_schmidt import gram_schmidt
        key = "pymor.algorithms.gram_schmidt.gram_schmidt.atol"
        if mpi.rank0:
            set_defaults({key: 0.125})
        mpi.launch_event_loop()
        if mpi.rank0:
            def look():
                import pymor.algorithms.gram_schmidt
                from pymor.core.defaults import get_defaults
                return mpi.comm.gather(get_defaults().get(key))
            assert mpi.call(look) == [0.125] * 4
            set_defaults({key: 0.25})
            assert mpi.call(look) == [0.25] * 4
            mpi.quit()
    """
    variables = {"PYMOR_DEFAULTS": str(tmp_path / "defaults.py")}
    run_mpi(source, 4, timeout_s=30, **options(launcher, tmp_path, variables)).check(0)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("thermalblock_simple", ["pymor", "greedy", "2", "4", "3", "--no-visualize"]),
        ("thermalblock_simple", ["pymor", "adaptive_greedy", "3", "4", "3", "--no-visualize"]),
    ],
    ids=["greedy", "adaptive"],
)
def test_demos_of_pymor(run_mpi: Launch[Result], tmp_path: Path, name: str, args: list[str]) -> None:
    """pyMOR's own demos that use its pool run unmodified, by their own path, and give a reduced model."""
    result = run_mpi(pymor_demo(name), 2, args=args, timeout_s=120, **options(LAUNCHERS[0], tmp_path)).check(0)
    assert (result.work_dir / "reduced_model.out").stat().st_size > 1000
    assert "maximum" in result.stdout and "Traceback" not in result.stderr


def test_demo_with_the_module_as_launcher(run_mpi: Launch[Result], tmp_path: Path) -> None:
    """``mpiexec python -m taskfarm.objects demo.py`` replaces ``python -m pymor.tools.mpi demo.py``."""
    source = "import sys, taskfarm.compat\ntaskfarm.compat.install('pymor.tools.mpi')\n"
    source += "import taskfarm.objects as o\n"
    source += "o.call(o.run_code, \"import taskfarm.compat; taskfarm.compat.install('pymor.tools.mpi')\")\n"
    source += "import runpy\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    demo = [str(pymor_demo("thermalblock_simple")), "pymor", "greedy", "2", "3", "2", "--no-visualize"]
    result = run_mpi(source, 2, args=demo, launcher="objects", timeout_s=120).check(0)
    assert "maximum" in result.stdout


def test_worker_failure_in_a_pool_is_reported(run_mpi: Launch[Result], tmp_path: Path) -> None:
    """A function that fails on one worker of pyMOR's pool ends the job with an error instead of a hang."""
    source = """
        import pymor
        from pymor.parallel.default import new_parallel_pool
        def fail():
            from pymor.tools.mpi import rank
            if rank == 1:
                raise LookupError("fails on one worker")
            return rank
        new_parallel_pool().apply(fail)
    """
    result = run_mpi(source, 4, timeout_s=40, **options(LAUNCHERS[0], tmp_path))
    assert result.status not in (0, -1) and "fails on one worker" in result.stderr, result.describe()
    assert result.elapsed_s < 15


def test_exception_types_of_pymor_pass_through(run_mpi: Launch[Result], tmp_path: Path) -> None:
    """pyMOR steers by exceptions of rank 0, such as a failed Newton iteration in a wrapped model."""
    source = """
        import pymor
        from pymor.core.exceptions import NewtonError
        from pymor.tools import mpi
        def fail():
            from pymor.core.exceptions import NewtonError
            raise NewtonError("no convergence")
        for _ in range(3):
            try:
                mpi.call(mpi.function_call, fail)
            except NewtonError:
                pass
            else:
                raise AssertionError
        assert mpi.call(lambda: mpi.comm.gather(mpi._object_counter)) == [0] * 4
    """
    result = run_mpi(source, 4, timeout_s=30, **options(LAUNCHERS[0], tmp_path)).check(0)
    assert "Traceback" not in result.stderr


def test_pymor_alone_is_untouched(run_mpi: Launch[Result]) -> None:
    """Importing taskfarm beside pyMOR changes nothing of pyMOR's own module."""
    source = """
        import taskfarm.objects
        import pymor
        from pymor.tools import mpi
        assert mpi is not taskfarm.objects and mpi.__file__.endswith("pymor/tools/mpi.py")
        print("untouched")
    """
    assert "untouched" in run_mpi(source, 1, launcher="plain", timeout_s=30).check(0).stdout
