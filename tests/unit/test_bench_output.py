"""What the benchmark shows: the tables of text and the picture, from results as the JSON file holds them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taskfarm.bench import plot
from taskfarm.bench.environment import busy_share, cpu_times, read_cpu_times
from taskfarm.bench.measure import MS, OURS, PEERS, RATE, RAW, Contenders, Row, Setting, Target, Unit, measure
from taskfarm.bench.table import faster_than, format_tables, reference
from taskfarm.units import format_number

REPOSITORY = Path(__file__).resolve().parents[2]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ENVIRONMENT = {
    "date": "2026-11-20T10:00:00+00:00", "quick": True, "mpi": "MPICH 5.0.2", "taskfarm": "0.1.0", "mpi4py": "4.1.2",
    "numpy": "2.4.6", "python": "3.11.7", "peers": {"joblib": "1.6"}, "cores": 2, "cpus": [0, 1],
}  # fmt: skip


def result(unit: Unit, target: Target | None = None, left_out: str = "", **values: float) -> dict[str, Any]:
    """Return the result of a row whose contenders take so many seconds for a repetition, or give these values."""

    def contenders(setting: Setting) -> Contenders:
        if left_out:
            setting.left_out[left_out] = "not installed"
        return {name: lambda n, value=value: n * value for name, value in values.items()}  # type: ignore[misc]

    return measure(Row("name", "about", [2], unit, contenders, target, rounds=5), Setting(2))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    limited = Unit("% CPU")
    crowd = Unit("tasks/s", more_is_better=True)
    rows = {
        "task/2": result(MS, Target(6.0), ours=0.5, raw=0.25, schwimmbad=0.125, dask=5.0),
        "noop_tasks/2": result(RATE, Target(0.5, "schwimmbad", at_least=True), ours=0.5, raw=0.25, schwimmbad=0.1),
        "call_noop/4": result(MS, Target(1.5), "joblib", ours=1.0, raw=0.5),
        "idle/2": result(limited, Target(0.5, ""), ours=0.125),
        "startup/4": result(Unit("s", 1.0), Target(1.3, plus=1.0), ours=2.0, raw=1.0),
        "crowd/8": result(crowd, Target(0.5, "3 ranks", at_least=True), **{OURS: 1000.0, "3 ranks": 4000.0}),
        **{f"scaling_noop/{n + 1}": result(RATE, ours=1.0 / n, raw=0.5 / n) for n in (1, 2, 4)},
    }
    return {"environment": ENVIRONMENT, "rows": rows}


def test_the_own_table_has_a_line_per_row(found: dict[str, Any]) -> None:
    """Each row shows ours, what it is compared with in the first place, the target and the verdict."""
    own = {line[0]: line for line in map(str.split, format_tables(found).split("\n\n")[1].splitlines())}
    assert set(found["rows"]) == set(own) - {"row/ranks"}
    assert own["task/2"] == ["task/2", "ms", "500", "250", "raw", "2", "(2..2)", "2", "<=", "6", "x", "raw", "yes"]
    assert own["noop_tasks/2"][2:6] == ["2", "10", "schwimmbad", "0.2"]
    assert own["noop_tasks/2"][-1] == own["crowd/8"][-1] == own["call_noop/4"][-1] == "NO"
    assert own["idle/2"] == ["idle/2", "%", "CPU", "0.125", "(0.125..0.125)", "<=", "0.5", "yes"]
    assert own["startup/4"][-7:] == ["<=", "1.3", "x", "raw", "+", "1", "yes"]
    assert own["crowd/8"][2:7] == ["1,000", "4,000", "3", "ranks", "0.25"]
    assert own["scaling_noop/2"][-1] == "-"


def test_the_peer_table_says_how_many_times_faster(found: dict[str, Any]) -> None:
    """Above 1 ours is faster, for times and for rates; the peer's own figure stands in brackets."""
    text = format_tables(found)
    table = text.split("How many times faster")[1].splitlines()
    assert table[1].split() == ["row/ranks", "unit", "ours", "raw", "schwimmbad", "dask"]
    assert table[2].split() == ["task/2", "ms", "500", "0.5", "(250)", "0.25", "(125)", "10", "(5,000)"]
    assert table[3].split() == ["noop_tasks/2", "tasks/s", "2", "0.5", "(4)", "0.2", "(10)"]
    assert "crowd" not in "\n".join(table[:4])


def test_what_is_missing_is_said(found: dict[str, Any]) -> None:
    """A peer that is not installed is named; so is the number of targets that are met."""
    text = format_tables(found)
    assert "Left out of call_noop/4: joblib, not installed" in text
    assert text.splitlines()[-1] == "Targets met: 3 of 6"
    assert "mpi MPICH 5.0.2" in text.splitlines()[0]


def test_a_busy_machine_is_said(found: dict[str, Any]) -> None:
    """Who measures beside other jobs reads so above the figures."""
    busy = {**found, "environment": {**ENVIRONMENT, "busy_before": 0.43}}
    assert "Other jobs kept 43% of the cores busy" in format_tables(busy).split("\n\n")[1]
    assert "Other jobs" not in format_tables({**found, "environment": {**ENVIRONMENT, "busy_before": 0.04}})


def test_busy_share() -> None:
    """Between two looks at the machine's clock ticks; waiting for a disk and being idle are not busy."""
    before = cpu_times("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2\n")
    assert before == (150.0, 1000.0)
    assert busy_share(before, cpu_times("cpu  130 10 60 840 60 5 5 0 0 0\n")) == pytest.approx(60 / 110)
    assert busy_share(before, before) == 0.0
    busy, whole = read_cpu_times()
    assert 0.0 <= busy <= whole


def test_nothing_measured_is_no_table() -> None:
    """A run of which nothing is left shows where it ran."""
    assert format_tables({"environment": ENVIRONMENT, "rows": {}}).count("\n") == 0


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.01234, "0.0123"), (12.34, "12.3"), (999.6, "1,000"), (1234567.0, "1,234,567")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    """Figures are short, and large ones are readable."""
    assert format_number(value) == text


def test_references(found: dict[str, Any]) -> None:
    """The target's contender comes first, then raw MPI, then what there is."""
    rows = found["rows"]
    names = ("task/2", "noop_tasks/2", "idle/2", "crowd/8", "scaling_noop/2")
    assert [reference(rows[name]) for name in names] == ["raw", "schwimmbad", "", "3 ranks", "raw"]
    assert faster_than(rows["task/2"], "dask") == 10.0
    assert faster_than(rows["noop_tasks/2"], RAW) == 0.5


def test_recorded_results_become_a_page(found: dict[str, Any], tmp_path: Path) -> None:
    """A column per file; what misses its target is bold; peers are compared per file."""
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(found))
    words = [sys.executable, str(REPOSITORY / "benchmarks" / "markdown.py"), "a.json", "b.json"]
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[0] == "| row / ranks | against | target | MPICH 5.0.2 | MPICH 5.0.2 |", done.stderr
    assert lines[2] == "| `task/2` | raw | <= 6 x raw | 2 (2..2) | 2 (2..2) |"
    assert lines[3].endswith("| **0.2** (0.2..0.2) | **0.2** (0.2..0.2) |")
    assert "| `idle/2` |  | <= 0.5 | 0.125 % CPU (0.125..0.125) | 0.125 % CPU (0.125..0.125) |" in lines
    assert lines[-2:] == ["| task/2 | 0.25 / 0.25 | 10 / 10 |", "| noop_tasks/2 | 0.2 / 0.2 |  |"]


# The picture


def test_bars_against_raw_are_times(found: dict[str, Any]) -> None:
    """Rates are turned into times; a target is marked where raw MPI is what it is against, what it adds included."""
    bars = {bar.label: bar for bar in plot.raw_bars(found["rows"])}
    assert list(bars) == ["task/2", "noop_tasks/2", "call_noop/4", "startup/4"]
    assert {name: bar.value for name, bar in bars.items()} == dict.fromkeys(bars, 2.0)
    assert {name: bar.target for name, bar in bars.items()} == {
        "task/2": 6.0, "noop_tasks/2": None, "call_noop/4": 1.5, "startup/4": pytest.approx(2.3),
    }  # fmt: skip
    assert len({bars[name].colour for name in ("task/2", "noop_tasks/2", "call_noop/4")}) == 3


def test_bars_against_peers_stand_under_their_row(found: dict[str, Any]) -> None:
    """A headline, then the peers; longer is faster."""
    bars = plot.peer_bars(found["rows"])
    assert [(bar.label, bar.value) for bar in bars] == [
        ("task/2", 1.0),
        ("schwimmbad", 0.25),
        ("dask", 10.0),
        ("noop_tasks/2", 1.0),
        ("schwimmbad", pytest.approx(0.2)),
    ]
    assert [bool(bar.colour) for bar in bars] == [False, True, True, False, True]
    assert [bar.target for bar in bars] == [None, None, None, None, 0.5]


def test_bars_of_limits_are_parts_of_them(found: dict[str, Any]) -> None:
    """Up to 1 the limit is kept, also where it is one from below."""
    bars = {bar.label: bar for bar in plot.limit_bars(found["rows"])}
    assert {name: bar.value for name, bar in bars.items()} == {"idle/2": 0.25, "crowd/8": 2.0}
    assert bars["idle/2"].note == "0.125 % CPU"
    assert bars["crowd/8"].note == "0.25 x 3 ranks"


def test_curves_are_by_number_of_workers(found: dict[str, Any]) -> None:
    """Rank 0 is no worker."""
    curve = [(1, 1.0), (2, 2.0), (4, 4.0)]
    assert plot.scaling_curves(found["rows"]) == {
        "scaling_noop": {OURS: curve, RAW: [(n, 2.0 * rate) for n, rate in curve]}
    }


@pytest.mark.parametrize("names", [None, ["task/2"], ["idle/2"], ["scaling_noop/2", "scaling_noop/3"]])
def test_the_picture_is_drawn(found: dict[str, Any], tmp_path: Path, names: list[str] | None) -> None:
    """Any part of the rows gives a picture, with notes and curves only where there is something to show."""
    pytest.importorskip("matplotlib")
    rows = found["rows"] if names is None else {name: found["rows"][name] for name in names}
    path = tmp_path / "bench.png"
    plot.save_plot({"environment": ENVIRONMENT, "rows": rows}, path)
    assert path.read_bytes().startswith(PNG_SIGNATURE)
    assert path.stat().st_size > 10_000


def test_values_that_no_logarithm_can_show(tmp_path: Path) -> None:
    """A limit of which nothing is taken has a bar to the edge, not an error."""
    pytest.importorskip("matplotlib")
    rows = {"peak/2": result(Unit("x array"), Target(0.1, ""), ours=0.0)}
    plot.save_plot({"environment": ENVIRONMENT, "rows": rows}, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").exists()


def test_every_peer_has_a_colour() -> None:
    """A new peer is told apart in the picture."""
    assert len(set(plot._PEER_COLOURS.values())) == len(PEERS)
