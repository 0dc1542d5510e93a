"""Dealing of items to workers: how many, to whom, and what is learnt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from taskfarm.errors import ProtocolError
from taskfarm.scheduling.dealing import Batch, Dealer, LostBatch
from taskfarm.scheduling.pacing import (
    BATCH_BYTES,
    HANDLING_S,
    LOOK_AHEAD_BYTES,
    MAX_DEPTH,
    TARGET_S,
    Loss,
    give_back_s,
    target_s,
)

JOB = 7


@pytest.fixture
def dealer() -> Iterator[Dealer]:
    dealer = Dealer([1, 2])
    dealer.on_job(JOB, 2)
    yield dealer
    dealer.check_invariants()


def deal(dealer: Dealer) -> list[Batch]:
    batches = list(dealer.deal())
    dealer.check_invariants()
    return batches


def test_first_batches_are_one_item_and_one_per_worker(dealer: Dealer) -> None:
    """Of what nothing is known yet, no worker gets more than one item, whatever waits."""
    dealer.on_items(JOB, 100)
    assert deal(dealer) == [Batch(1, JOB, 1, 0, 1), Batch(2, JOB, 2, 1, 2)]
    assert deal(dealer) == []
    assert dealer.n_waiting(JOB) == 98
    assert dealer.n_busy() == 2


def test_short_tasks_get_large_batches_and_two_of_them(dealer: Dealer) -> None:
    """Batches grow to the target, and the next one is there before the last has ended."""
    dealer.on_items(JOB, 1_000_000)
    deal(dealer)
    for _ in range(20):
        for batch in list(dealer.flying.values()):
            dealer.on_done(batch.number, batch.stop - batch.start, 1e-6 * (batch.stop - batch.start), 0.0)
            deal(dealer)
    sizes = {batch.stop - batch.start for batch in dealer.flying.values()}
    assert sizes <= {int(TARGET_S / 1e-6) - 1, int(TARGET_S / 1e-6)}  # the pace is a rounded mean
    assert sorted(batch.worker for batch in dealer.flying.values()) == [1, 1, 2, 2]


def test_long_tasks_are_not_queued_behind_one_another(dealer: Dealer) -> None:
    """While a worker runs tasks of a second, none waits behind them that another one could take."""
    dealer.on_items(JOB, 100)
    for _ in range(6):
        deal(dealer)
        dealer.on_done(next(iter(dealer.flying)), 1, 1.0, 1e-4)
    deal(dealer)
    assert sorted(batch.worker for batch in dealer.flying.values()) == [1, 2]


def test_a_long_way_is_filled_with_work() -> None:
    """If a worker waits although items do, more batches are sent to it; forgotten when it waits no more."""
    dealer = Dealer([1])
    dealer.on_job(JOB, 1)
    dealer.on_items(JOB, 100_000)
    deal(dealer)
    for _ in range(20):
        dealer.on_done(next(iter(dealer.flying)), 1, 2e-3, 20e-3)
        deal(dealer)
    assert 10 <= len(dealer.flying) <= 40
    for _ in range(3000):
        dealer.on_done(next(iter(dealer.flying)), 1, 2e-3, 0.0)
        deal(dealer)
    assert len(dealer.flying) == 2
    assert MAX_DEPTH > 40


def test_the_tail_is_shared(dealer: Dealer) -> None:
    """Near the end batches get smaller, but not so small that messages would take longer than the work."""
    dealer.on_items(JOB, 4000)
    sizes = [batch.stop - batch.start for batch in deal(dealer)]
    while dealer.flying:
        number = next(iter(dealer.flying))
        batch = dealer.flying[number]
        n = batch.stop - batch.start
        dealer.on_done(number, n, n * 10e-6, 0.0)
        sizes += [batch.stop - batch.start for batch in deal(dealer)]
    assert sum(sizes) == 4000
    assert max(sizes) == int(TARGET_S / 10e-6)
    assert sizes[-3] <= int(TARGET_S / 10e-6) // 2
    assert sorted(sizes[2:])[2] >= int(HANDLING_S / 10e-6)


def test_chunks_stay_together() -> None:
    """Items of a chunk leave in one batch, whatever the pace; short chunks leave together, long ones alone."""
    dealer = Dealer([1, 2, 3])
    dealer.on_job(JOB, 3, 10)
    dealer.on_items(JOB, 1005)
    seen = []
    while batches := deal(dealer):
        seen += batches
        for batch in batches:
            dealer.on_done(batch.number, batch.stop - batch.start, 1e-6, 0.0)
    assert all(batch.start % 10 == 0 for batch in seen)
    assert all(batch.stop % 10 == 0 for batch in seen if batch.stop != 1005)
    assert max(batch.stop - batch.start for batch in seen) >= 100
    dealer.on_items(JOB, 95)
    while batches := deal(dealer):
        assert all(batch.stop - batch.start <= 10 for batch in batches)
        for batch in batches:
            dealer.on_done(batch.number, batch.stop - batch.start, 1.0, 0.0)


def test_what_was_not_begun_is_dealt_anew_and_first(dealer: Dealer) -> None:
    """The rest of a batch that a worker gives back comes before later items."""
    dealer.on_items(JOB, 10)
    first, second = deal(dealer)
    for batch in (first, second):
        dealer.on_done(batch.number, 1, 1e-6, 0.0)
    batch = deal(dealer)[0]
    assert batch.stop - batch.start > 1
    dealer.on_done(batch.number, 1, 0.5, 0.0)
    assert deal(dealer)[0].start == batch.start + 1


def test_what_cannot_be_sent_together_is_sent_one_by_one() -> None:
    """Items of a batch that does not pickle are dealt singly, in their order."""
    dealer = Dealer([1])
    dealer.on_job(JOB, 1, 4)
    dealer.on_items(JOB, 8)
    (batch,) = deal(dealer)
    assert dealer.on_unsent(batch.number) == batch
    seen = []
    while dealer.flying or dealer.has_waiting:
        for one in deal(dealer):
            seen.append((one.start, one.stop))
            dealer.on_done(one.number, one.stop - one.start, 1e-3, 0.0)
    assert seen == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 8)]


def test_jobs_take_turns() -> None:
    """Two jobs with items get batches in turn, and a limited one stays on its workers."""
    dealer = Dealer([1, 2, 3, 4])
    dealer.on_job(1, 4, 1)
    dealer.on_job(2, 1, 1)
    dealer.on_items(1, 10)
    dealer.on_items(2, 10)
    batches = deal(dealer)
    assert {batch.job for batch in batches} == {1, 2} or {batch.worker for batch in batches} == {1, 2, 3, 4}
    assert {batch.worker for batch in batches if batch.job == 2} <= {1}


def test_dropped_items_are_not_dealt(dealer: Dealer) -> None:
    """What waits can be dropped; what is under way comes back and changes nothing."""
    dealer.on_items(JOB, 10)
    batch, _ = deal(dealer)
    assert dealer.drop_waiting(JOB) == [(2, 10)]
    assert dealer.drop_waiting(99) == []
    dealer.drop_job(JOB)
    dealer.on_done(batch.number, 0, 0.0, 0.0)
    assert deal(dealer) == []


@pytest.mark.parametrize(("number", "n_done"), [(5, 1), (1, 2), (1, -1)])
def test_impossible_reports_change_nothing(dealer: Dealer, number: int, n_done: int) -> None:
    """A report of a batch that was not dealt, or of more items than it has, raises `ProtocolError`."""
    dealer.on_items(JOB, 2)
    flying = {batch.number: batch for batch in deal(dealer)}
    with pytest.raises(ProtocolError, match=f"batch {number}"):
        dealer.on_done(number, n_done, 1.0, 0.0)
    assert dealer.flying == flying


def test_pace_is_forgotten_when_a_job_rests(dealer: Dealer) -> None:
    """After a burst of tiny tasks, a second burst is found out anew: it may be of another kind."""
    for _ in range(2):
        dealer.on_items(JOB, 3)
        assert [batch.stop - batch.start for batch in deal(dealer)] == [1, 1]
        while dealer.flying:
            dealer.on_done(next(iter(dealer.flying)), 1, 1e-6, 0.0)
            deal(dealer)
            assert (dealer.task_s(JOB) is None) == (not dealer.flying)
        assert dealer.task_s(JOB) is None


def test_look_ahead_follows_the_pace(dealer: Dealer) -> None:
    """A few items per worker while nothing is known, then a tenth of a second's work, within bounds."""
    few = dealer.look_ahead(JOB)
    dealer.on_items(JOB, 1000)
    batch = deal(dealer)[0]
    dealer.on_done(batch.number, 1, 1e-4, 0.0)
    assert few == 8
    assert dealer.look_ahead(JOB) == 2000


def test_large_items_leave_in_small_batches(dealer: Dealer) -> None:
    """However fast the tasks, batches and what is read ahead are bounded in bytes, too; but one item always goes."""
    dealer.on_items(JOB, 1000)
    for batch in deal(dealer):
        dealer.on_done(batch.number, 1, 1e-5, 0.0, 1 << 20)
    for _ in range(10):
        deal(dealer)
        batch = dealer.flying[min(dealer.flying)]
        n = batch.stop - batch.start
        dealer.on_done(batch.number, n, 1e-5 * n, 0.0, n << 20)
    assert max(batch.stop - batch.start for batch in deal(dealer) or dealer.flying.values()) == BATCH_BYTES >> 20
    assert dealer.look_ahead(JOB) == LOOK_AHEAD_BYTES >> 20
    dealer.on_packed(min(dealer.flying), 1 << 40)
    dealer.on_done(min(dealer.flying), 1, 1e-5, 0.0)
    assert {batch.stop - batch.start for batch in deal(dealer)} == {1}
    assert dealer.look_ahead(JOB) == 8


def test_a_late_worker_is_told_that_this_is_known(dealer: Dealer) -> None:
    """The first batch after a worker was late is fresh, later ones are not; one that is expected to be long says so."""
    dealer.on_items(JOB, 100)
    first, second = deal(dealer)
    assert (first.is_fresh, first.is_long) == (False, False)
    dealer.on_done(first.number, 1, 1.0, 0.0, late=True)
    (batch,) = deal(dealer)
    assert (batch.worker, batch.is_fresh, batch.is_long) == (first.worker, True, True)
    dealer.on_unsent(batch.number)
    (batch,) = deal(dealer)
    assert batch.is_fresh
    dealer.on_void(batch.number)
    (batch,) = deal(dealer)
    assert batch.is_fresh
    dealer.on_done(batch.number, 0, 0.0, 0.0)
    (batch,) = deal(dealer)
    assert not batch.is_fresh
    dealer.on_done(second.number, 1, 1.0, 0.0)
    assert not any(one.is_fresh for one in deal(dealer))
    dealer.check_invariants()


def test_little_work_waits_for_an_idle_worker(dealer: Dealer) -> None:
    """What would take less time than its message is not sent behind other work, but at once where a worker is idle."""
    dealer.on_items(JOB, 3)
    first, _ = deal(dealer)
    dealer.on_done(first.number, 1, 1e-6, 0.0)
    assert [batch.worker for batch in deal(dealer)] == [first.worker]
    dealer.on_items(JOB, 5)
    assert deal(dealer) == []
    assert dealer.has_waiting
    dealer.on_items(JOB, int(HANDLING_S / 1e-6))
    assert deal(dealer) != []


def test_many_workers_get_longer_batches() -> None:
    """Rank 0 handles the batches of a thousand workers one after another: they must last longer."""
    assert target_s(4) == TARGET_S
    assert target_s(1000) == pytest.approx(0.05)
    assert give_back_s(1000) == pytest.approx(0.25)


def run_all(dealer: Dealer, n: int) -> list[Batch]:
    """Let `n` rounds of batches come back, a microsecond per item; return what is under way then."""
    for _ in range(n):
        for batch in list(dealer.flying.values()):
            dealer.on_done(batch.number, batch.stop - batch.start, 1e-6 * (batch.stop - batch.start), 0.0)
        deal(dealer)
    return list(dealer.flying.values())


def test_what_a_lost_worker_had_is_dealt_again_but_not_to_it(dealer: Dealer) -> None:
    """All items of a lost worker go to others, one by one and before what waits; nothing is dealt to it any more."""
    dealer.on_items(JOB, 1000)
    deal(dealer)
    under_way = run_all(dealer, 3)
    had = [batch for batch in under_way if batch.worker == 1]
    assert dealer.on_worker_lost(1, "killed by SIGKILL") == [LostBatch(batch, {}) for batch in had]
    assert dealer.lanes.workers == [2]
    items = [item for batch in had for item in range(batch.start, batch.stop)]
    again = []
    while len(again) < len(items):
        for batch in list(dealer.flying.values()):
            dealer.on_done(batch.number, batch.stop - batch.start, 1e-6, 0.0)
        again += [batch.start for batch in deal(dealer) if batch.stop - batch.start == 1]
    assert again == items
    assert {batch.worker for batch in dealer.flying.values()} == {2}
    assert dealer.on_worker_lost(1, "killed by SIGKILL") == []


def test_an_item_in_doubt_is_alone_at_its_worker(dealer: Dealer) -> None:
    """Nothing is under way beside an item that may have ended its worker, so the next loss blames it alone."""
    dealer.on_items(JOB, 1_000_000)
    deal(dealer)
    run_all(dealer, 10)
    had = [batch for batch in dealer.flying.values() if batch.worker == 1]
    assert len(had) == 2
    dealer.on_worker_lost(1, "gone")
    assert deal(dealer) == []  # rank 2 is not free yet
    for batch in [batch for batch in dealer.flying.values() if batch.worker == 2]:
        dealer.on_done(batch.number, batch.stop - batch.start, 1e-3, 0.0)
    [alone] = deal(dealer)
    assert (alone.start, alone.stop) == (had[0].start, had[0].start + 1)


def test_an_item_that_costs_worker_after_worker_fails() -> None:
    """After its last retry an item fails, with the story of its attempts; those that were there by chance do not."""
    dealer = Dealer(range(1, 7))
    dealer.on_job(JOB, 6, 3, retries=2)
    dealer.on_items(JOB, 3)
    [batch] = deal(dealer)
    assert dealer.on_worker_lost(batch.worker, "first") == [LostBatch(batch, {})]
    causes = ["second", "third"]
    stories = []
    while dealer.flying or dealer.has_waiting:
        deal(dealer)
        batch = next(iter(dealer.flying.values()))
        if batch.start == 1:
            [lost] = dealer.on_worker_lost(batch.worker, causes.pop(0))
            stories.append(lost.failed)
        else:
            dealer.on_done(batch.number, 1, 1e-6, 0.0)
    assert [list(story) for story in stories] == [[], [1]]
    assert [loss.cause for loss in stories[1][1]] == ["first", "second", "third"]
    assert dealer.losses(JOB, 1) == dealer.losses(JOB, 0) == ()
    dealer.check_invariants()


def test_without_retries_all_that_may_have_begun_fails(dealer: Dealer) -> None:
    """`retries=0` means that no item is begun twice: whatever a lost worker had has failed."""
    dealer.on_job(8, 2, 5, retries=0)
    dealer.on_items(8, 5)
    [batch] = deal(dealer)
    [lost] = dealer.on_worker_lost(batch.worker, "gone")
    assert lost.failed == {item: (Loss(batch.worker, "gone"),) for item in range(5)}
    assert not dealer.has_waiting
    dealer.on_job(9, 2, 5)
    dealer.on_items(9, 5)
    dealer.limit_retries(9, 3, 0)
    [batch] = deal(dealer)
    assert list(dealer.on_worker_lost(batch.worker, "gone")[0].failed) == [3]


def test_a_lost_item_of_a_living_worker(dealer: Dealer) -> None:
    """Of a batch that is lost with a task child, the item that was being run is charged; all are dealt again."""
    dealer.on_job(8, 1, 5, retries=1)
    dealer.on_items(8, 5)
    [batch] = deal(dealer)
    assert dealer.on_item_lost(batch.number, 2, "SIGSEGV") == (batch, ())
    again = []
    for _ in range(3):
        [part] = deal(dealer)
        again.append((part.start, part.stop))
        if part.start != 2:
            dealer.on_done(part.number, part.stop - part.start, 1e-6, 0.0)
            continue
        with pytest.raises(ProtocolError):
            dealer.on_item_lost(part.number, 1, "SIGSEGV")
        story = (Loss(batch.worker, "SIGSEGV"), Loss(batch.worker, "SIGBUS"))
        assert dealer.on_item_lost(part.number, 0, "SIGBUS") == (part, story)
    assert again == [(0, 2), (2, 3), (3, 5)]
    assert deal(dealer) == []


def test_a_lost_item_that_may_not_be_tried_again(dealer: Dealer) -> None:
    """An attempt that must not be repeated is the last one, whatever retries are left."""
    dealer.on_job(8, 1, 2)
    dealer.on_items(8, 2)
    [batch] = deal(dealer)
    assert dealer.on_item_lost(batch.number, 0, "time", may_retry=False)[1] == (Loss(batch.worker, "time"),)
    assert [(part.start, part.stop) for part in deal(dealer)] == [(1, 2)]


def test_a_batch_lost_at_an_unknown_item(dealer: Dealer) -> None:
    """If nobody knows which item it was, they are dealt one by one, and a second loss blames exactly one."""
    dealer.on_job(8, 2, 3, retries=0)
    dealer.on_items(8, 3)
    [batch] = deal(dealer)
    assert dealer.on_item_lost(batch.number, None, "gone") == (batch, ())
    first, second = deal(dealer)
    assert [(part.start, part.stop) for part in (first, second)] == [(0, 1), (1, 2)]
    assert dealer.on_item_lost(second.number, None, "gone") == (second, (Loss(second.worker, "gone"),))


def test_a_job_that_is_dropped_takes_its_doubts_along(dealer: Dealer) -> None:
    """Items in doubt of a job that is forgotten are not dealt, and keep nobody from the next batch."""
    dealer.on_items(JOB, 10)
    deal(dealer)
    dealer.on_worker_lost(1, "gone")
    assert dealer.drop_waiting(JOB) == [(0, 1), (2, 10)]
    dealer.drop_job(JOB)
    dealer.on_job(8, 2)
    dealer.on_items(8, 1)
    dealer.on_done(next(iter(dealer.flying)), 1, 1e-6, 0.0)
    assert [batch.worker for batch in deal(dealer)] == [2]


def test_a_job_for_one_worker_moves_to_another(dealer: Dealer) -> None:
    """A job that may use one worker uses another one if that is lost."""
    dealer.on_job(8, 1)
    dealer.on_items(8, 1)
    [batch] = deal(dealer)
    assert batch.worker == 1
    dealer.on_worker_lost(1, "gone")
    assert [batch.worker for batch in deal(dealer)] == [2]
