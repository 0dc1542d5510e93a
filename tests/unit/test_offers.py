"""Arrays that have been offered and were not claimed yet."""

from __future__ import annotations

import pytest

from taskfarm.scheduling.mailbox import Mailbox, Place
from taskfarm.scheduling.offers import Offer, Offers


def offer(ticket: int, *, rank: int = 1, number: int = 1, to: int = 0) -> Offer:
    return Offer(rank, number, to, ticket, b"shape (3,), dtype <f8, order C")


def offers_of(number: int | None, *tickets: Offer) -> tuple[Mailbox, Offers]:
    mailbox = Mailbox(number)
    offers = Offers(mailbox)
    for item in tickets:
        assert offers.put(item)
    return mailbox, offers


def test_first_come_first_claimed() -> None:
    """Offers are handed out once each, in the order of arrival."""
    _, offers = offers_of(0, offer(1, rank=2), offer(1, rank=1), offer(2, rank=2))
    assert len(offers) == 3
    assert [offers.take(), offers.take(), offers.take()] == [offer(1, rank=2), offer(1, rank=1), offer(2, rank=2)]
    assert offers.take() is None
    assert len(offers) == 0


def test_a_rank_and_a_task_can_be_asked_for() -> None:
    """With a rank, or a task of it, only its offers are handed out; the others stay in their order."""
    first, second, third = offer(1, rank=1, number=4), offer(2, rank=1, number=5), offer(1, rank=2, number=6)
    _, offers = offers_of(0, first, second, third)
    assert offers.take(3) is None
    assert offers.take(1, 6) is None
    assert offers.take(1, 5) == second
    assert offers.take(2) == third
    assert offers.take() == first


def test_an_offer_can_be_withdrawn() -> None:
    """What its rank withdraws is handed out no more; tickets of several ranks are not mixed up."""
    _, offers = offers_of(0, offer(1, rank=1), offer(1, rank=2))
    assert not offers.withdraw(3, 1)
    assert not offers.withdraw(2, 2)
    assert offers.withdraw(2, 1)
    assert not offers.withdraw(2, 1)
    assert offers.take() == offer(1, rank=1)
    assert offers.take() is None


def test_offers_for_a_coming_task_wait_for_it() -> None:
    """An offer that is faster than the task it is for is claimed by that task and no other."""
    mailbox, offers = offers_of(None, offer(1, to=5), offer(2, to=7))
    assert offers.take() is None
    mailbox.start(5)
    assert offers.take_orphans() == []
    assert offers.take() == offer(1, to=5)
    assert offers.take() is None
    mailbox.finish()
    mailbox.start(7)
    assert offers.take() == offer(2, to=7)


def test_offers_of_ended_tasks_are_given_back() -> None:
    """Whoever waits for a task that has ended, or was skipped, is to be told: its offers come back, once."""
    mailbox, offers = offers_of(None, offer(1, to=5), offer(2, to=6), offer(3, to=8))
    mailbox.start(6)
    assert offers.take_orphans() == [offer(1, to=5)]
    assert offers.take_orphans() == []
    mailbox.finish()
    assert offers.take_orphans() == [offer(2, to=6)]
    assert offers.take_orphans() == []
    assert len(offers) == 1
    mailbox.start(8)
    assert offers.take() == offer(3, to=8)


@pytest.mark.parametrize(("current", "ended", "to"), [(None, 3, 3), (None, 3, 1), (5, None, 4), (0, None, 1)])
def test_offers_to_nobody_are_not_kept(current: int | None, ended: int | None, to: int) -> None:
    """An offer to a task that has ended, or to any but the spawner's where the spawner runs, is not taken in."""
    mailbox = Mailbox(0 if current == 0 else None)
    if ended is not None:
        mailbox.start(ended)
        mailbox.finish()
    if current:
        mailbox.start(current)
    offers = Offers(mailbox)
    assert mailbox.place(to) is Place.NOWHERE
    assert not offers.put(offer(1, to=to))
    assert len(offers) == 0


def test_places() -> None:
    """A task runs, is to come, or is nowhere; numbers grow, so no task comes back."""
    mailbox = Mailbox()
    assert mailbox.place(1) is Place.COMING
    mailbox.start(2)
    assert [mailbox.place(number) for number in (1, 2, 3)] == [Place.NOWHERE, Place.NOW, Place.COMING]
    mailbox.finish()
    assert [mailbox.place(number) for number in (1, 2, 3)] == [Place.NOWHERE, Place.NOWHERE, Place.COMING]
