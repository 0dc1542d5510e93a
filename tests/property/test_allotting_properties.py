"""With two levels no item is lost or run twice, groups are kept supplied, and rank 0 is asked little."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskfarm.errors import ProtocolError
from taskfarm.scheduling.allotting import Allotter
from taskfarm.scheduling.simulation import simulate

HANDLING_S = 25e-6  # of rank 0 per message: half of what a task of `submit` takes it


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([1e-6, 1e-4, 1e-2, 1.0]), min_size=1, max_size=300),
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(1, 20),
)
def test_items_run_once(durations: list[float], n_workers: int, group_size: int, unit: int) -> None:
    """In a whole simulated map over groups every item is run exactly once, and no time is less than possible."""
    report = simulate(durations, n_workers, group_size=group_size, unit=unit)
    assert report.runs == [1] * len(durations)
    assert report.makespan_s >= max(sum(durations) / n_workers, max(durations))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 500), st.randoms(use_true_random=False))
def test_portions_are_disjoint_and_complete(sizes: list[int], n_items: int, rng: random.Random) -> None:
    """Whatever groups report, and if one is lost, its items are dealt again and each ends once."""
    allotter = Allotter(sizes)
    allotter.on_items(n_items)
    held: list[list[int]] = [[] for _ in sizes]
    ended: list[int] = []
    alive = set(range(len(sizes)))
    while len(ended) < n_items:
        for portion in allotter.deal():
            assert portion.group in alive
            held[portion.group].extend(range(portion.start, portion.stop))
        allotter.check_invariants()
        assert sum(map(len, held)) == allotter.n_in_hand
        group = rng.choice([group for group in sorted(alive) if held[group]])
        if len(alive) > 1 and rng.random() < 0.05:
            allotter.on_lost(group, [(item, item + 1) for item in held[group]])
            held[group] = []
            alive.discard(group)
            continue
        n = rng.randint(1, len(held[group]))
        ended += held[group][:n]
        del held[group][:n]
        allotter.on_report(group, n, n * rng.choice([1e-6, 1e-3, 1.0]))
    assert sorted(ended) == list(range(n_items))


def test_report_that_cannot_be() -> None:
    """More items than a group has are refused, and change nothing."""
    allotter = Allotter([2, 2])
    allotter.on_items(10)
    assert [(portion.group, portion.start, portion.stop) for portion in allotter.deal()] == [(0, 0, 2), (1, 2, 4)]
    with pytest.raises(ProtocolError, match="reports 3 items and has 2"):
        allotter.on_report(0, 3, 1.0)
    assert allotter.n_in_hand == 4


def log_normal(n: int) -> list[float]:
    """Return durations of 1 s in the mean; one task in a hundred takes three times as long."""
    rng = random.Random(1)
    return [rng.lognormvariate(-0.125, 0.5) for _ in range(n)]


def test_groups_keep_workers_busy() -> None:
    """2500 workers in groups of 100, fed with uneven tasks: until each worker's last task, 99 % of the time."""
    report = simulate(log_normal(20_000), 2500, handling_s=HANDLING_S, group_size=100)
    assert report.busy >= 0.99


def test_groups_are_for_what_one_controller_cannot_feed() -> None:
    """Where rank 0 takes ten times as long for a message, 2000 workers as one group starve, in groups they do not."""
    tasks = log_normal(16_000)
    assert simulate(tasks, 2000, handling_s=400e-6).busy < 0.8
    assert simulate(tasks, 2000, handling_s=400e-6, group_size=100).busy >= 0.95


@pytest.mark.parametrize("task_s", [1e-3, 1e-2])
def test_short_tasks_in_groups(task_s: float) -> None:
    """Short tasks go in batches at the lower level, and workers are as busy as with one level."""
    assert simulate([task_s] * 40_000, 320, handling_s=HANDLING_S, group_size=32).busy >= 0.9
