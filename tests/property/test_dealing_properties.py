"""No item is lost or run twice, whatever workers report, and the simulated farm keeps its promises."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskfarm.scheduling.dealing import Dealer
from taskfarm.scheduling.simulation import simulate


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_item_is_done_exactly_once(data: st.DataObject) -> None:
    """Whatever the order of reports, what is given back, and what cannot be sent: each item ends once."""
    n_workers = data.draw(st.integers(1, 5))
    dealer = Dealer(range(1, n_workers + 1))
    units = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    done: dict[int, list[int]] = {}
    total: dict[int, int] = {}
    for number, unit in enumerate(units):
        dealer.on_job(number, data.draw(st.integers(1, 6)), unit)
        done[number] = []
        total[number] = 0
    for _ in range(data.draw(st.integers(1, 60))):
        number = data.draw(st.sampled_from(sorted(total)))
        n = data.draw(st.integers(0, 40))
        dealer.on_items(number, n)
        total[number] += n
        list(dealer.deal())
        dealer.check_invariants()
        if dealer.flying:
            batch = dealer.flying[data.draw(st.sampled_from(sorted(dealer.flying)))]
            size = batch.stop - batch.start
            if size > 1 and data.draw(st.booleans()):
                dealer.on_unsent(batch.number)
            else:
                n_done = data.draw(st.integers(0, size))
                seconds = data.draw(st.floats(0, 1))
                dealer.on_done(batch.number, n_done, seconds, data.draw(st.floats(0, 1)), late=data.draw(st.booleans()))
                done[batch.job] += range(batch.start, batch.start + n_done)
        dealer.check_invariants()
    while dealer.has_waiting or dealer.flying:
        list(dealer.deal())
        dealer.check_invariants()
        batch = dealer.flying[min(dealer.flying)]
        dealer.on_done(batch.number, batch.stop - batch.start, 1e-3, 0.0)
        done[batch.job] += range(batch.start, batch.stop)
    assert {number: sorted(items) for number, items in done.items()} == {k: list(range(n)) for k, n in total.items()}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_item_ends_once_whoever_is_lost(data: st.DataObject) -> None:
    """Whichever workers are lost in between, but for one: each item is done once, or has failed once for good."""
    n_workers = data.draw(st.integers(2, 6))
    retries = data.draw(st.integers(0, 2))
    dealer = Dealer(range(n_workers))
    dealer.on_job(1, n_workers, data.draw(st.integers(1, 7)), retries)
    dealer.on_items(1, n := data.draw(st.integers(1, 60)))
    ended: list[int] = []
    while dealer.has_waiting or dealer.flying:
        list(dealer.deal())
        dealer.check_invariants()
        batch = dealer.flying[data.draw(st.sampled_from(sorted(dealer.flying)))]
        if len(dealer.lanes.workers) > 1 and data.draw(st.integers(0, 3)) == 0:
            for lost in dealer.on_worker_lost(batch.worker, "gone"):
                assert all(len(story) == retries + 1 for story in lost.failed.values())
                ended += lost.failed
        else:
            n_done = data.draw(st.integers(1, batch.stop - batch.start))
            dealer.on_done(batch.number, n_done, 1e-4 * n_done, 0.0)
            ended += range(batch.start, batch.start + n_done)
        dealer.check_invariants()
    assert sorted(ended) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([1e-7, 1e-5, 1e-3, 0.1]), min_size=1, max_size=300),
    st.integers(1, 8),
    st.integers(1, 50),
)
def test_simulated_items_run_once(durations: list[float], n_workers: int, unit: int) -> None:
    """In a whole simulated map every item is run exactly once, and no time is less than possible."""
    report = simulate(durations, n_workers, unit=unit)
    assert report.runs == [1] * len(durations)
    assert report.makespan_s >= max(sum(durations) / n_workers, max(durations))


def efficiency(durations: list[float], n_workers: int, **options: float) -> float:
    ideal = max(sum(durations) / n_workers, max(durations))
    return ideal / simulate(durations, n_workers, **options).makespan_s  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_log_normal_times(seed: int) -> None:
    """Wildly uneven tasks (mean 1 ms, sigma 2) on 2 workers take at most 5 % more than the ideal."""
    rng = random.Random(seed)
    times = [rng.lognormvariate(math.log(1e-3) - 2, 2) for _ in range(10_000)]
    assert efficiency(times, 2) >= 0.95


@pytest.mark.parametrize(("task_s", "n", "n_workers"), [(1e-6, 1_000_000, 4), (1e-3, 10_000, 16), (0.1, 1000, 16)])
def test_even_times(task_s: float, n: int, n_workers: int) -> None:
    """Even tasks, short and long, keep all workers busy without anybody having chosen a batch size."""
    assert efficiency([task_s] * n, n_workers) >= 0.95


def test_many_workers() -> None:
    """256 workers with tasks of a millisecond, which rank 0 could not hand out one by one."""
    assert efficiency([1e-3] * 100_000, 256) >= 0.9


def test_busy_rank_0() -> None:
    """If rank 0 looks only every 5 ms, workers with tasks of a millisecond are still busy most of the time."""
    assert efficiency([1e-3] * 20_000, 2, latency_s=5e-3) >= 0.75


@pytest.mark.parametrize("n_workers", [2, 3, 8])
def test_many_long_ones_behind_short_ones(n_workers: int) -> None:
    """What was dealt on a wrong guess is shared out again, also what waits in other batches."""
    assert efficiency([60e-6] * 3000 + [0.1] * 4 * n_workers, n_workers) >= 0.75


def test_long_ones_behind_short_ones() -> None:
    """Tasks that turn out to be a million times longer than those before are shared out again."""
    assert efficiency([1e-6] * 1000 + [1.0] * 10, 2) >= 0.6
    assert efficiency([10.0] + [1.0] * 20, 2) >= 0.99
