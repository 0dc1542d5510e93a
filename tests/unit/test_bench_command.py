"""The command ``taskfarm bench``: what is refused and how, which rows are chosen, what is done with what was found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from taskfarm.bench import jobs, launcher, peers, pools
from taskfarm.bench.measure import OURS, PEERS, RAW, ContenderLost, Contenders, Row, Setting, Target, Unit, measure
from taskfarm.bench.rows import RANKS, all_rows, launching, worker_numbers
from taskfarm.bench.works import ECHO, NOOP, NOOPS
from taskfarm.cli import bench, main

REPOSITORY = Path(__file__).resolve().parents[2]
PLAN = SimpleNamespace(library=SimpleNamespace(describe=lambda: "MPICH"))  # where nothing is launched


@pytest.fixture(autouse=True)
def outside_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PMI_", "PMIX_", "OMPI_", "SLURM_")):
            monkeypatch.delenv(name)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[jobs.Request]:
    """Measure nothing, but note what would be measured."""
    made: list[jobs.Request] = []

    def measure_all(request: jobs.Request) -> tuple[dict[str, Any], list[str]]:
        made.append(request)
        row = Row("task", "about", [2], Unit("us"), lambda _: {OURS: lambda n: 2.0, RAW: lambda n: 1.0}, Target(3.0))
        environment = {"taskfarm": "0.1.0", "mpi": "MPICH", "mpi4py": "4.1", "python": "3.11", "cores": 2}
        return {"environment": environment, "rows": {"task/2": measure(row, Setting(2))}}, []

    monkeypatch.setattr(jobs, "measure_all", measure_all)
    return made


# The rows


def test_every_row_can_be_told_apart() -> None:
    """A name at a number of ranks is one row, says what it measures, and has at least five rounds or just one."""
    rows = all_rows(16)
    keys = [(row.name, n_ranks) for row in rows for n_ranks in row.ranks]
    assert len(keys) == len(set(keys))
    assert all(row.about and (row.rounds >= 3 or row.rounds == 1) for row in rows)
    assert {n_ranks for row in all_rows(2) if not row.launches for n_ranks in row.ranks} == set(RANKS)


def test_scaling_needs_four_cores() -> None:
    """The rows about scaling go up to a worker on each core but one."""
    assert not [row for row in all_rows(3) if row.name.startswith("scaling")]
    scaling = [row for row in all_rows(16) if row.name.startswith("scaling")]
    assert [row.ranks for row in scaling] == [[2, 3, 5, 9, 16]] * 3
    assert [worker_numbers(n) for n in (1, 2, 3, 4, 7)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 7]]


def test_rows_are_chosen_by_name_and_ranks() -> None:
    """A name may be a pattern; numbers of ranks narrow the choice."""

    def names(*words: str, ranks: tuple[int, ...] = ()) -> list[str]:
        return [f"{row.name}/{n_ranks}" for row, n_ranks in jobs.chosen_rows(words, ranks, 2)]

    assert names("task") == ["task/2"]
    assert names("noop_tasks", "task", ranks=(3,)) == ["noop_tasks/3"]
    assert names("call*", "startup") == ["call_noop/2", "call_noop/4", "startup/4"]
    assert names("array_*_call") == [f"array_{size}_call/2" for size in ("1MB", "8MB", "64MB", "512MB")]
    assert len(names()) == sum(len(row.ranks) for row in all_rows(2))


# What is refused


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--only", "nothing"], ["--only 'nothing'", "no such row", "noop_tasks, task, echo_1MB", "crowd"]),
        (["--only", "task", "--only", "calls"], ["--only 'calls'"]),
        (["--ranks", "7"], ["--ranks 7", "--list"]),
        (["--only", "task", "--ranks", "3", "4"], ["--ranks 3 4"]),
        (["--json", "nowhere/bench.json"], ["--json nowhere/bench.json", "cannot be written", "No such file"]),
        (["--plot", "."], ["--plot .", "cannot be written", "directory"]),
    ],
)
def test_wrong_arguments_are_one_clear_error_before_anything_is_measured(
    requests: list[jobs.Request],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    parts: list[str],
) -> None:
    """What is wrong is said at once, not after ten minutes."""
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("taskfarm bench: error: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error
    assert requests == []
    assert list(tmp_path.iterdir()) == []


def test_a_picture_needs_matplotlib(
    requests: list[jobs.Request], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is named, before anything is measured."""
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert main(["bench", "--plot", str(tmp_path / "bench.png")]) == 2
    assert "pip install 'taskfarm[bench]'" in capsys.readouterr().err
    assert requests == []


def test_inside_a_job_it_is_refused(
    requests: list[jobs.Request], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts jobs, so it is no program for a launcher."""
    monkeypatch.setenv("PMI_SIZE", "2")
    assert main(["bench", "--only", "task"]) == 2
    assert "without a launcher" in capsys.readouterr().err
    assert requests == []


@pytest.mark.parametrize("words", [["--ranks", "0"], ["--ranks"], ["--fast"], ["task"]])
def test_the_grammar_is_checked(words: list[str]) -> None:
    """What is no option is refused by the parser."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", *words])
    assert caught.value.code == 2


# What is done


def test_the_list_names_every_row(requests: list[jobs.Request], capsys: pytest.CaptureFixture[str]) -> None:
    """Name, meaning, numbers of ranks, unit and target, without measuring."""
    assert main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [row.name for row in all_rows(os.cpu_count() or 1)]
    assert lines[1].split(maxsplit=1)[1].startswith("empty tasks")
    assert "target <= 6 x raw" in next(line for line in lines if line.startswith("task "))
    assert requests == []


def test_results_are_printed_and_written(
    requests: list[jobs.Request], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Table, JSON and picture hold the same results; an older file is replaced."""
    pytest.importorskip("matplotlib")
    (tmp_path / "bench.json").write_text("old")
    words = ["--quick", "--only", "task", "--mpiexec", "mpiexec -l", "--json", str(tmp_path / "bench.json")]
    assert main(["bench", *words, "--plot", str(tmp_path / "bench.png")]) == 0
    (request,) = requests
    assert ([row.name for row, _ in request.rows], request.quick, request.mpiexec) == (["task"], True, "mpiexec -l")
    assert "task/2" in capsys.readouterr().out
    assert json.loads((tmp_path / "bench.json").read_text())["rows"]["task/2"]["ratio"] == {RAW: 2.0}
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("program", "row", "reason"), [("raise SystemExit(3)", "task", "failed, status 3"), ("", "", "")]
)
def test_a_job_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str, row: str, reason: str
) -> None:
    """The command goes on, says which row the job was at, and ends with status 1."""
    monkeypatch.setattr(jobs, "run_words", lambda *words: [sys.executable, "-c", program])
    monkeypatch.setattr(jobs, "plan_launch", lambda *words: PLAN)
    assert main(["bench", "--only", "task"]) == (1 if row else 0)
    error = capsys.readouterr().err
    assert reason in error
    assert f"at {row}" in error or not row


def test_a_row_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """No job outlives its time limit, what it found until then stays, and the rows behind get another job."""
    monkeypatch.setattr(jobs, "JOB_TIMEOUT_S", 1.0)
    monkeypatch.setattr(jobs, "plan_launch", lambda *words: PLAN)

    def words(n_ranks: int, mpiexec: str | None, program: list[str]) -> list[str]:
        found = json.dumps({"mpi": "X", "rows": {program[-3]: {}} if program[-3] == "task" else {program[-1]: {}}})
        sleep = 60 if program[-3] == "task" else 0
        return [sys.executable, "-c", f"import time; open({program[2]!r}, 'w').write({found!r}); time.sleep({sleep})"]

    monkeypatch.setattr(jobs, "run_words", words)
    found, failures = jobs.measure_all(jobs.Request(jobs.chosen_rows(["task", "message_0B", "message_1kB"], [], 2)))
    assert found["rows"] == {"task/2": {}, "message_1kB/2": {}}
    assert failures == ["the job with 2 ranks did not end in 1 s, at message_0B"]


def test_a_launching_row_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of a row's own that fails does not take the other rows with it."""

    def fail(setting: Setting) -> Contenders:
        raise RuntimeError("status 9: mpiexec")

    def works(setting: Setting) -> Contenders:
        return {OURS: lambda n: 1.0}

    monkeypatch.setattr(jobs, "plan_launch", lambda *words: PLAN)
    rows = [(Row(name, "", [2], Unit("s"), make, launches=True), 2) for name, make in (("a", fail), ("b", works))]
    found, failures = jobs.measure_all(jobs.Request(rows))
    assert list(found["rows"]) == ["b/2"]
    assert failures == ["a: status 9: mpiexec"]


def test_the_command_does_not_start_mpi() -> None:
    """The table of rows can be read without MPI."""
    code = "import sys, taskfarm.cli.bench; print(sorted(name for name in sys.modules if name.startswith('mpi4py')))"
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


# Jobs of their own


def test_the_last_rank_counts() -> None:
    """The time is that of the last rank, and a rank that does not report is an error."""
    report = "import time; print('at', time.time()); print('at', time.time() + 100.0)"
    seconds = launching._until_last([sys.executable, "-c", report], {}, 2)
    assert 100.0 < seconds(1) < 130.0
    with pytest.raises(RuntimeError, match="2 of 3 ranks"):
        launching._until_last([sys.executable, "-c", report], {}, 3)(1)
    with pytest.raises(RuntimeError, match="status 4"):
        launcher.output_of([sys.executable, "-c", "raise SystemExit(4)"])


def test_a_job_runs_on_the_cores_that_are_named() -> None:
    """The crowd has as few cores as the row says; the command keeps its own."""
    mine = os.sched_getaffinity(0)
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    assert launcher.output_of([sys.executable, "-c", code], cpus=[min(mine)]) == f"[{min(mine)}]\n"
    assert os.sched_getaffinity(0) == mine


# Pools beside MPI


def test_pools_find_no_trace_of_the_job() -> None:
    """A process that found a launcher's variables might take itself for a rank."""
    ours = {"PATH": "/bin", "HOME": "/", "OMP_NUM_THREADS": "1", "PYTHONPATH": "x"}
    job = {"PMI_RANK": "0", "PMIX_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "MPI4PY_RC": "x"}
    assert peers.outside_mpi(ours | job) == ours


def test_every_pool_is_a_peer() -> None:
    """Names in the tables and in the programs are the same."""
    assert set(pools.POOLS) < set(PEERS)


@pytest.mark.parametrize("name", list(pools.POOLS))
def test_pools_do_their_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pool that is installed does each work in a process of its own, and ends with it."""
    if find_spec(pools.POOLS[name][0]) is None:  # not imported here: distributed changes how exceptions are pickled
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("PMI_RANK", "0")
    with peers.PoolProcess(name, Setting(3, cpus=sorted(os.sched_getaffinity(0)))) as process:
        assert all(process.seconds(work, 2) > 0.0 for work in (NOOPS, NOOP, ECHO))
        pid = process._process.pid
    assert not Path(f"/proc/{pid}").exists()


def test_a_pool_that_fails_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row goes on without it, and holds what the process said at its end."""
    monkeypatch.setattr(peers, "find_spec", lambda name: True if name == "multiprocessing" else None)
    monkeypatch.setattr(peers, "POOLS", {"no such pool": pools.POOLS["mp.Pool"]})
    setting = Setting(2)
    assert peers.contenders(setting, NOOP) == {}
    assert setting.left_out["no such pool"].endswith("KeyError: 'no such pool'")


def test_a_pool_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process does not keep the others waiting, and does not stay."""
    monkeypatch.setattr(peers, "_ANSWER_S", 0.0)
    process = peers.PoolProcess("mp.Pool", Setting(2))
    with pytest.raises(ContenderLost, match="did not answer"):
        process.seconds(NOOP, 1)
    with pytest.raises(ProcessLookupError):
        os.killpg(process._process.pid, 0)


def test_peers_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are named, with the extra that installs them."""
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    setting = Setting(2)
    assert peers.contenders(setting, NOOP) == {}
    assert set(setting.left_out) == set(PEERS)
    assert all("taskfarm[bench]" in reason for reason in setting.left_out.values())
