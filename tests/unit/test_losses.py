"""Reports of items that were lost with their process, the errors that come of them, and functions that are repeated."""

from __future__ import annotations

import pickle

import pytest

from taskfarm.errors import ProtocolError, TaskTimeoutError, WorkerLostError
from taskfarm.futures._retry import Retried, with_retries
from taskfarm.runtime.executor.limits import Limits, Sentence, pack_limits, read_limits
from taskfarm.runtime.executor.losses import LostItem, error_of_loss, pack_loss, read_loss
from taskfarm.runtime.isolation.nursery import describe_status
from taskfarm.runtime.options import LossCause
from taskfarm.scheduling.pacing import Loss


@pytest.mark.parametrize("loss", [LostItem(3, LossCause.TIMEOUT, "late"), LostItem(None, LossCause.DEATH, "")])
def test_reports_survive_the_way(loss: LostItem) -> None:
    """What a rank tells arrives."""
    assert read_loss(pack_loss(loss)) == loss


@pytest.mark.parametrize("body", [b"", b"x", pickle.dumps((1, 2)), pickle.dumps((0, 99, "x")), pickle.dumps(7)])
def test_reports_that_make_no_sense(body: bytes) -> None:
    """Other bytes are refused."""
    with pytest.raises(ProtocolError):
        read_loss(body)


def test_limits() -> None:
    """Limits survive the way; other bytes are refused."""
    assert list(read_limits(pack_limits([0.5, float("inf")]))) == [0.5, float("inf")]
    for body in (b"", b"1234567"):
        with pytest.raises(ProtocolError):
            read_limits(body)


def test_an_item_that_has_had_its_time() -> None:
    """It is the running item that is judged, by its own limit, and one that nobody wants goes whatever its limit."""
    limits = Limits()
    limits.set(7, [1.0, 5.0])
    limits.cancel(7, 2)
    assert limits.judge(7, 0, 10.0, 11.0) is None
    assert limits.judge(7, 0, 10.0, 11.5) == Sentence(LossCause.TIMEOUT, "it had not ended after timeout_s=1 s")
    assert limits.judge(7, 1, 10.0, 11.5) is None
    assert limits.judge(7, 2, 10.0, 10.0) == Sentence(LossCause.CANCELLED, "it was cancelled")
    assert limits.judge(7, -1, 0.0, 99.0) is None
    limits.set(8, [2.0])
    assert limits.judge(8, 3, 0.0, 2.5) is not None
    limits.forget(7)
    assert not limits.are_for(7)
    assert limits.judge(7, 2, 0.0, 99.0) is None


def test_the_story_is_told() -> None:
    """The error of a lost task has all its attempts, and the ranks."""
    error = error_of_loss(LossCause.DEATH, [Loss(2, "SIGSEGV"), Loss(1, "SIGKILL"), Loss(2, "SIGSEGV")])
    assert isinstance(error, WorkerLostError) and error.ranks == (1, 2)
    assert "lost 3 times" in str(error)
    assert "attempt 1, rank 2: SIGSEGV; attempt 2, rank 1: SIGKILL; attempt 3, rank 2: SIGSEGV" in str(error)
    late = error_of_loss(LossCause.TIMEOUT, [Loss(4, "too late")])
    assert isinstance(late, TaskTimeoutError) and isinstance(late, TimeoutError) and "rank 4" in str(late)
    assert str(pickle.loads(pickle.dumps(late))) == str(late)


@pytest.mark.parametrize(("status", "text"), [(11, "SIGSEGV"), (9, "memory"), (3 << 8, "status 3"), (0, "status 0")])
def test_how_a_process_ended(status: int, text: str) -> None:
    """A wait status is told in words."""
    assert text in describe_status(status)


def test_functions_that_are_repeated() -> None:
    """A function is called again for the exceptions that were named, so often, and not for others."""
    seen: list[int] = []

    def fails(n: int) -> int:
        seen.append(n)
        if len(seen) <= n:
            raise KeyError(n)
        return len(seen)

    assert Retried(fails, 3, (LookupError,))(2) == 3
    del seen[:]
    with pytest.raises(KeyError):
        Retried(fails, 1, (LookupError,))(2)
    assert len(seen) == 2
    del seen[:]
    with pytest.raises(KeyError):
        Retried(fails, 5, (OSError,))(2)
    assert len(seen) == 1
    assert with_retries(fails, 3, ()) is fails
    assert with_retries(fails, 0, (OSError,)) is fails
    assert with_retries(fails, 3, (TaskTimeoutError,)) is fails
