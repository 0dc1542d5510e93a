"""Deciding when a failed collective call has to end the job."""

from __future__ import annotations

import pytest

from taskfarm.scheduling.stuck import WARN_AFTER_S, EndJob, StuckJudge, Warn, Whereabouts

COMM_S = 2.0
OTHER_S = 60.0
IDLE = Whereabouts(0, 1)


def inside(method: str = "Barrier", entry: int = 1, peer: int = -1, call: int = 1) -> Whereabouts:
    return Whereabouts(call, call - 1, method, entry, peer, "solver.py:12 in solve")


def at_work(call: int = 1) -> Whereabouts:
    return Whereabouts(call, call - 1, place="solver.py:20 in assemble")


@pytest.fixture
def judge() -> StuckJudge:
    """A judge over three ranks."""
    return StuckJudge(range(3), COMM_S, OTHER_S)


def only_end(verdicts: list[Warn | EndJob]) -> str:
    assert [type(verdict) for verdict in verdicts] == [EndJob]
    return verdicts[0].text


def test_without_a_failure_nothing_is_ended(judge: StuckJudge) -> None:
    """Healthy work is left alone, however long it stays in one method."""
    for now in (0.0, 10.0, 1e6):
        for rank in range(3):
            judge.on_answer(rank, inside(), now)
        assert judge.judge(now) == []
    assert not judge.has_case


def test_a_rank_in_a_collective_after_a_failure(judge: StuckJudge) -> None:
    """A rank that stays in one `comm` method up to the limit ends the job; the text says who failed and who waits."""
    judge.on_failure(2, 1, "rank 2 (host h): ValueError: bad at solver.py:3 in f", 100.0)
    assert judge.has_case
    judge.on_answer(0, inside("allreduce", 7), 100.25)
    judge.on_answer(1, inside("allreduce", 5), 100.25)
    judge.on_answer(2, IDLE, 100.25)
    assert judge.judge(100.25 + COMM_S - 0.01) == []
    text = only_end(judge.judge(100.25 + COMM_S))
    assert text.splitlines() == [
        "call 1 failed on some ranks while others are inside it:",
        "  rank 2 (host h): ValueError: bad at solver.py:3 in f",
        "  rank 0 is inside comm.allreduce at solver.py:12 in solve",
        "  rank 1 is inside comm.allreduce at solver.py:12 in solve",
        "  cannot return from it; ending the job",
    ]


def test_time_counts_from_the_first_sight_in_the_method(judge: StuckJudge) -> None:
    """A rank that goes from one method to the next is at work: every entry starts the time again."""
    judge.on_failure(2, 1, "failed", 0.0)
    for step in range(20):
        judge.on_answer(1, inside(entry=step), step * 1.0)
        assert not any(type(verdict) is EndJob for verdict in judge.judge(step * 1.0))
    judge.on_answer(1, inside(entry=19), 21.0)
    only_end(judge.judge(21.0))


def test_a_method_that_waits_for_a_healthy_rank(judge: StuckJudge) -> None:
    """Receiving from a rank that has not failed may still end; from one that has left the call it cannot."""
    judge.on_failure(2, 1, "failed", 0.0)
    judge.on_answer(0, inside("recv", 1, peer=1), 0.0)
    judge.on_answer(1, at_work(), 0.0)
    assert not any(type(verdict) is EndJob for verdict in judge.judge(30.0))
    judge.on_answer(0, inside("recv", 2, peer=2), 30.0)
    assert judge.judge(31.9) == []
    assert "comm.recv" in only_end(judge.judge(32.0))


def test_a_rank_that_returned_sends_nothing_any_more(judge: StuckJudge) -> None:
    """Waiting for a rank that has left the call normally is waiting for ever, too."""
    judge.on_failure(2, 1, "failed", 0.0)
    judge.on_answer(1, IDLE, 0.0)
    judge.on_answer(0, inside("recv", 1, peer=1), 0.0)
    only_end(judge.judge(COMM_S))


def test_long_work_outside_comm_is_warned_about_once_and_then_ended(judge: StuckJudge) -> None:
    """Local work gets one warning after a few seconds, and the long limit."""
    judge.on_failure(2, 1, "rank 2 failed", 0.0)
    for rank, where in [(0, at_work()), (1, at_work()), (2, IDLE)]:
        judge.on_answer(rank, where, 0.25)
    assert judge.judge(0.25 + WARN_AFTER_S - 0.01) == []
    (warning,) = judge.judge(0.25 + WARN_AFTER_S)
    assert type(warning) is Warn
    assert "rank 2 failed" in warning.text
    assert "rank 0 is at work at solver.py:20 in assemble" in warning.text
    assert "the job ends 60 s after the failure (TASKFARM_STUCK_S)" in warning.text
    assert judge.judge(0.25 + OTHER_S - 0.01) == []
    text = only_end(judge.judge(OTHER_S + 0.25))
    assert "did not leave the call within 60 s (TASKFARM_STUCK_S); ending the job" in text


def test_a_short_limit_is_warned_about_in_time() -> None:
    """With a short limit the warning comes at half of it."""
    judge = StuckJudge(range(2), COMM_S, 1.0)
    judge.on_failure(1, 1, "failed", 0.0)
    judge.on_answer(0, at_work(), 0.0)
    assert judge.judge(0.49) == []
    assert [type(verdict) for verdict in judge.judge(0.5)] == [Warn]
    only_end(judge.judge(1.0))


def test_a_case_is_closed_when_all_have_left(judge: StuckJudge) -> None:
    """When every rank has left the call, by whatever way, the case is closed and nothing is ended."""
    judge.on_failure(2, 1, "failed", 0.0)
    judge.on_answer(0, inside(), 0.0)
    judge.on_answer(1, at_work(), 0.0)
    judge.on_answer(2, IDLE, 0.0)
    judge.on_answer(1, IDLE, 1.0)
    assert judge.has_case
    judge.on_answer(0, Whereabouts(2, 1, "Barrier", 2), 1.5)  # already in the next call
    assert not judge.has_case
    assert judge.judge(1e6) == []


def test_all_ranks_failing_is_no_reason_to_end_the_job(judge: StuckJudge) -> None:
    """If every rank raised, every rank has left."""
    for rank in range(3):
        judge.on_failure(rank, 1, "failed", 0.0)
    assert judge.judge(1e6) == []
    judge.on_answer(0, IDLE, 0.0)
    assert not judge.has_case


def test_a_rank_that_does_not_answer_is_inside(judge: StuckJudge) -> None:
    """A rank that has said nothing for long holds the interpreter lock, or is gone: warned about, and then ended."""
    judge.on_failure(2, 1, "rank 2 failed", 10.0)
    judge.on_answer(0, IDLE, 10.25)
    assert judge.judge(10.0 + WARN_AFTER_S - 0.01) == []
    (warning,) = judge.judge(10.0 + WARN_AFTER_S)
    assert type(warning) is Warn
    assert "rank 1 does not answer: it is in code that holds the interpreter lock, or gone" in warning.text
    assert judge.judge(10.0 + OTHER_S - 0.01) == []
    only_end(judge.judge(10.0 + OTHER_S))


def test_a_rank_that_is_slow_to_answer_is_believed(judge: StuckJudge) -> None:
    """When a silent rank answers after all, it is judged by its answer."""
    judge.on_failure(2, 1, "failed", 0.0)
    judge.on_answer(0, IDLE, 0.25)
    judge.judge(3.0)
    judge.on_answer(1, IDLE, 3.5)
    judge.on_answer(2, IDLE, 3.5)
    assert not judge.has_case


def test_ranks_that_are_known_to_have_left(judge: StuckJudge) -> None:
    """What rank 0 knows from elsewhere counts: a rank whose report of a later call came has left the failed one."""
    judge.on_failure(2, 3, "failed", 0.0)
    for rank in (0, 1, 2):
        judge.on_done(rank, 2)
    assert judge.has_case
    for rank in (0, 1, 2):
        judge.on_done(rank, 3)
    assert not judge.has_case
    assert judge.judge(1e6) == []


def test_healthy_work_after_the_end_of_the_program_goes_on(judge: StuckJudge) -> None:
    """When rank 0's program has ended, workers may work as long as they like, without a warning."""
    judge.on_end(4, 0.0)
    judge.on_answer(0, Whereabouts(0, 4), 0.25)
    for now in (1.0, WARN_AFTER_S + 1.0, 10 * OTHER_S):
        judge.on_answer(1, at_work(4), now)
        judge.on_answer(2, Whereabouts(0, 4), now)
        assert judge.judge(now) == []
    judge.on_answer(1, Whereabouts(0, 4), 1e4)
    assert not judge.has_case


def test_a_collective_after_the_end_of_the_program_is_ended(judge: StuckJudge) -> None:
    """A rank that stays inside one `comm` method after rank 0's program has ended gets the long limit, then ends."""
    judge.on_end(4, 0.0)
    judge.on_answer(1, inside("bcast", 3, call=4), 0.25)
    assert judge.judge(0.25 + OTHER_S - 0.1) == []
    text = only_end(judge.judge(0.25 + OTHER_S))
    assert "call 4 has ended on rank 0 while others are inside it:" in text
    assert "rank 0: its program has ended" in text
    assert "rank 1 is inside comm.bcast" in text


def test_earlier_calls_are_left_alone(judge: StuckJudge) -> None:
    """A rank that still works on a call before the failed one has not met the failure: its healthy work goes on."""
    judge.on_failure(2, 5, "failed", 0.0)
    judge.on_answer(0, Whereabouts(0, 5), 0.0)
    judge.on_answer(1, inside("gather", 4, call=3), 0.0)
    judge.on_answer(2, Whereabouts(0, 5), 0.0)
    for now in (COMM_S, OTHER_S, 10 * OTHER_S):
        judge.on_answer(1, inside("gather", 4, call=3), now)
        assert not any(type(verdict) is EndJob for verdict in judge.judge(now))
    judge.on_answer(1, inside("Barrier", 5, call=5), 1000.0)
    assert not any(type(verdict) is EndJob for verdict in judge.judge(1000.0 + COMM_S - 0.1))
    assert "comm.Barrier" in only_end(judge.judge(1000.0 + COMM_S))


def test_cases_are_separate(judge: StuckJudge) -> None:
    """Two failed calls are two cases; one is closed without the other."""
    judge.on_failure(2, 1, "first", 0.0)
    judge.on_failure(2, 2, "second", 0.0)
    for rank in (0, 1, 2):
        judge.on_answer(rank, Whereabouts(2, 1, place="x"), 1.0)
    assert judge.has_case
    for rank in (0, 1, 2):
        judge.on_answer(rank, Whereabouts(0, 2), 1.5)
    assert not judge.has_case


# Time limits


def test_a_call_that_is_late(judge: StuckJudge) -> None:
    """When a call's time is over, who has not left it is named with its stack as soon as it has answered."""
    judge.on_late(4, "call 4 has not ended", [2], 10.0)
    assert judge.has_case and judge.wants_stacks
    judge.on_answer(0, Whereabouts(0, 4), 10.1)
    assert judge.judge(10.1) == []  # rank 1 may have left it, too
    judge.on_answer(1, Whereabouts(4, 3, "Barrier", 1, -1, "a.py:1 in f", '  File "a.py", line 1, in f\n'), 10.2)
    assert only_end(judge.judge(10.2)).splitlines() == [
        "call 4 has not ended:",
        "  rank 1 is inside comm.Barrier",
        '    File "a.py", line 1, in f',
        "  ranks 0, 2 have left it",
        "  ending the job",
    ]


def test_a_call_that_was_over_in_time(judge: StuckJudge) -> None:
    """A call that all ranks turn out to have left is not late, whoever knew."""
    judge.on_late(4, "call 4 has not ended", [0, 2], 10.0)
    judge.on_answer(1, Whereabouts(5, 4), 10.1)
    assert not judge.has_case and not judge.wants_stacks and judge.judge(20.0) == []
    judge.on_late(5, "call 5 has not ended", [0, 1, 2], 10.0)
    assert not judge.has_case


def test_a_late_call_that_somebody_has_not_begun(judge: StuckJudge) -> None:
    """Ranks that are late with an earlier call, idle or silent are told apart."""
    judge.on_failure(2, 4, "rank 2: ValueError", 9.0)
    judge.on_late(4, "call 4 has not ended", [], 10.0)
    judge.on_answer(0, Whereabouts(3, 2, place="a.py:1 in f"), 10.1)
    judge.on_answer(1, Whereabouts(0, 3), 10.1)
    text = only_end(judge.judge(10.1))
    assert "rank 0 is at work in call 3, before this one\n    a.py:1 in f" in text
    assert "rank 1 is in no call: it has not got this one" in text and "  rank 2: ValueError\n" in text
    silent = StuckJudge(range(2), COMM_S, OTHER_S)
    silent.on_late(4, "call 4 has not ended", [0], 10.0)
    assert silent.judge(10.9) == []
    assert "rank 1 does not answer" in only_end(silent.judge(11.0))
