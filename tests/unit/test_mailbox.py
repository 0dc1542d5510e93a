"""Messages that have arrived and were not handed out yet."""

from __future__ import annotations

import pytest

from taskfarm.scheduling.mailbox import Letter, Mailbox


def letter(content: str, *, rank: int = 1, number: int = 1, to: int = 0) -> Letter[str]:
    return Letter(rank, number, to, content)


def take_all(mailbox: Mailbox[str], rank: int | None = None) -> list[str]:
    taken = []
    while (found := mailbox.take(rank)) is not None:
        taken.append(found.content)
    return taken


def test_first_come_first_served() -> None:
    """Letters are handed out once each, in the order of arrival."""
    mailbox: Mailbox[str] = Mailbox(0)
    assert mailbox.take() is None
    mailbox.put(letter("a", rank=2))
    mailbox.put(letter("b", rank=1))
    mailbox.put(letter("c", rank=2))
    assert len(mailbox) == 3
    assert take_all(mailbox) == ["a", "b", "c"]
    assert len(mailbox) == 0


def test_a_rank_can_be_asked_for() -> None:
    """With a rank, only its letters are handed out; the others stay in their order."""
    mailbox: Mailbox[str] = Mailbox(0)
    for content, rank in [("a", 1), ("b", 2), ("c", 1), ("d", 2), ("e", 3)]:
        mailbox.put(letter(content, rank=rank))
    assert mailbox.take(4) is None
    assert take_all(mailbox, 2) == ["b", "d"]
    assert take_all(mailbox) == ["a", "c", "e"]


def test_holds_tells_what_take_would_give() -> None:
    """`holds` is true exactly when `take` would return a letter, and takes nothing."""
    mailbox: Mailbox[str] = Mailbox(0)
    assert not mailbox.holds()
    assert not mailbox.holds(1)
    mailbox.put(letter("a", rank=1))
    assert mailbox.holds()
    assert mailbox.holds(1)
    assert not mailbox.holds(2)
    assert take_all(mailbox) == ["a"]


def test_the_spawners_box_takes_only_its_own() -> None:
    """A letter for any other task than the spawner's own is dropped there."""
    mailbox: Mailbox[str] = Mailbox(0)
    for number in (1, 7, -1):
        mailbox.put(letter("stray", to=number))
    mailbox.put(letter("mine", to=0))
    assert take_all(mailbox) == ["mine"]


def test_letters_for_ended_tasks_are_dropped() -> None:
    """A letter for an earlier task of this rank is dropped, whether another runs now or none does."""
    mailbox: Mailbox[str] = Mailbox()
    mailbox.start(3)
    mailbox.put(letter("for an earlier one", to=2))
    assert mailbox.take() is None
    mailbox.finish()
    mailbox.put(letter("too late", to=3))
    mailbox.start(5)
    mailbox.put(letter("between", to=4))
    assert mailbox.take() is None


def test_letters_of_an_ended_task_go_with_it() -> None:
    """What a task did not receive is not given to the next one."""
    mailbox: Mailbox[str] = Mailbox()
    mailbox.start(1)
    mailbox.put(letter("unread", to=1))
    mailbox.finish()
    assert (mailbox.number, len(mailbox), mailbox.take()) == (None, 0, None)
    mailbox.start(2)
    assert mailbox.take() is None


def test_early_letters_wait_for_their_task() -> None:
    """A message may overtake the spawn of its receiver; it is there when the task starts, in order, and only for it."""
    mailbox: Mailbox[str] = Mailbox()
    mailbox.put(letter("a", to=4))
    mailbox.put(letter("x", to=9))
    mailbox.start(2)
    mailbox.put(letter("b", to=4))
    assert not mailbox.holds()
    mailbox.finish()
    mailbox.put(letter("c", to=4))
    mailbox.start(4)
    mailbox.put(letter("d", to=4))
    assert take_all(mailbox) == ["a", "b", "c", "d"]
    mailbox.finish()
    mailbox.start(9)
    assert take_all(mailbox) == ["x"]


def test_early_letters_for_a_task_that_never_came_are_dropped() -> None:
    """A letter for a task that some other rank got is dropped as soon as a later task starts here."""
    mailbox: Mailbox[str] = Mailbox()
    mailbox.put(letter("for nobody here", to=4))
    mailbox.start(5)
    mailbox.finish()
    assert not mailbox._early


@pytest.mark.parametrize("times", [1, 2])
def test_finishing_without_a_task_changes_nothing(times: int) -> None:
    """`finish` may be repeated; early letters stay."""
    mailbox: Mailbox[str] = Mailbox()
    mailbox.put(letter("a", to=4))
    for _ in range(times):
        mailbox.finish()
    mailbox.start(4)
    assert take_all(mailbox) == ["a"]
