"""Placed tasks beside plain ones: none is lost, none starves, no worker has two."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from taskfarm.scheduling.dealing import Batch, Dealer
from taskfarm.scheduling.mixed import WideTask, simulate_mixed
from taskfarm.scheduling.placing import Placer

N = 6
HOSTS = {rank: "ab"[rank % 2] for rank in range(N)}

allowed = st.none() | st.frozensets(st.integers(0, N - 1), min_size=1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, N), allowed),
        st.tuples(st.just("items"), st.integers(1, 5), st.none()),
        st.tuples(st.just("end"), st.integers(0, 99), st.none()),
        st.tuples(st.just("drop"), st.integers(0, 99), st.none()),
        st.tuples(st.just("lose"), st.integers(0, 99), st.none()),
    ),
    max_size=60,
)


class Farm:
    """A placer and a dealer, with what is under way."""

    def __init__(self) -> None:
        self.dealer = Dealer(HOSTS)
        self.placer = Placer(self.dealer, HOSTS)
        self.dealer.on_job(0, N)
        self.batches: list[Batch] = []
        self.teams: dict[int, tuple[int, ...]] = {}
        self.wanted: dict[int, tuple[int, frozenset[int] | None]] = {}
        self.n_items = self.n_done = self.n_added = self.n_failed = 0
        self.alive = list(HOSTS)
        self.started: list[int] = []
        self.now = 0.0

    def settle(self) -> None:
        for number, workers in self.placer.place(self.now):
            assert number not in self.started
            n, ok = self.wanted[number]
            assert len(set(workers)) == n
            assert ok is None or set(workers) <= ok
            taken = {worker for team in self.teams.values() for worker in team}
            assert not taken & set(workers)
            assert not {batch.worker for batch in self.batches} & set(workers)
            self.teams[number] = workers
            self.started.append(number)
        for batch in self.dealer.deal(self.now):
            assert batch.worker not in {worker for team in self.teams.values() for worker in team}
            self.batches.append(batch)
        self.placer.check_invariants()

    def lose(self, choice: int) -> list[int]:
        """Have a worker die, if it is not the last; return the waiting tasks that nobody can run any more."""
        if len(self.alive) == 1:
            return []
        worker = self.alive.pop(choice % len(self.alive))
        lost = self.dealer.on_worker_lost(worker, "died")
        assert {batch for batch, _ in lost} == {batch for batch in self.batches if batch.worker == worker}
        self.n_failed += sum(len(failed) for _, failed in lost)
        self.batches = [batch for batch in self.batches if batch.worker != worker]
        failed = self.placer.on_worker_lost(worker)
        for number in failed:
            assert self.placer.drop(number)
        for number, workers in list(self.teams.items()):
            self.teams[number] = tuple(other for other in workers if other != worker)
            if not self.teams[number]:
                assert self.placer.on_ended(number, self.now) == self.teams.pop(number)
        return failed

    def end(self, choice: int) -> None:
        self.now += 1.0
        running = [*self.batches, *self.teams]
        if not running:
            return
        chosen = running[choice % len(running)]
        if isinstance(chosen, Batch):
            self.batches.remove(chosen)
            self.dealer.on_done(chosen.number, chosen.stop - chosen.start, 1.0, 0.0)
            self.placer.on_plain_work(1.0)
            self.n_done += chosen.stop - chosen.start
        else:
            assert self.placer.on_ended(chosen, self.now) == self.teams.pop(chosen)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_every_task_runs_once(script: list[tuple[str, int, frozenset[int] | None]]) -> None:
    """Whatever happens in whatever order, deaths of workers too: what was not dropped runs, on as many as it asked for.

    Unless too few are left; and no item is lost but those that have used up their retries.
    """
    farm = Farm()
    dropped = set()
    for word, n, ok in script:
        able = len(farm.alive) if ok is None else len(ok.intersection(farm.alive))
        if word == "add" and n <= able:
            farm.n_added += 1
            farm.wanted[farm.n_added] = n, ok
            farm.placer.add(farm.n_added, n, ok)
        elif word == "items":
            farm.n_items += n
            farm.dealer.on_items(0, n)
        elif word == "end":
            farm.end(n)
        elif word == "drop" and farm.n_added:
            number = 1 + n % farm.n_added
            waited = number in farm.placer.waiting()
            assert farm.placer.drop(number) == waited
            dropped |= {number} if waited else set()
        elif word == "lose":
            dropped |= set(farm.lose(n))
        farm.settle()
    for _ in range(10 * (farm.n_items + farm.n_added) + 10):
        farm.end(0)
        farm.settle()
    assert farm.n_done + farm.n_failed == farm.n_items
    assert sorted(farm.started) == sorted(set(farm.wanted) - dropped)
    assert not farm.placer.has_waiting
    assert not farm.batches
    assert not farm.teams


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, N), st.floats(0.1, 20.0)), min_size=1, max_size=30),
    st.integers(0, 300),
    st.floats(0.1, 5.0),
)
def test_waiting_is_bounded(wide: list[tuple[int, float]], n_plain: int, plain_s: float) -> None:
    """A task waits for those before it and for a bounded share of plain work, however much of that there is."""
    tasks = [WideTask(0.0, n, seconds) for n, seconds in wide]
    report = simulate_mixed([[plain_s] * n_plain], tasks, HOSTS)
    assert report.n_plain == n_plain
    before = 0.0
    for index, (_, seconds) in enumerate(wide):
        assert report.started[index] <= before + 3 * N * plain_s * (index + 1) + 1e-6
        before += 2 * N * seconds
