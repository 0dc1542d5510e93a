"""Which workers run tasks that need several, and when."""

from __future__ import annotations

import itertools
import random

import pytest

from taskfarm.errors import ProtocolError, UsageError
from taskfarm.scheduling.dealing import Dealer
from taskfarm.scheduling.mixed import WideTask, simulate_mixed
from taskfarm.scheduling.placing import Placer

HOSTS = {1: "a", 2: "a", 3: "a", 4: "b", 5: "b", 6: "b", 7: "b"}


def farm(hosts: dict[int, str] = HOSTS) -> tuple[Dealer, Placer]:
    dealer = Dealer(hosts)
    return dealer, Placer(dealer, hosts)


def placed(placer: Placer, now: float = 0.0) -> dict[int, tuple[int, ...]]:
    found = {placement.number: placement.workers for placement in placer.place(now)}
    placer.check_invariants()
    return found


def test_a_task_gets_workers_of_one_host() -> None:
    """Where one host has enough idle workers, they are taken there."""
    _, placer = farm()
    placer.add(1, 4)
    assert placed(placer) == {1: (4, 5, 6, 7)}
    placer.add(2, 3)
    assert placed(placer) == {2: (1, 2, 3)}


def test_a_task_that_is_wider_than_any_host_spans_several() -> None:
    """It takes as few hosts as can be, the largest first."""
    _, placer = farm({1: "a", 2: "b", 3: "b", 4: "c", 5: "c"})
    placer.add(1, 4)
    assert placed(placer) == {1: (2, 3, 4, 5)}


def test_tasks_start_in_their_order() -> None:
    """A later task does not overtake one that waits for the same workers."""
    _, placer = farm()
    placer.add(1, 5)
    placer.add(2, 6)
    placer.add(3, 3)
    assert len(placed(placer)[1]) == 5
    assert placer.waiting() == [2, 3]
    placer.on_ended(1, 1.0)
    assert list(placed(placer, 1.0)) == [2]
    placer.on_ended(2, 2.0)
    assert list(placed(placer, 2.0)) == [3]


def test_only_allowed_workers_are_taken() -> None:
    """Placement is obeyed, and tasks for other workers pass by one that waits for its own."""
    _, placer = farm()
    gpu = frozenset({2, 5})
    placer.add(1, 2, gpu)
    placer.add(2, 1, gpu)
    placer.add(3, 2)
    found = placed(placer)
    assert found[1] == (2, 5)
    assert 3 in found
    assert not set(found[3]) & gpu
    assert placer.waiting() == [2]
    placer.on_ended(1, 1.0)
    assert placed(placer, 1.0)[2][0] in gpu


def test_what_nobody_can_run_is_refused() -> None:
    """The error says how many there are."""
    _, placer = farm()
    with pytest.raises(UsageError, match="needs 8 workers, and 7 may run it"):
        placer.add(1, 8)
    with pytest.raises(UsageError, match="needs 2 workers, and 1 may run it"):
        placer.add(1, 2, frozenset({3, 99}))
    with pytest.raises(ProtocolError):
        placer.on_ended(1, 0.0)


def test_a_waiting_task_stops_the_dealing_ahead() -> None:
    """Workers that are reserved get nothing more, and the task starts when the last of them is through."""
    dealer, placer = farm({1: "a", 2: "a", 3: "a", 4: "a"})
    dealer.on_job(7, 4)
    dealer.on_items(7, 100)
    first = list(dealer.deal(0.0))
    assert {batch.worker for batch in first} == {1, 2, 3, 4}
    placer.add(1, 2)
    assert placed(placer) == {}
    assert list(dealer.deal(0.0)) == []
    for batch in first:
        dealer.on_done(batch.number, 1, 10.0, 0.0)
        found = placed(placer, 10.0)
        if found:
            break
        assert not [new for new in dealer.deal(10.0) if new.worker in (1, 2)]
    assert found == {1: (1, 2)}


def test_a_dropped_reservation_gives_the_workers_back() -> None:
    """Plain tasks go on there."""
    dealer, placer = farm({1: "a", 2: "a"})
    dealer.on_job(7, 2)
    dealer.on_items(7, 9)
    batches = list(dealer.deal(0.0))
    placer.debt_s = 0.0
    placer.add(1, 2)
    placed(placer)
    assert placer.drop(1)
    assert not placer.drop(1)
    for batch in batches:
        dealer.on_done(batch.number, 1, 1.0, 0.0)
    assert len({batch.worker for batch in dealer.deal(1.0)}) == 2
    placer.check_invariants()


def test_holes_are_filled_without_delay() -> None:
    """While a wide task waits for long plain ones, short ones run on the workers that it has; it starts on time."""
    hosts = dict.fromkeys(range(8), "a")
    plain = [[40.0] * 12, [1.0] * 600]
    alone = simulate_mixed(plain[:1], [WideTask(45.0, 8, 5.0)], hosts)
    report = simulate_mixed(plain, [WideTask(45.0, 8, 5.0)], hosts)
    assert report.n_plain == 612
    assert report.n_backfilled > 20
    assert report.started[0] <= alone.started[0] + 1.0  # a short one was before a long one when it was submitted


def test_plain_tasks_keep_half_of_the_workers() -> None:
    """A flood of placed tasks does not stop plain ones, nor the other way round."""
    hosts = {rank: f"h{rank // 4}" for rank in range(16)}
    wide = [WideTask(0.0, 4, 10.0) for _ in range(40)]
    report = simulate_mixed([[1.0] * 800], wide, hosts)
    assert report.n_plain == 800
    assert sorted(report.started) == list(range(40))
    assert sorted(report.plain_ends)[400] < 0.7 * report.makespan_s
    assert report.started[10] < 0.7 * report.makespan_s
    assert report.busy_s >= 0.95 * 16 * report.makespan_s


def test_a_task_for_all_workers_takes_turns_with_plain_ones() -> None:
    """After it, plain tasks get as much time before the next one."""
    report = simulate_mixed([[1.0] * 400], [WideTask(0.0, 4, 10.0) for _ in range(5)], dict.fromkeys(range(4), "a"))
    starts = [report.started[index] for index in range(5)]
    assert all(later - earlier >= 20.0 for earlier, later in itertools.pairwise(starts))
    assert starts[-1] <= 100.0 + 5 * 10.0


def test_a_thousand_workers_stay_busy_with_mixed_widths() -> None:
    """Widths from 1 to 256 on hosts of 32, beside plain tasks: everything runs, in turn, and little time is lost."""
    rng = random.Random(1)
    hosts = {rank: f"h{rank // 32}" for rank in range(1024)}
    plain = [[rng.lognormvariate(0.0, 0.5) for _ in range(40_000)]]
    widths = [1, 2, 4, 8, 16, 32, 64, 256]
    wide = [WideTask(0.05 * n, rng.choice(widths), rng.uniform(1.0, 10.0)) for n in range(400)]
    report = simulate_mixed(plain, wide, hosts)
    assert report.n_plain == 40_000
    assert len(report.started) == 400
    assert report.busy_s >= 0.8 * 1024 * report.makespan_s
    on_one_host = [len({hosts[worker] for worker in report.workers[n]}) == 1 for n in range(400) if wide[n][1] <= 8]
    assert sum(on_one_host) >= 0.6 * len(on_one_host)
