"""Collective calls as rank 0 sees them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from taskfarm.errors import ProtocolError, RankFailure
from taskfarm.scheduling.calls import MAX_AHEAD, CallBook, CallRecord


def failure(rank: int, message: str = "no") -> RankFailure:
    return RankFailure(rank, f"host{rank}", "ValueError", message, "Traceback ...")


def state_of(book: CallBook) -> Any:
    """Everything that the book knows, to see that nothing changed."""
    return copy.deepcopy(_with_records_open(vars(book)))


def _with_records_open(value: Any) -> Any:
    """Return `value` with every record in it as the dictionary of its attributes, which can be compared."""
    if isinstance(value, CallRecord):
        return dict(vars(value))
    if isinstance(value, dict):
        return {key: _with_records_open(item) for key, item in value.items()}
    return [_with_records_open(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def book() -> CallBook:
    """A book for two workers."""
    return CallBook([1, 2])


def whole_call(book: CallBook, *, raised: bool = False, failed: tuple[int, ...] = (), ids: int = 0) -> int:
    """One call that every rank is through with; `ids` is the counter before and after it."""
    number = book.begin("f", ids)
    for rank in failed:
        book.on_failed(number, ids, failure(rank))
    book.on_local_end(number, ids, raised=raised)
    for rank in (1, 2):
        book.on_done_up_to(rank, number)
    return number


def told(book: CallBook) -> list[tuple[str, list[int]]]:
    return [(f"call {number} ({what})", [f.rank for f in failures]) for number, what, failures in book.take_untold()]


# Numbers, and how far rank 0 may be ahead


def test_calls_are_numbered_from_1(book: CallBook) -> None:
    """Numbers are consecutive, and `last` is the last one given."""
    assert book.last == 0
    assert [book.begin("f", 0), book.begin("g", 0)] == [1, 2]
    assert book.last == 2


def test_who_is_behind(book: CallBook) -> None:
    """A worker is behind a call until it has reported the end of it or of a later one."""
    for _ in range(3):
        book.on_local_end(book.begin("f", 0), 0, raised=False)
    assert book.behind(0) == []
    assert book.behind(1) == [1, 2]
    book.on_done_up_to(2, 2)
    assert book.behind(1) == [1]
    assert book.behind(3) == [1, 2]
    assert book.done_everywhere == 0
    book.on_done_up_to(1, 3)
    assert book.behind(3) == [2]
    assert book.done_everywhere == 2


def test_rank_0_may_be_ahead_only_so_far(book: CallBook) -> None:
    """At `MAX_AHEAD` calls ahead of the slowest worker rank 0 has to wait."""
    for _ in range(MAX_AHEAD):
        assert not book.must_wait()
        book.on_local_end(book.begin("f", 0), 0, raised=False)
    assert book.must_wait()
    book.on_done_up_to(1, MAX_AHEAD)
    assert book.must_wait()
    book.on_done_up_to(2, 1)
    assert not book.must_wait()


def test_settled_calls_are_forgotten(book: CallBook) -> None:
    """The book does not grow with the number of calls."""
    for _ in range(5):
        whole_call(book)
    assert not book._open
    assert not book._troubled


def test_without_workers_nobody_is_waited_for() -> None:
    """With one process every call is settled when it ends."""
    book = CallBook([])
    for number in range(1, 2 * MAX_AHEAD):
        assert book.begin("f", 0) == number
        book.on_local_end(number, 0, raised=number % 2 == 0)
        assert book.behind(number) == []
        assert not book.must_wait()
    assert not book.has_trouble
    assert not book.diverged


# Failures


def test_a_failure_after_rank_0_returned_is_told_once(book: CallBook) -> None:
    """A worker's failure in a call that rank 0 returned from is pending until it is taken, and then gone."""
    number = book.begin("m.f", 0)
    book.on_local_end(number, 0, raised=False)
    assert not book.has_untold
    book.on_failed(number, 0, failure(2))
    assert book.has_untold
    assert book.has_trouble
    assert book.take_untold() == [(1, "m.f", [failure(2)])]
    assert not book.has_untold
    assert book.take_untold() == []
    book.on_done_up_to(1, 1)
    book.on_done_up_to(2, 1)
    assert book.take_untold() == []


def test_a_failure_before_rank_0_returned_is_told_after_it(book: CallBook) -> None:
    """While rank 0 runs its own part nobody knows how it will end: the failure becomes pending when it returned."""
    number = book.begin("f", 0)
    book.on_failed(number, 0, failure(1))
    assert not book.has_untold
    book.on_local_end(number, 0, raised=False)
    assert told(book) == [("call 1 (f)", [1])]


def test_failures_are_told_by_rank(book: CallBook) -> None:
    """Failures of one call come in rank order, those of several calls in the order of the calls."""
    first, second = book.begin("f", 0), book.begin("g", 0)
    book.on_local_end(second, 0, raised=False)
    book.on_local_end(first, 0, raised=False)
    book.on_failed(first, 0, failure(2))
    book.on_failed(first, 0, failure(1))
    book.on_failed(second, 0, failure(2))
    assert told(book) == [("call 1 (f)", [1, 2]), ("call 2 (g)", [2])]


def test_a_later_failure_of_the_same_call_is_told_alone(book: CallBook) -> None:
    """What was told once is not told again when another rank of the same call fails later."""
    number = book.begin("f", 0)
    book.on_local_end(number, 0, raised=False)
    book.on_failed(number, 0, failure(2))
    assert told(book) == [("call 1 (f)", [2])]
    book.on_failed(number, 0, failure(1))
    assert told(book) == [("call 1 (f)", [1])]


def test_a_failure_is_pending_after_the_call_is_settled(book: CallBook) -> None:
    """That every rank is through with a call does not forget its failures."""
    whole_call(book, failed=(1,))
    assert not book.has_trouble
    assert told(book) == [("call 1 (f)", [1])]


@pytest.mark.parametrize("settled", [False, True])
def test_failures_belong_to_rank_0s_own_exception(book: CallBook, settled: bool) -> None:
    """If rank 0 raised, the workers' failures are for its exception, before and after all are through; only once."""
    number = book.begin("f", 0)
    book.on_failed(number, 0, failure(2))
    book.on_local_end(number, 0, raised=True)
    book.on_failed(number, 0, failure(1))
    if settled:
        book.on_done_up_to(1, number)
        book.on_done_up_to(2, number)
    assert not book.has_untold
    assert [f.rank for f in book.take_failures_of(number)] == [1, 2]
    assert book.take_failures_of(number) == []
    assert book.take_untold() == []


def test_late_failures_of_a_call_that_rank_0_failed_are_never_told(book: CallBook) -> None:
    """Failures that come after rank 0's exception has been raised are not raised by themselves."""
    number = book.begin("f", 0)
    book.on_local_end(number, 0, raised=True)
    assert book.take_failures_of(number) == []
    book.on_failed(number, 0, failure(1))
    book.on_done_up_to(1, number)
    book.on_done_up_to(2, number)
    assert not book.has_untold
    assert book.take_untold() == []


def test_trouble_lasts_until_the_call_is_settled(book: CallBook) -> None:
    """A call that failed anywhere is trouble until every rank is through with it."""
    number = book.begin("f", 0)
    book.on_local_end(number, 0, raised=True)
    assert book.has_trouble
    book.on_done_up_to(1, number)
    assert book.has_trouble
    book.on_done_up_to(2, number)
    assert not book.has_trouble


# Whether outcomes differ


@pytest.mark.parametrize(
    ("raised", "failed", "diverged"),
    [
        (False, (), False),
        (True, (1, 2), False),
        (True, (), True),
        (True, (1,), True),
        (False, (2,), True),
        (False, (1, 2), True),
    ],
)
def test_diverged_only_if_outcomes_differ(
    book: CallBook, raised: bool, failed: tuple[int, ...], diverged: bool
) -> None:
    """Data may be left in the communicator only if some ranks raised and others did not."""
    whole_call(book, raised=raised, failed=failed)
    assert book.diverged is diverged
    whole_call(book)
    assert book.diverged is diverged
    book.on_repaired()
    assert not book.diverged


def test_who_used_the_communicator(book: CallBook) -> None:
    """Data can wait in the communicator only if some rank has used it since the last repair."""
    number = book.begin("f", 0)
    book.on_local_end(number, 0, raised=True)
    book.on_done_up_to(1, number, 0)
    book.on_done_up_to(2, number, 3)
    assert book.has_used_comm(0)
    book.on_repaired()
    assert not book.has_used_comm(0)
    assert book.has_used_comm(1)
    book.on_repaired()
    assert not book.has_used_comm(1)


def test_diverged_is_known_only_when_all_are_through(book: CallBook) -> None:
    """While a rank is still inside the call its outcome is open."""
    number = book.begin("f", 0)
    book.on_local_end(number, 0, raised=True)
    book.on_failed(number, 0, failure(1))
    book.on_done_up_to(1, number)
    assert not book.diverged
    book.on_failed(number, 0, failure(2))
    book.on_done_up_to(2, number)
    assert not book.diverged


def test_a_running_call_holds_the_later_ones(book: CallBook) -> None:
    """A call that rank 0 made inside another one is settled after the outer one has ended there."""
    outer = book.begin("outer", 0)
    inner = book.begin("inner", 0)
    book.on_failed(inner, 0, failure(1))
    book.on_local_end(inner, 0, raised=False)
    for rank in (1, 2):
        book.on_done_up_to(rank, inner)
    assert book.has_trouble
    book.on_local_end(outer, 0, raised=False)
    assert not book.has_trouble
    assert told(book) == [("call 2 (inner)", [1])]


# Ids


@pytest.mark.parametrize(
    ("raised", "rank_0", "failed", "orphans"),
    [
        (False, 12, {1: 10}, [10, 11]),
        (False, 12, {1: 11, 2: 12}, [11]),
        (False, 12, {1: 12}, []),
        (False, 10, {1: 10}, []),
        (True, 12, {1: 10, 2: 11}, [10, 11]),
        (True, 11, {}, []),
    ],
)
def test_orphans(book: CallBook, raised: bool, rank_0: int, failed: dict[int, int], orphans: list[int]) -> None:
    """An id that rank 0 gave and a failed rank did not is told once, when every rank is through."""
    number = book.begin("f", 10)
    for rank, counter in failed.items():
        book.on_failed(number, counter, failure(rank))
    book.on_local_end(number, rank_0, raised=raised)
    assert book.take_orphans() == []
    for rank in (1, 2):
        book.on_done_up_to(rank, number)
    assert book.take_orphans() == orphans
    assert book.take_orphans() == []


def test_ids_before_the_call_are_no_orphans(book: CallBook) -> None:
    """A rank that failed before it could read its counter puts no earlier object in danger."""
    number = book.begin("f", 10)
    book.on_failed(number, 0, failure(1))
    book.on_local_end(number, 11, raised=False)
    for rank in (1, 2):
        book.on_done_up_to(rank, number)
    assert book.take_orphans() == [10]


def test_ids_of_a_later_call_are_no_orphans(book: CallBook) -> None:
    """What a failed rank made beyond rank 0's counter is given again by the next call, and must stay then."""
    first = book.begin("f", 0)
    book.on_local_end(first, 1, raised=False)
    second = book.begin("g", 1)
    book.on_local_end(second, 2, raised=False)  # made id 1 on every rank
    book.on_failed(first, 2, failure(1))  # had made ids 0 and 1 before it failed
    for rank in (1, 2):
        book.on_done_up_to(rank, second)
    assert book.take_orphans() == []


def test_ids_of_a_call_within_a_call_are_no_orphans_of_it(book: CallBook) -> None:
    """What a call that rank 0 made inside another one created is not what the outer one should have created."""
    outer = book.begin("outer", 5)
    inner = book.begin("inner", 5)
    book.on_local_end(inner, 7, raised=False)  # made ids 5 and 6 on every rank
    book.on_local_end(outer, 8, raised=False)  # made id 7 itself
    book.on_failed(outer, 5, failure(1))
    for rank in (1, 2):
        book.on_done_up_to(rank, inner)
    assert book.take_orphans() == [7]


def test_orphans_of_several_calls(book: CallBook) -> None:
    """Orphans are collected over calls, in order."""
    first, second = book.begin("f", 3), book.begin("g", 5)
    book.on_local_end(second, 7, raised=False)
    book.on_local_end(first, 5, raised=False)
    book.on_failed(first, 4, failure(2))
    book.on_failed(second, 6, failure(1))
    for rank in (1, 2):
        book.on_done_up_to(rank, second)
    assert book.take_orphans() == [4, 6]


# What does not fit


def test_ends_that_do_not_fit_change_nothing(book: CallBook) -> None:
    """Rank 0 ends a call that it has begun, once."""
    number = book.begin("f", 0)
    book.on_local_end(number, 0, raised=False)
    before = state_of(book)
    for raised in (False, True):
        with pytest.raises(ProtocolError, match="call 1 is RETURNED, which does not allow"):
            book.on_local_end(number, 0, raised=raised)
    for other in (0, 2, -1):
        with pytest.raises(ProtocolError, match=f"call {other} ended on rank 0, but is not open"):
            book.on_local_end(other, 0, raised=False)
    assert state_of(book) == before
    whole_call(book)
    before = state_of(book)
    with pytest.raises(ProtocolError):
        book.on_local_end(number, 0, raised=False)
    assert state_of(book) == before


def test_failures_that_do_not_fit_change_nothing(book: CallBook) -> None:
    """A failure is of an open call, of a worker, and before that worker's end of it."""
    number = book.begin("f", 0)
    book.on_local_end(number, 0, raised=False)
    book.on_done_up_to(1, number)
    before = state_of(book)
    for call, rank in [(number + 1, 1), (0, 1), (number, 1), (number, 3), (number, 0)]:
        with pytest.raises(ProtocolError, match=f"rank {rank} reported a failure of call {call}"):
            book.on_failed(call, 0, failure(rank))
    assert state_of(book) == before


def test_a_failure_is_reported_once(book: CallBook) -> None:
    """A second failure of the same rank in the same call does not fit, and the first one stays."""
    number = book.begin("f", 0)
    book.on_local_end(number, 0, raised=False)
    book.on_failed(number, 0, failure(1, "first"))
    before = state_of(book)
    with pytest.raises(ProtocolError):
        book.on_failed(number, 0, failure(1, "second"))
    assert state_of(book) == before


def test_reports_that_do_not_fit_change_nothing(book: CallBook) -> None:
    """A worker reports calls that were made, and never goes back."""
    for _ in range(3):
        book.on_local_end(book.begin("f", 0), 0, raised=False)
    book.on_done_up_to(1, 2)
    before = state_of(book)
    for rank, number in [(1, 1), (1, 4), (2, -1), (3, 1), (0, 1)]:
        with pytest.raises(ProtocolError, match=f"rank {rank} reported the end of call {number}"):
            book.on_done_up_to(rank, number)
    assert state_of(book) == before
    book.on_done_up_to(1, 2)
    assert state_of(book) == before
