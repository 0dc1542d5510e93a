"""The benchmark's arithmetic: rounds, medians, ratios within rounds, targets, repetitions. Nothing is timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

import pytest

from taskfarm.bench.measure import (
    MS,
    N_ROUNDS_QUICK,
    OURS,
    RATE,
    RAW,
    US,
    ContenderLost,
    Contenders,
    Row,
    Setting,
    Target,
    Unit,
    measure,
    repetitions,
)

PLAIN = Unit("MB")


def scripted(values: Iterable[float], log: list[str] | None = None, name: str = "") -> Callable[[int], float]:
    """Return a contender that gives these values, one after the other."""
    rest = iter(values)

    def contender(n: int) -> float:
        if log is not None:
            log.append(name)
        return next(rest)

    return contender


def row(contenders: Contenders, **options: object) -> Row:
    return Row("name", "about", [2], options.pop("unit", PLAIN), lambda setting: contenders, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("unit", "value", "repeats"), [(US, 5e5, True), (MS, 500.0, True), (RATE, 2.0, True), (PLAIN, 2.0, False)]
)
def test_units(unit: Unit, value: float, repeats: bool) -> None:
    """A time is per repetition, a rate is repetitions per second, everything else is the value itself."""
    assert unit.value(2.0, 4) == pytest.approx(value)
    assert unit.repeats is repeats


@pytest.mark.parametrize(("cost_s", "n"), [(1e-6, 100_000), (1e-3, 100), (0.06, 2), (3.0, 1), (0.0, 10**6)])
def test_repetitions_fill_a_sample(cost_s: float, n: int) -> None:
    """A sample lasts about as long as it should, whatever one repetition takes."""
    assert repetitions(lambda n: n * cost_s, 0.1) == n


def test_repetitions_do_not_count_the_first_use() -> None:
    """A slow start does not make samples short."""
    costs = iter([5.0, *[1e-3] * 4])
    assert repetitions(lambda n: n * next(costs), 0.1) == 100


def test_repetitions_do_not_count_a_disturbance() -> None:
    """A time that another job made long does not make samples short."""
    costs = iter([1e-3, 1e-3, 1e-3, 9e-3, 1e-3])
    assert repetitions(lambda n: n * next(costs), 0.1) == 100


def test_ratios_are_taken_within_rounds() -> None:
    """A disturbance that meets both contenders of a round leaves its ratio alone; the medians see it."""
    ours, raw = [9.0, 2.0, 2.0, 40.0, 2.0, 2.0], [9.0, 1.0, 1.0, 20.0, 1.0, 1.0]  # the first ones are the warm-up
    found = measure(row({OURS: scripted(ours), RAW: scripted(raw)}, rounds=5), Setting(2))
    assert found["samples"] == {OURS: ours[1:], RAW: raw[1:]}
    assert found["ratio"] == {RAW: 2.0}
    assert found["spread"] == {OURS: [2.0, 40.0], RAW: [1.0, 20.0], f"ratio {RAW}": [2.0, 2.0]}
    assert (found[OURS], found[RAW], found["best"]) == (2.0, 1.0, {RAW: 2.0})
    assert found["repetitions"] == {OURS: 1, RAW: 1}


def test_contenders_take_turns() -> None:
    """Each round has every contender once, in alternating order, after one warm-up each."""
    log: list[str] = []
    contenders = {name: scripted([1.0] * 9, log, name) for name in (OURS, RAW, "peer")}
    measure(row(contenders, rounds=3), Setting(2))
    assert log == [OURS, RAW, "peer", OURS, RAW, "peer", "peer", RAW, OURS, OURS, RAW, "peer"]


def test_samples_begin_awake() -> None:
    """A few repetitions before each sample wake those that slept while others were measured."""
    asked: list[int] = []

    def contender(n: int) -> float:
        asked.append(n)
        return n * 1e-3

    found = measure(row({OURS: contender}, unit=US, rounds=3), Setting(2))
    assert found["repetitions"] == {OURS: 100}
    assert asked[-6:] == [5, 100] * 3


def test_samples_become_shorter_where_the_machine_becomes_slower() -> None:
    """What was found on a quiet machine does not make a run endless on a busy one; ratios are per repetition anyway."""
    costs = iter([1e-3] * 5 + [20e-3] * 4)
    asked: list[int] = []

    def contender(n: int) -> float:
        asked.append(n)
        return n * next(costs)

    found = measure(row({OURS: contender}, unit=MS, rounds=3), Setting(2))
    assert asked == [1, 1, 1, 10, 10, 5, 100, 5, 5]
    assert found["samples"][OURS] == pytest.approx([20.0] * 3)
    assert found["repetitions"] == {OURS: 5}


@pytest.mark.parametrize(("round_s", "n"), [(1.0, 11), (4.0, 8), (100.0, 5)])
def test_a_row_ends_in_time_but_not_before_five_rounds(round_s: float, n: int) -> None:
    """Eleven rounds where there is time for them."""
    n_rounds = 0

    def contender(_: int) -> float:
        nonlocal n_rounds
        n_rounds += 1
        return 1.0

    found = measure(row({OURS: contender}, rounds=11), Setting(2), lambda: n_rounds * round_s)
    assert len(found["samples"][OURS]) == n


def test_a_single_round_is_cold() -> None:
    """What is measured once is not measured before."""
    log: list[str] = []
    found = measure(row({OURS: scripted([3.0], log, OURS)}, rounds=1), Setting(2))
    assert (log, found[OURS], found["ratio"]) == ([OURS], 3.0, {})


def test_quick_has_fewer_rounds_but_five() -> None:
    """Five rounds are the least that give a median and a spread."""
    assert N_ROUNDS_QUICK == 5
    setting = Setting(2, quick=True)
    assert [setting.rounds(n) for n in (11, 7, 5, 1)] == [5, 5, 5, 1]
    assert setting.sample_s < Setting(2).sample_s


def test_the_best_of_a_rate_is_the_largest() -> None:
    """The shortest time is the best time, the highest rate the best rate."""
    ours, raw = [0.0, 6.0, 2.0, 4.0], [0.0, 2.0, 1.0, 1.0]

    def best(unit: Unit) -> float:
        found = measure(row({OURS: scripted(ours), RAW: scripted(raw)}, unit=unit, rounds=3), Setting(2))
        ratio: float = found["best"][RAW]
        return ratio

    assert best(Unit("us")) == 2.0 / 1.0
    assert best(Unit("tasks/s", more_is_better=True)) == 6.0 / 2.0


def test_bulk_work_has_a_least_number_of_repetitions() -> None:
    """A slow peer still gets enough tasks at once."""
    found = measure(row({OURS: lambda n: n * 1.0}, unit=RATE, rounds=5, least=200), Setting(2))
    assert found["repetitions"] == {OURS: 200}


@pytest.mark.parametrize(
    ("target", "reached", "met", "text"),
    [
        (Target(3.0), 2.0, True, "<= 3 x raw"),
        (Target(1.9), 2.0, False, "<= 1.9 x raw"),
        (Target(3.0, at_least=True), 2.0, False, ">= 3 x raw"),
        (Target(2.0, at_least=True), 2.0, True, ">= 2 x raw"),
        (Target(1.5, plus=1.0), 1.5, True, "<= 1.5 x raw + 1"),
        (Target(3.9, ""), 4.0, False, "<= 3.9"),
        (Target(1.0, "schwimmbad"), None, None, "<= 1 x schwimmbad"),
    ],
)
def test_targets(target: Target, reached: float | None, met: bool | None, text: str) -> None:
    """A target judges the ratio within rounds, or ours itself; without its contender there is no judgement."""
    contenders = {OURS: lambda n: 4.0, RAW: lambda n: 2.0}
    found = measure(row(contenders, rounds=5, target=target), Setting(2))
    assert (found["reached"], found["met"], found["target"]) == (reached, met, text)


def test_a_row_without_target_is_not_judged() -> None:
    """Rows that only inform have no verdict."""
    found = measure(row({OURS: lambda n: 4.0}, rounds=5), Setting(2))
    assert [found[name] for name in ("target", "limit", "against", "plus", "reached", "met")] == [None] * 6


@pytest.mark.parametrize("n_good", [0, 1, 3])
def test_a_contender_that_is_lost_is_left_out(n_good: int) -> None:
    """The others are measured to the end, and the reason is kept."""
    rest = iter(range(n_good))

    def breaks(n: int) -> float:
        if next(rest, None) is None:
            raise ContenderLost("its process ended")
        return 1.0

    setting = Setting(2)
    found = measure(row({OURS: lambda n: 4.0, RAW: lambda n: 2.0, "peer": breaks}, rounds=5), setting)
    assert found["samples"] == {OURS: [4.0] * 5, RAW: [2.0] * 5}
    assert (found["ratio"], found["left_out"]) == ({RAW: 2.0}, {"peer": "its process ended"})
    assert set(found["repetitions"]) == {OURS, RAW}
    assert "peer" not in found


def test_what_a_row_leaves_is_closed_even_if_it_fails() -> None:
    """No pool of processes outlives its row."""
    closed = []
    setting = Setting(2)

    def contenders(setting: Setting) -> Contenders:
        setting.cleanup.callback(closed.append, True)
        setting.left_out["peer"] = "not installed"
        return {OURS: scripted([1.0])}  # ends in the second sample

    with pytest.raises(StopIteration):
        measure(Row("name", "about", [2], PLAIN, contenders), setting)
    assert closed == [True]
    assert setting.left_out == {"peer": "not installed"}


def test_medians_are_those_of_the_samples() -> None:
    """The figures that are shown follow from the samples that are kept."""
    ours, raw = [0.0, 3.0, 1.0, 2.0, 5.0, 4.0], [0.0, 1.0, 2.0, 4.0, 1.0, 2.0]
    found = measure(row({OURS: scripted(ours), RAW: scripted(raw)}, rounds=5), Setting(4))
    assert found[OURS] == statistics.median(found["samples"][OURS]) == 3.0
    ratios = [mine / other for mine, other in zip(ours[1:], raw[1:], strict=True)]
    assert found["ratio"][RAW] == statistics.median(ratios) == 2.0
    assert found["n_ranks"] == 4
