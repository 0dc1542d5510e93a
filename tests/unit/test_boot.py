"""A program run by us and one run by the interpreter cannot tell the difference."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = "import sys\nfrom taskfarm.runtime.launching.boot import {} as run\nsys.exit(run(sys.argv[1], sys.argv[2:]))"
RUN_SCRIPT, RUN_MODULE = RUN.format("run_script"), RUN.format("run_module")

SHOW = """
    import __main__, sys
    assert __main__ is sys.modules["__main__"] and vars(__main__) is globals()
    shown = ["__name__", "__file__", "__package__", "__doc__", "__cached__"]
    print([globals().get(name, "missing") for name in shown])
    print(sys.argv, sys.path[0], __spec__ and (__spec__.name, __spec__.origin), type(__loader__).__name__)
    print(type(__builtins__), __annotations__ if "__annotations__" in globals() else {})
"""

PROGRAMS = {
    "show": SHOW,
    "returns": "print('done')",
    "exit_none": "import sys; sys.exit()",
    "exit_3": "import sys; sys.exit(3)",
    "exit_negative": "import sys; sys.exit(-1)",
    "exit_300": "import sys; sys.exit(300)",
    "exit_true": "import sys; sys.exit(True)",
    "exit_text": "import sys; sys.exit('bad news')",
    "raises": "def f(x):\n    return 1 / x\n\nf(0)\n",
    "raises_chained": "try:\n    {}['k']\nexcept KeyError as exc:\n    raise ValueError('v') from exc\n",
    "syntax_error": "x = (\n",
    "own_hook": "import sys\nsys.excepthook = lambda t, v, tb: print(t, v, tb.tb_lineno)\nraise ValueError('v')\n",
    "broken_hook": "import sys\nsys.excepthook = lambda t, v, tb: 1 / 0\nraise ValueError('v')\n",
    "annotations": "def f(x: 1 + 1) -> 2: ...\nprint(f.__annotations__)\n",
    "late_lookup": "import atexit\nvalue = 5\natexit.register(lambda: print(value))\n",
}


def outcome(words: list[str], folder: Path) -> tuple[int, str, str]:
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_script(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "program.py").write_text(textwrap.dedent(PROGRAMS[name]))
    script = os.path.join("sub", "program.py")
    assert outcome(["-c", RUN_SCRIPT, script, "a", "-b"], tmp_path) == outcome([script, "a", "-b"], tmp_path)


@pytest.mark.parametrize("name", ["show", "exit_3", "raises"])
def test_module(tmp_path: Path, name: str) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAMS[name]))
    status, out, err = outcome(["-m", "program", "a"], tmp_path)
    own = outcome(["-c", RUN_MODULE, "program", "a"], tmp_path)
    err = "".join(line for line in err.splitlines(keepends=True) if "runpy" not in line)
    assert own == (status, out, err)


def test_package_and_its_modules(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    for name in ("__init__", "__main__", "module"):
        (package / f"{name}.py").write_text(textwrap.dedent(SHOW) if name != "__init__" else "")
    for name in ("package", "package.module"):
        assert outcome(["-c", RUN_MODULE, name], tmp_path) == outcome(["-m", name], tmp_path)


def test_folder_archive_and_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__main__.py").write_text(textwrap.dedent(SHOW))
    with zipfile.ZipFile(tmp_path / "program.pyz", "w") as archive:
        archive.writestr("__main__.py", "import sys; print(__file__, sys.argv, sys.path[0], __package__)")
    (tmp_path / "link.py").symlink_to(tmp_path / "folder" / "__main__.py")
    for name in ("folder", "program.pyz", "link.py"):
        assert outcome(["-c", RUN_SCRIPT, name, "a"], tmp_path) == outcome([name, "a"], tmp_path)


def test_missing_programs(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "faulty").mkdir()
    (tmp_path / "faulty" / "__init__.py").write_text("import nowhere_to_be_found")
    status, _, err = outcome(["-c", RUN_SCRIPT, "nowhere.py"], tmp_path)
    assert status == 2
    assert "can't open file" in err
    for name in ("nowhere", "nowhere.module", "package", "package.module", "os.module"):
        status, _, err = outcome(["-c", RUN_MODULE, name], tmp_path)
        assert (status, err.count("\n")) == (1, 1)
        assert f"no module named {name} " in err
    status, _, err = outcome(["-c", RUN_MODULE, "faulty.module"], tmp_path)
    assert status == 1
    assert "No module named 'nowhere_to_be_found'" in err


def test_interrupt_is_reported_as_a_shell_does(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("raise KeyboardInterrupt\n")
    status, _, err = outcome(["-c", RUN_SCRIPT, "program.py"], tmp_path)
    assert status == 130
    assert err.endswith("KeyboardInterrupt\n")


def test_main_module_stays(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("def f():\n    return value\nvalue = 7\n")
    code = (
        "import sys; from taskfarm.runtime.launching.boot import run_script\n"
        "assert run_script('program.py', [], {'value': 5, 'extra': 6}) == 0\n"
        "import __main__; assert __main__.f() == 7 and __main__.extra == 6\n"
    )
    assert outcome(["-c", code], tmp_path) == (0, "", "")


def test_callers_folder_may_stay_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "program.py").write_text("import sys; print(sys.path[:2])")
    code = "from taskfarm.runtime.launching.boot import run_script as r; r('sub/program.py', [], keep_path=True)"
    assert outcome(["-c", code], tmp_path)[1] == f"{[str(tmp_path / 'sub'), '']}\n"
