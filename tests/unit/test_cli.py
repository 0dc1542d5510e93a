"""The command line: what belongs to the program, what is refused and how, and what is executed. Nothing is launched."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from taskfarm.cli import main, run
from taskfarm.cli._arguments import split_program
from taskfarm.runtime.launching.launchers import Situation
from taskfarm.runtime.launching.libmpi import SearchPaths

REPOSITORY = Path(__file__).resolve().parents[2]


Launches = list[tuple[Sequence[str], Mapping[str, str]]]  # command and environment


class Replaced(Exception):
    """Raised where the process would have become another program."""


@pytest.fixture(autouse=True)
def outside_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PMI_", "PMIX_", "OMPI_", "SLURM_", "MPI4PY_")):
            monkeypatch.delenv(name)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launches:
    """Give the command line an environment with Open MPI's wheel, and record what it would become."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libmpi.so.40").write_bytes(b"\x7fELF....MPI_Get_version....ompi_mpi_comm_self")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mpiexec").write_bytes(b"")
    (tmp_path / "bin" / "mpiexec").chmod(0o755)
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "MPI.openmpi.so").write_bytes(b"")
    paths = SearchPaths(sys.executable, (str(tmp_path),), str(tmp_path / "mpi4py"))

    def here() -> Situation:
        return Situation(dict(os.environ), paths, 2, False, str(tmp_path), lambda _: (0, "mpiexec (Open MPI) 5.0.11"))

    commands: Launches = []

    def execvpe(file: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        commands.append((command, environ))
        raise Replaced

    monkeypatch.setattr(Situation, "here", staticmethod(here))
    monkeypatch.setattr(run, "interpreter_flags", list)
    monkeypatch.setattr(os, "execvpe", execvpe)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("")
    return commands


@pytest.mark.parametrize(
    ("words", "options", "program"),
    [
        (["s.py"], [], ["s.py"]),
        (["-n", "4", "s.py", "-n", "5", "-v"], ["-n", "4"], ["s.py", "-n", "5", "-v"]),
        (["-n4", "-v", "-m", "mod", "-x"], ["-n4", "-v"], ["-m", "mod", "-x"]),
        (["-mmod", "-x"], [], ["-m", "mod", "-x"]),
        (
            ["--mpiexec", "mpiexec -l", "--replace", "a", "s.py"],
            ["--mpiexec", "mpiexec -l", "--replace", "a"],
            ["s.py"],
        ),
        (["--mpiexec=-x", "s.py"], ["--mpiexec=-x"], ["s.py"]),
        (["-v", "--", "-s.py", "-m"], ["-v"], ["./-s.py", "-m"]),
        (["-v", "-n"], ["-v", "-n"], []),
        (["-h"], ["-h"], []),
    ],
)
def test_what_follows_the_program_is_the_programs(words: list[str], options: list[str], program: list[str]) -> None:
    assert split_program(words) == (options, program)


def test_run_becomes_the_launcher(launched: Launches) -> None:
    with pytest.raises(Replaced):
        main(["run", "-n", "3", "--replace", "pymor.tools.mpi", "script.py", "a", "-n"])
    ((command, environ),) = launched
    mpiexec = os.path.join(os.getcwd(), "bin", "mpiexec")
    rank = [sys.executable, "-m", "taskfarm.cli.rank", "--replace", "pymor.tools.mpi", "script.py", "a", "-n"]
    assert list(command) == [mpiexec, "-n", "3", *rank]
    assert environ["OMPI_MCA_btl"] == "^ofi"
    assert environ["PATH"] == os.environ["PATH"]


def test_verbose_prints_one_line_that_a_shell_would_run(launched: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Replaced):
        main(["run", "-v", "-n", "2", "script.py", "a b"])
    captured = capsys.readouterr()
    assert captured.out == ""
    prefix, _, line = captured.err.partition(": ")
    assert prefix == "taskfarm run"
    words = shlex.split(line)
    assert words[0] == "env"
    assert words[-len(launched[0][0]) :] == list(launched[0][0])


def test_dry_run_prints_and_does_nothing(launched: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--dry-run", "-m", "json.tool"]) == 0
    assert capsys.readouterr().out.endswith(
        "-n 3 " + shlex.join([sys.executable, *["-m", "taskfarm.cli.rank", "-m", "json.tool"]]) + "\n"
    )
    assert main(["run", "--print-command", "script.py"]) == 0
    assert launched == []


def test_a_script_that_only_one_process_can_read(launched: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    """Ranks above 0 would read nothing, and rank 0 wait for them; a file behind such a name is taken itself."""
    os.mkfifo("pipe")
    assert main(["run", "pipe"]) == 2
    reader, writer = os.pipe()
    assert main(["run", f"/dev/fd/{reader}"]) == 2
    os.close(reader)
    os.close(writer)
    assert capsys.readouterr().err.count("is no file that every rank could read") == 2
    assert launched == []
    with open("script.py") as file, pytest.raises(Replaced):
        main(["run", f"/dev/fd/{file.fileno()}", "a"])
    assert list(launched[0][0][-2:]) == [os.path.realpath("script.py"), "a"]


def test_the_trace_goes_where_the_user_stands(launched: Launches, tmp_path: Path) -> None:
    """A script that changes its directory, or starts elsewhere, does not take the file with it."""
    with pytest.raises(Replaced):
        main(["run", "--trace", "run.json", "script.py", "--trace", "of the script"])
    ((command, _),) = launched
    setting = ["--set", f"TASKFARM_TRACE={tmp_path / 'run.json'}"]
    assert list(command[-5:]) == [*setting, "script.py", "--trace", "of the script"]
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["run", "--ipython", "script.py"], ["takes the place of a program", "'script.py'"]),
        (["run", "--trace", "no/where.json", "script.py"], ["--trace no/where.json", "cannot be written"]),
        (["trace", "nowhere.json"], ["nowhere.json", "cannot be read"]),
        (["trace", "script.py"], ["script.py", "is not a trace"]),
        (["run"], ["nothing to run", "script"]),
        (["run", "-m"], ["nothing to run"]),
        (["run", "nowhere.py"], ["'nowhere.py'", "does not exist", os.sep]),
        (["run", "lib"], ["'lib'", "__main__.py"]),
        (["run", "-m", "nowhere.x"], ["-m 'nowhere.x'", "no module named 'nowhere'"]),
        (["run", "--replace", "numpy", "script.py"], ["--replace 'numpy'", "pymor.tools.mpi"]),
        (["run", "--mpiexec", "nowhere", "script.py"], ["--mpiexec 'nowhere'", "no such command"]),
        (["info", "-n", "2", "--mpiexec", "nowhere"], ["--mpiexec 'nowhere'"]),
    ],
)
def test_wrong_arguments_are_one_clear_error(
    launched: Launches, capsys: pytest.CaptureFixture[str], words: list[str], parts: list[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"taskfarm {words[0]}: error: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error
    assert launched == []


@pytest.mark.parametrize("n", ["0", "-1", "two", "1.5", ""])
def test_number_of_ranks_is_checked(capsys: pytest.CaptureFixture[str], n: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "-n", n, "script.py"])
    assert caught.value.code == 2
    assert "argument -n" in capsys.readouterr().err


def test_inside_a_job_the_program_runs_on_this_rank(
    launched: Launches, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    calls: list[tuple[Sequence[str], Sequence[str], Mapping[str, str], bool]] = []

    def run_on_this_rank(
        replaced: Sequence[str], program: Sequence[str], settings: Mapping[str, str], *, survive: bool
    ) -> None:
        calls.append((replaced, program, settings, survive))
        raise Replaced

    monkeypatch.setattr("taskfarm.cli.rank.run_on_this_rank", run_on_this_rank)
    for words in ([], ["-n", "4", "--isolate"], ["--survive", "--tag", "gpu=1"]):
        with pytest.raises(Replaced):
            main(["run", "--replace", "pymor.tools.mpi", *words, "script.py", "a"])
    expected = [({}, False), ({"TASKFARM_ISOLATE": "1"}, False), ({"TASKFARM_RANK_TAGS": "gpu=1"}, True)]
    assert calls == [(["pymor.tools.mpi"], ["script.py", "a"], *rest) for rest in expected]
    assert main(["run", "-n", "5", "script.py"]) == 2
    assert "-n 5: this process is one of 4 ranks" in capsys.readouterr().err
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    with pytest.raises(SystemExit):
        main(["run", "-n", "5", "script.py"])
    assert capsys.readouterr().err == ""
    assert launched == []


def test_launcher_of_another_mpi_is_explained(
    launched: Launches, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PMI_SIZE", "4")
    assert main(["run", "script.py"]) == 2
    assert "4 separate worlds of one rank" in capsys.readouterr().err


def python(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_module_and_version() -> None:
    done = python("-m", "taskfarm", "--version")
    assert (done.returncode, done.stdout) == (0, "taskfarm 0.1.0\n")
    assert python("-m", "taskfarm").returncode == 2
    assert "script.py" in python("-m", "taskfarm", "run", "--help").stdout


def test_launching_process_imports_neither_numpy_nor_mpi4py() -> None:
    code = (
        "import sys; from taskfarm.cli import main; main(['run', '--dry-run', '-m', 'this'])\n"
        "print(sorted({'numpy', 'mpi4py', 'cloudpickle'} & set(sys.modules)))"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")


def test_program_of_a_rank_starts_before_mpi4py_is_imported(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sorted({'numpy', 'mpi4py', 'taskfarm.runtime.session'} & set(sys.modules)))")
    done = python("-m", "taskfarm.cli.rank", str(script))
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_stand_in_runs_as_a_module(tmp_path: Path) -> None:
    code = (
        "import sys; from taskfarm.runtime import ending; from taskfarm.runtime.launching import boot\n"
        "from taskfarm.cli.rank import run_on_this_rank\n"
        "boot.run_module = lambda *words: print(words) or 0\n"
        "run_on_this_rank(['pymor.tools.mpi'], ['-m', 'pymor.tools.mpi', 's.py'], {})"
    )
    assert python("-c", code).stdout == "('taskfarm.objects', ['s.py'])\n"


def test_info_says_what_is_missing() -> None:
    done = python("-S", "-m", "taskfarm", "info")
    assert done.returncode == 1
    assert "mpi4py          not installed" in done.stdout
    assert "pip install mpi4py mpich" in done.stdout


def test_a_reader_that_has_enough_is_no_error() -> None:
    """``taskfarm bench --list | head -1`` prints no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "taskfarm", "bench", "--list"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
