"""Every example runs, on 4 ranks and on fewer, and prints the right numbers."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from harness import REPOSITORY, Launch, Result

EXAMPLES = REPOSITORY / "examples"
TIMEOUT_S = 180  # they take some seconds; an environment that was just made compiles scipy and sklearn first
RUN = "taskfarm run"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Variances of the principal components of the digits, from numpy.linalg.svd.
VARIANCES = [179.0069, 163.7177, 141.7884, 101.1004, 69.5132, 59.1085, 51.8845, 44.0151, 40.3110, 37.0118]


def numbers(pattern: str, text: str) -> list[float]:
    """Return the numbers that the group of `pattern` matches, line by line."""
    return [float(match) for match in re.findall(pattern, text, re.MULTILINE)]


def test_every_example_is_tested() -> None:
    """A new example needs a test here."""
    text = Path(__file__).read_text()
    assert [path.name for path in sorted(EXAMPLES.glob("*.py")) if f'"{path.name}"' not in text] == []


@pytest.mark.parametrize("n", [1, 2, 4])
def test_collective_pca(run_mpi: Launch[Result], n: int) -> None:
    """The distributed iteration gives the variances that numpy gives."""
    pytest.importorskip("sklearn")
    result = run_mpi(EXAMPLES / "collective_pca.py", n, launcher=RUN, timeout_s=TIMEOUT_S).check(0)
    assert numbers(r"^ +\d+ +([\d.]+) +[\d.]+%", result.stdout) == VARIANCES
    assert numbers(r"difference of a variance: (\S+)", result.stdout)[0] < 1e-12
    assert numbers(r"component's entry: (\S+)", result.stdout)[0] < 1e-9
    assert result.stdout.splitlines()[-1] == "the distributed result agrees with numpy.linalg.svd"
    rows = re.search(r"rows on each rank: \[(.*)\]", result.stdout)
    assert rows is not None
    counts = [int(word) for word in rows[1].split(", ")]
    assert (len(counts), sum(counts)) == (n, 1797)


def test_collective_pca_under_other_launchers(run_mpi: Launch[Result]) -> None:
    """The same program under the bare ``mpiexec``."""
    pytest.importorskip("sklearn")
    result = run_mpi(EXAMPLES / "collective_pca.py", 2, args=["--components", "3"], timeout_s=TIMEOUT_S).check(0)
    assert numbers(r"^ +\d+ +([\d.]+) +[\d.]+%", result.stdout) == VARIANCES[:3]


def test_parameter_sweep(run_mpi: Launch[Result], tmp_path: Path) -> None:
    """The sweep finds the best pair; the last line is the path of the picture, which is there."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    args = ["--C", "0.1", "1", "10", "--gamma", "1e-4", "1e-3", "1e-2", "--out", str(tmp_path / "out")]
    result = run_mpi(EXAMPLES / "parameter_sweep.py", 4, launcher=RUN, args=args, timeout_s=TIMEOUT_S).check(0)
    rows = re.findall(r"^ +(0\.1|1|10)((?: +[\d.]+){3})$", result.stdout, re.MULTILINE)
    table = {C: [float(word) for word in errors.split()] for C, errors in rows}
    # The folds are drawn with a fixed seed; scikit-learn may change their making between versions.
    expected = {"0.1": [11.30, 3.73, 87.15], "1": [2.62, 1.00, 17.25], "10": [1.34, 0.89, 16.25]}
    assert table.keys() == expected.keys()
    for C, errors in table.items():
        assert errors == pytest.approx(expected[C], rel=0.3), result.stdout
    *_, best, picture = result.stdout.splitlines()
    assert best == "best: C = 10, gamma = 0.001"
    assert "rank 0 alone gets the same" in result.stdout
    path = Path(picture.removeprefix("picture: "))
    assert path == tmp_path / "out" / "parameter_sweep.png"
    assert path.read_bytes().startswith(PNG_SIGNATURE)
    assert path.stat().st_size > 20_000


@pytest.mark.parametrize("n", [2, 4])
def test_both_faces(run_mpi: Launch[Result], n: int) -> None:
    """Tasks learn on the parts that a collective call made, another one judges them."""
    pytest.importorskip("sklearn")
    result = run_mpi(EXAMPLES / "both_faces.py", n, launcher=RUN, timeout_s=TIMEOUT_S).check(0)
    right = numbers(r"(\d+) right", result.stdout)
    assert len(right) == n  # a model of each worker, and their majority
    assert min(right) > 0.95 * 600
    assert result.stdout.splitlines()[-1] == "check: one process alone counts the same"


@pytest.mark.parametrize(("n", "rounds"), [(2, 1), (4, 3), (4, 5)])
def test_messages(run_mpi: Launch[Result], n: int, rounds: int) -> None:
    """Every array arrives, however many times around."""
    args = ["--size", "50", "--rounds", str(rounds)]
    result = run_mpi(EXAMPLES / "messages.py", n, launcher=RUN, args=args, timeout_s=TIMEOUT_S).check(0)
    assert f"moved {50 * rounds * (n - 1)} MB" in result.stdout
    assert numbers(r"s: (\d+) MB/s", result.stdout)[0] > 0
    assert result.stdout.splitlines()[-1] == f"arrays that arrived as expected: {n - 1} of {n - 1}"


@pytest.mark.parametrize("name", ["parameter_sweep.py", "both_faces.py", "messages.py"])
def test_without_workers(run_mpi: Launch[Result], name: str) -> None:
    """Started without a launcher, a program that needs workers says how to start it."""
    if name != "messages.py":
        pytest.importorskip("sklearn")
    result = run_mpi(EXAMPLES / name, 1, launcher="plain", timeout_s=TIMEOUT_S).check(2)
    assert "there are no workers; start it with: taskfarm run -n 4" in result.stderr


@pytest.mark.parametrize(
    ("launcher", "layer"),
    [
        ("mpiexec", "pymor.tools.mpi"),
        ("taskfarm run --replace pymor.tools.mpi", "taskfarm.objects"),
    ],
)
def test_pymor_thermal_block(run_mpi: Launch[Result], launcher: str, layer: str) -> None:
    """An unmodified pyMOR program gives the same numbers on pyMOR's own module and on ours."""
    pytest.importorskip("pymor", exc_type=ImportError)
    path = EXAMPLES / "pymor_thermal_block.py"
    result = run_mpi(path, 4, launcher=launcher, args=["--grid", "20"], timeout_s=TIMEOUT_S).check(0)
    assert f"4 ranks, object layer: {layer}" in result.stdout
    norms = re.search(r"one solution: (\S+), by the model wrapped for MPI: (\S+)", result.stdout)
    assert norms is not None and norms[1] == norms[2]
    estimates = numbers(r"largest estimated error (\S+)", result.stdout)
    assert estimates == sorted(estimates, reverse=True)
    assert len(estimates) == 5
    assert "every error below its estimate: True" in result.stdout
    assert result.stdout.splitlines()[-1] == "the parallel result agrees with the serial one"


def test_pymor_example_imports_pymor_only() -> None:
    """It is an ordinary pyMOR program."""
    text = (EXAMPLES / "pymor_thermal_block.py").read_text()
    modules = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    assert modules - set(sys.stdlib_module_names) == {"pymor"}


@pytest.mark.parametrize(("n", "launcher"), [(1, "plain"), (2, RUN), (4, RUN)])
def test_executor_first_steps(run_mpi: Launch[Result], n: int, launcher: str) -> None:
    """Every part of the page prints what it should, on ranks and on processes."""
    result = run_mpi(EXAMPLES / "executor_first_steps.py", n, launcher=launcher, timeout_s=TIMEOUT_S).check(0)
    first, pi, again, roots, failed, from_asyncio = result.stdout.splitlines()
    assert first == "2 ** 10 = 1024"
    assert (pi, again) == ("pi is about 3.14", "again: 3.14")
    assert roots == "a million roots: 666666166"
    assert failed == "failed as it should: -1 has no real root | cause: RemoteError"
    assert from_asyncio == "from asyncio: 21066"


@pytest.mark.parametrize(("n", "launcher"), [(1, "plain"), (4, RUN)])
def test_executor_grid_search(run_mpi: Launch[Result], n: int, launcher: str) -> None:
    """GridSearchCV finds on the workers exactly what it finds alone."""
    pytest.importorskip("sklearn")
    args = ["--images", "300"]
    path = EXAMPLES / "executor_grid_search.py"
    result = run_mpi(path, n, launcher=launcher, args=args, timeout_s=TIMEOUT_S).check(0)
    assert "best: C = 10, gamma = " in result.stdout
    assert numbers(r"cross-validation: ([\d.]+) %", result.stdout)[0] > 95
    assert result.stdout.splitlines()[-1] == "check: all scores are the same: True"


@pytest.mark.parametrize(("n", "launcher"), [(1, "plain"), (4, RUN)])
def test_executor_emcee(run_mpi: Launch[Result], n: int, launcher: str) -> None:
    """The chain on the workers is the chain of one process, and finds the true parameters."""
    pytest.importorskip("emcee")
    result = run_mpi(EXAMPLES / "executor_emcee.py", n, launcher=launcher, timeout_s=TIMEOUT_S).check(0)
    assert result.stdout.splitlines()[-1] == "check: one process alone gives the same chain: True"
    found = re.findall(r"(-?[\d.]+) \+- ([\d.]+)   \(true: (-?[\d.]+)\)", result.stdout)
    assert len(found) == 3
    for mean, std, true in found:
        assert abs(float(mean) - float(true)) < 4 * float(std)


def test_many_solves(run_mpi: Launch[Result]) -> None:
    """Sixteen solves on two ranks each, all right."""
    result = run_mpi(EXAMPLES / "many_solves.py", 4, launcher=RUN, timeout_s=TIMEOUT_S).check(0)
    errors = numbers(r"on 2 ranks: +\d+ iterations, error (\S+)$", result.stdout)
    assert len(errors) == 16
    assert max(errors) < 1e-7
    assert min(numbers(r"on 2 ranks: +(\d+) iterations", result.stdout)) > 10
    assert result.stdout.splitlines()[-1] == "check: all errors are below 1e-7: True"


def test_mixed_farm(run_mpi: Launch[Result]) -> None:
    """Wide and narrow tasks share the workers, and an object is found again where it was made."""
    result = run_mpi(EXAMPLES / "mixed_farm.py", 4, launcher=RUN, timeout_s=TIMEOUT_S).check(0)
    assert numbers(r"^greatest eigenvalue: (\S+)$", result.stdout)[-1] == 3.997348
    assert "has rows of shape (30, 60)" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("both are right: True")


@pytest.mark.parametrize("n", [1, 4])
def test_shared_table(run_mpi: Launch[Result], n: int) -> None:
    """The table is read right by all workers, and is in memory once."""
    result = run_mpi(EXAMPLES / "shared_table.py", n, launcher=RUN, args=["--megabytes", "200"], timeout_s=TIMEOUT_S)
    assert result.check(0).stdout.splitlines()[-1] == "16 parts were summed up in place"
    (added,) = numbers(r": (\d+) MB more than before", result.stdout)
    assert 190 <= added <= 230
