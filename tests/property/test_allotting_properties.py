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


class Groups:
    """Groups that hold what they were dealt, and give it back in whatever way; by portion and item."""

    def __init__(self, sizes: list[int], jobs: dict[int, tuple[int, int, int]]) -> None:
        self.allotter = Allotter(dict(enumerate(sizes)))
        self.held: dict[int, set[int]] = {}  # by portion
        self.ended: dict[int, list[int]] = {job: [] for job in jobs}
        for job, (n_items, n_workers, unit) in jobs.items():
            self.allotter.on_job(job, n_workers, unit)
            self.allotter.on_items(job, n_items)

    def deal(self, alive: set[int]) -> None:
        """Take all portions."""
        for portion in self.allotter.deal():
            assert portion.worker in alive
            self.held[portion.number] = set(range(portion.start, portion.stop))
        self.allotter.check_invariants()

    def run(self, number: int, rng: random.Random) -> None:
        """End some items of a portion in a row, and perhaps give back those behind, or find them void."""
        portion = self.allotter.flying[number]
        start = rng.choice(sorted(self.held[number]))
        stop = start + 1
        while stop in self.held[number] and rng.random() < 0.7:
            stop += 1
        middle = rng.randint(start, stop)
        self.held[number] -= set(range(start, stop))
        seconds = rng.choice([1e-6, 1e-3, 1.0])
        n = middle - start
        self.allotter.on_parts(portion.job, {number: n}, seconds * n, 10 * n)
        self.ended[portion.job] += range(start, middle)
        if middle < stop:
            if rng.random() < 0.1:
                self.allotter.on_void(number, stop - middle)
                self.ended[portion.job] += range(middle, stop)
            else:
                self.allotter.on_back(number, middle, stop, apart=rng.random() < 0.5)

    def lose(self, group: int) -> None:
        """Lose a group with all that it holds."""
        items = {
            number: [(item, item + 1) for item in sorted(self.held.pop(number))]
            for number, portion in list(self.allotter.flying.items())
            if portion.worker == group
        }
        self.allotter.on_lost(group, items)

    def recall(self) -> None:
        """Give back what is asked for."""
        asked = self.allotter.recall()
        if asked is not None:
            relay, job, n = asked
            assert n > 0
            for number, portion in list(self.allotter.flying.items()):
                if portion.worker == relay and portion.job == job and n > 0:
                    item = max(self.held[number])
                    self.held[number].discard(item)
                    self.allotter.on_back(number, item, item + 1)
                    n -= 1
            self.allotter.on_recalled(relay)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
)
def test_every_item_ends_once(sizes: list[int], jobs: list[tuple[int, int, int]], rng: random.Random) -> None:
    """Whatever groups report, in whatever order, of whatever jobs, and if some are lost: each item ends once."""
    groups = Groups(sizes, dict(enumerate(jobs)))
    allotter = groups.allotter
    alive = set(range(len(sizes)))
    n_items = sum(n for n, _, _ in jobs)
    while sum(map(len, groups.ended.values())) < n_items:
        groups.deal(alive)
        assert allotter.flying, "items wait, and nobody has anything to do"
        assert allotter.n_in_hand == sum(len(groups.held[number]) for number in allotter.flying)
        portion = allotter.flying[rng.choice(sorted(allotter.flying))]
        if len(alive) > 1 and rng.random() < 0.03:
            groups.lose(portion.worker)
            alive.discard(portion.worker)
        else:
            groups.run(portion.number, rng)
            groups.recall()
    for job, (n, _, _) in enumerate(jobs):
        assert sorted(groups.ended[job]) == list(range(n))
    assert not allotter.has_waiting and allotter.n_busy() == 0


def test_no_more_workers_than_allowed() -> None:
    """A job of five workers has items at the first of groups of four only as far as these five can run them."""
    allotter = Allotter({1: 4, 6: 4, 11: 4})
    allotter.on_job(1, 5)
    allotter.on_items(1, 100)
    assert {portion.worker: portion.stop - portion.start for portion in allotter.deal()} == {1: 4, 6: 1}


def test_chunks_keep_all_workers_busy() -> None:
    """Where items stay together, each worker has a chunk to run, however long they take."""
    allotter = Allotter({1: 4, 6: 4})
    allotter.on_job(1, 8, 25)
    allotter.on_items(1, 25 * 40)
    portions = list(allotter.deal())
    assert {portion.worker: portion.stop - portion.start for portion in portions} == {1: 100, 6: 100}
    for portion in portions:
        allotter.on_parts(1, {portion.number: 25}, 25.0)
    allotter.check_invariants()
    assert allotter.piece_size(1) == 25
    for portion in allotter.deal():
        assert (portion.stop - portion.start) % 25 == 0
    assert allotter.n_busy() == 8 and 200 <= allotter.n_in_hand <= 300


def test_recall() -> None:
    """What a group has too much of is recalled when others have nothing left, one group at a time; once, if in vain."""
    allotter = Allotter({1: 2, 4: 2})
    allotter.on_job(1, 4)
    allotter.on_items(1, 4)
    first, second = allotter.deal()
    allotter.on_parts(1, {first.number: 2}, 1e-3)
    allotter.on_items(1, 60)
    portions = list(allotter.deal())
    assert {portion.worker for portion in portions} == {1, 4} and not allotter.has_waiting
    for portion in portions:
        if portion.worker == 1:
            allotter.on_parts(1, {portion.number: portion.stop - portion.start}, 30.0)
    allotter.on_parts(1, {second.number: 2}, 2.0)
    asked = allotter.recall()
    assert asked is not None and asked[:2] == (4, 1) and asked[2] >= 1
    assert allotter.recall() is None
    allotter.on_recalled(4)
    assert allotter.recall() is None
    allotter.check_invariants()


def test_report_that_cannot_be() -> None:
    """More items than a portion has, and portions that there are not, are refused, and change nothing."""
    allotter = Allotter({1: 2, 4: 2})
    allotter.on_job(1, 4)
    allotter.on_items(1, 10)
    portions = list(allotter.deal())
    assert [(portion.worker, portion.start, portion.stop) for portion in portions] == [(1, 0, 2), (4, 2, 4)]
    with pytest.raises(ProtocolError, match="portion 1 with 3 more items"):
        allotter.on_parts(1, {2: 1, 1: 3}, 1.0)
    with pytest.raises(ProtocolError, match="portion 7"):
        allotter.on_back(7, 0, 1)
    assert allotter.n_in_hand == 4
    allotter.check_invariants()


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


def test_long_tasks_behind_short_ones() -> None:
    """If tasks turn out to take a thousand times as long as those before, groups share what one of them has."""
    tasks = [1e-3] * 4000 + [1.0] * 400
    report = simulate(tasks, 40, handling_s=HANDLING_S, group_size=10)
    assert report.makespan_s < sum(tasks) / 40 + 3.0


@pytest.mark.parametrize("task_s", [1e-3, 1e-2])
def test_short_tasks_in_groups(task_s: float) -> None:
    """Short tasks go in batches at the lower level, and workers are as busy as with one level."""
    assert simulate([task_s] * 40_000, 320, handling_s=HANDLING_S, group_size=32).busy >= 0.9
