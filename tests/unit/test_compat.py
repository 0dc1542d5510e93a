"""Stand-ins take the place of host modules, however they are imported; each test runs in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Every test program begins so: what the stand-ins do at their first import is recorded instead of done.
PRELUDE = """
import importlib, sys
import taskfarm.compat as compat
from taskfarm.errors import UsageError
events = []
def record(what):
    def action(*args, **kwargs):
        events.append(what)
    return action
vm = importlib.import_module("taskfarm.vm")
vm.MPI.spawnerBarrier = staticmethod(record("parted"))
importlib.import_module("taskfarm.objects._glue").register_host_defaults = record("registered")
objects = sys.modules["taskfarm.objects"]
def refuses(*names):
    try:
        compat.install(*names)
    except UsageError as exc:
        return str(exc)
    raise AssertionError(f"{names} accepted")
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], None]:
    """Run a program beside two fake host packages whose own modules must not be imported."""
    for name in ("pymor/tools", "pyopus/parallel"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("")
        (folder / "__init__.py").write_text("")
    (tmp_path / "pymor/tools/mpi.py").write_text("raise AssertionError('the original was imported')\n")
    (tmp_path / "pymor/tools/other.py").write_text("from pymor.tools import mpi\nfrom . import mpi as again\n")
    (tmp_path / "pyopus/parallel/mpi.py").write_text("ORIGINAL = True\n")
    (tmp_path / "pyopus/parallel/base.py").write_text("ORIGINAL = True\n")

    def run_program(text: str) -> None:
        program = tmp_path / "program.py"
        program.write_text(PRELUDE + textwrap.dedent(text))
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
        done = subprocess.run(
            [sys.executable, "-W", "error", str(program)], env=environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run_program


def test_every_form_of_import_gives_our_module(run: Callable[[str], None]) -> None:
    run(
        """
        compat.install("pymor.tools.mpi")
        import pymor.tools.mpi
        import pymor.tools.mpi as third
        from pymor.tools import mpi as first
        import pymor.tools.other as other
        second = importlib.import_module("pymor.tools.mpi")
        for module in (first, second, third, pymor.tools.mpi, other.mpi, other.again, sys.modules["pymor.tools.mpi"]):
            assert module is objects, module
        from pymor.tools.mpi import ObjectId
        assert ObjectId is objects.ObjectId
        assert events == ["registered"], events
        """
    )


@pytest.mark.parametrize("statement", ["import pymor.tools.mpi as m", "from pymor.tools import mpi as m"])
def test_first_import_in_any_form(run: Callable[[str], None], statement: str) -> None:
    run(
        f"""
        compat.install("pymor.tools.mpi")
        {statement}
        assert m is objects
        """
    )


def test_our_module_stays_itself(run: Callable[[str], None]) -> None:
    run(
        """
        def identity(module):
            return [getattr(module, name) for name in ("__name__", "__spec__", "__loader__", "__package__", "__file__")]
        before = identity(objects), identity(vm), identity(vm.base)
        compat.install("pymor.tools.mpi", "pyopus.parallel.mpi")
        import pymor.tools.mpi, pyopus.parallel.mpi, pyopus.parallel.base
        assert (identity(objects), identity(vm), identity(vm.base)) == before
        assert objects.__spec__.name == "taskfarm.objects"
        import pickle
        assert b"pymor" not in pickle.dumps(objects.ObjectId)
        """
    )


def test_ranks_part_at_the_first_import_and_not_with_the_message_classes(run: Callable[[str], None]) -> None:
    run(
        """
        compat.install("pyopus.parallel.mpi")
        assert events == []
        from pyopus.parallel.base import MsgTaskExit
        import pyopus.parallel.base as base
        assert base is vm.base and MsgTaskExit is vm.base.MsgTaskExit
        assert events == []
        from pyopus.parallel.mpi import MPI
        import pyopus.parallel.mpi
        assert MPI is vm.MPI and pyopus.parallel.mpi is vm
        assert events == ["parted"], events
        """
    )


def test_module_is_complete_while_a_worker_is_inside_its_import(run: Callable[[str], None]) -> None:
    run(
        """
        def work():
            import pyopus.parallel.mpi
            from pyopus.parallel import mpi
            import pyopus.parallel.mpi as third
            assert pyopus.parallel.mpi is mpi is third is vm
            assert not getattr(vm.__spec__, "_initializing", False)
            events.append("worked")
            raise SystemExit(0)
        vm.MPI.spawnerBarrier = staticmethod(work)
        compat.install("pyopus.parallel.mpi")
        for attempt in range(2):
            try:
                import pyopus.parallel.mpi
            except SystemExit as exc:
                assert exc.code == 0
        assert events == ["worked", "worked"], events
        assert not hasattr(sys.modules["pyopus.parallel"], "mpi")
        """
    )


def test_unknown_and_late_names_are_refused_and_change_nothing(run: Callable[[str], None]) -> None:
    run(
        """
        before = list(sys.meta_path)
        text = refuses("pymor.tools.mpi", "numpy")
        assert "'numpy'" in text and "pymor.tools.mpi" in text and "pyopus.parallel.mpi" in text
        import pyopus.parallel.base
        text = refuses("pyopus.parallel.mpi")
        assert "pyopus.parallel.base was imported already" in text and "taskfarm run --replace" in text
        assert sys.meta_path == before and compat.installed() == {}
        """
    )


def test_repeating_is_harmless_and_a_module_bound_by_hand_is_accepted(run: Callable[[str], None]) -> None:
    run(
        """
        before = len(sys.meta_path)
        compat.install()
        assert len(sys.meta_path) == before
        sys.modules["pymor.tools.mpi"] = objects
        compat.install("pymor.tools.mpi")
        compat.install("pymor.tools.mpi", "pyopus.parallel.mpi")
        import pyopus.parallel.mpi
        compat.install("pyopus.parallel.mpi")
        assert len(sys.meta_path) == before + 1
        assert compat.installed() == {
            "pymor.tools.mpi": "taskfarm.objects",
            "pyopus.parallel.mpi": "taskfarm.vm",
            "pyopus.parallel.base": "taskfarm.vm.base",
        }
        """
    )


def test_other_modules_of_the_host_are_its_own(run: Callable[[str], None]) -> None:
    run(
        """
        compat.install("pymor.tools.mpi", "pyopus.parallel.mpi")
        import pymor.tools.other
        assert pymor.tools.other.__file__.endswith("other.py")
        assert events == ["registered"]
        """
    )
