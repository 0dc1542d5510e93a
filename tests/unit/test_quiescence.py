"""Finding out whether all remaining tasks wait for messages that nobody will send."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from taskfarm.scheduling.quiescence import Inquiry, RankStatus, Wait

RUNNING = [(1, 10), (2, 11)]


def status(task: int, waits: Wait, sent: int = 0, received: int = 0) -> RankStatus:
    return RankStatus(task, waits, sent, received)


STUCK = {0: status(0, Wait.NOT, 2, 1), 1: status(10, Wait.FOR_EVER, 0, 1), 2: status(11, Wait.FOR_EVER)}


def ask(inquiry: Inquiry, answers: Mapping[int, RankStatus]) -> None:
    """One round in which every rank answers."""
    round_ = inquiry.start_round()
    for rank, answer in answers.items():
        inquiry.on_answer(rank, round_, answer)


def balanced(answers: Mapping[int, RankStatus]) -> dict[int, RankStatus]:
    """`answers`, with rank 0 having sent what the others received."""
    sent = sum(answer.n_received for answer in answers.values())
    return {**answers, 0: status(0, Wait.NOT, sent, answers[0].n_received)}


def test_two_equal_rounds_in_which_all_wait() -> None:
    """Tasks are stuck if in two rounds in a row all waited with nothing under way and nothing changed."""
    inquiry = Inquiry(range(3))
    answers = balanced(STUCK)
    ask(inquiry, answers)
    assert inquiry.stuck_tasks(RUNNING) == []
    ask(inquiry, answers)
    assert inquiry.stuck_tasks(RUNNING) == RUNNING
    assert inquiry.stuck_tasks(RUNNING[::-1]) == RUNNING


@pytest.mark.parametrize(
    "changed",
    [
        {1: status(10, Wait.NOT, 0, 1)},  # works
        {1: status(10, Wait.FOR_A_TIME, 0, 1)},  # will go on by itself
        {2: status(0, Wait.NOT)},  # its task has not started yet, or has ended
        {2: status(9, Wait.FOR_EVER)},  # an earlier task of that rank
    ],
)
def test_a_task_that_does_not_wait(changed: dict[int, RankStatus]) -> None:
    """As long as one of the tasks does not wait without a deadline, none is stuck: it may send something."""
    inquiry = Inquiry(range(3))
    for _ in range(3):
        ask(inquiry, balanced({**STUCK, **changed}))
    assert inquiry.stuck_tasks(RUNNING) == []


def test_at_the_end_waiting_for_a_time_counts_too() -> None:
    """When nobody will send any more, a wait with a deadline is as good as one without; work is not."""
    inquiry = Inquiry(range(3))
    answers = balanced({**STUCK, 1: status(10, Wait.FOR_A_TIME, 0, 1)})
    for _ in range(2):
        ask(inquiry, answers)
    assert inquiry.stuck_tasks(RUNNING) == []
    assert inquiry.stuck_tasks(RUNNING, or_waiting=True) == RUNNING
    for _ in range(2):
        ask(inquiry, balanced({**STUCK, 1: status(10, Wait.NOT, 0, 1)}))
    assert inquiry.stuck_tasks(RUNNING, or_waiting=True) == []


def test_answers_to_an_earlier_inquiry_are_ignored() -> None:
    """Rounds are numbered on from the inquiry before, so that its late answers are recognised."""
    before = Inquiry(range(1))
    late = before.start_round()
    inquiry = Inquiry(range(1), before.round)
    assert inquiry.start_round() == late + 1
    inquiry.on_answer(0, late, status(0, Wait.NOT))
    assert not inquiry.complete


@pytest.mark.parametrize("under_way", [1, -1])
def test_a_message_under_way(under_way: int) -> None:
    """While more was sent than received, somebody may wake up."""
    inquiry = Inquiry(range(3))
    answers = balanced(STUCK)
    answers[0] = status(0, Wait.NOT, answers[0].n_sent + under_way, answers[0].n_received)
    for _ in range(3):
        ask(inquiry, answers)
    assert inquiry.stuck_tasks(RUNNING) == []


def test_traffic_between_the_rounds() -> None:
    """A message that came and was answered between two rounds shows in the counts: not stuck."""
    inquiry = Inquiry(range(3))
    ask(inquiry, balanced(STUCK))
    later = {0: status(0, Wait.NOT, 2, 1), 1: status(10, Wait.FOR_EVER, 1, 1), 2: status(11, Wait.FOR_EVER, 0, 1)}
    ask(inquiry, later)
    assert sum(s.n_sent for s in later.values()) == sum(s.n_received for s in later.values())
    assert inquiry.stuck_tasks(RUNNING) == []
    ask(inquiry, later)
    assert inquiry.stuck_tasks(RUNNING) == RUNNING


def test_no_running_tasks_are_not_stuck() -> None:
    """Without tasks nothing is stuck."""
    inquiry = Inquiry(range(3))
    for _ in range(2):
        ask(inquiry, balanced(STUCK))
    assert inquiry.stuck_tasks([]) == []


def test_every_rank_has_to_answer() -> None:
    """A round with an answer missing proves nothing, and neither does the next one after it."""
    inquiry = Inquiry(range(3))
    answers = balanced(STUCK)
    ask(inquiry, answers)
    ask(inquiry, {0: answers[0], 1: answers[1]})
    assert not inquiry.complete
    assert inquiry.stuck_tasks(RUNNING) == []
    ask(inquiry, answers)
    assert inquiry.complete
    assert inquiry.stuck_tasks(RUNNING) == []
    ask(inquiry, answers)
    assert inquiry.stuck_tasks(RUNNING) == RUNNING


def test_answers_to_earlier_rounds_and_of_strangers_are_ignored() -> None:
    """Only answers of the ranks that were asked, to the present round, count."""
    inquiry = Inquiry(range(2))
    first = inquiry.start_round()
    second = inquiry.start_round()
    assert (first, second) == (1, 2)
    inquiry.on_answer(0, first, status(0, Wait.NOT))
    inquiry.on_answer(1, second, status(10, Wait.FOR_EVER))
    inquiry.on_answer(7, second, status(0, Wait.NOT))
    assert not inquiry.complete
    inquiry.on_answer(0, second, status(0, Wait.NOT))
    assert inquiry.complete


def test_one_round_is_never_enough() -> None:
    """Without a complete round before, the first one proves nothing."""
    inquiry = Inquiry(range(3))
    assert inquiry.stuck_tasks(RUNNING) == []
    ask(inquiry, balanced(STUCK))
    assert inquiry.stuck_tasks(RUNNING) == []
