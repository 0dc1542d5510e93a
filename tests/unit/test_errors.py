"""The exceptions: one root, the class says who is to blame, and all of them travel."""

from __future__ import annotations

import copy
import pickle

import pytest

import taskfarm
from taskfarm.errors import (
    InternalError,
    ProtocolError,
    RankFailure,
    RemoteError,
    TaskfarmError,
    UsageError,
    WorkerLostError,
)

FIRST = RankFailure(
    1, "node1", "ValueError", "bad", "Traceback ...\n  line\nValueError: bad\n", "a.py:3 in f", ValueError("bad")
)
SECOND = RankFailure(3, "node2", "KeyError", "'k'", "Traceback ...\nKeyError: 'k'\n")


@pytest.mark.parametrize("kind", [UsageError, ProtocolError, InternalError, RemoteError, WorkerLostError])
def test_one_root(kind: type[Exception]) -> None:
    """Every error of the library is a `TaskfarmError`, and none is a kind of another."""
    assert issubclass(kind, TaskfarmError)
    assert kind.__mro__[1] is TaskfarmError
    assert getattr(taskfarm, kind.__name__) is kind


def test_a_failure_in_one_line() -> None:
    """The headline names rank, host, exception and place, as far as they are known."""
    assert FIRST.headline() == "rank 1 (host node1): ValueError: bad at a.py:3 in f"
    assert SECOND.headline() == "rank 3 (host node2): KeyError: 'k'"


def test_a_remote_error_tells_everything() -> None:
    """The message has what was run, all ranks, and every traceback; the attributes are the first rank's."""
    error = RemoteError("call 7 (m.f)", [FIRST, SECOND])
    assert str(error).splitlines() == [
        "call 7 (m.f) failed on ranks 1, 3",
        "rank 1 (host node1): ValueError: bad at a.py:3 in f",
        "  | Traceback ...",
        "  |   line",
        "  | ValueError: bad",
        "rank 3 (host node2): KeyError: 'k'",
        "  | Traceback ...",
        "  | KeyError: 'k'",
    ]
    assert error.what == "call 7 (m.f)"
    assert error.failures == (FIRST, SECOND)
    assert (error.rank, error.host, error.remote_traceback) == (1, "node1", FIRST.traceback)
    assert error.exception is FIRST.exception
    assert error.__cause__ is FIRST.exception


def test_a_remote_error_of_one_rank() -> None:
    """One rank is not a plural; without the exception itself there is no cause."""
    error = RemoteError("call 1 (f)", [SECOND])
    assert str(error).startswith("call 1 (f) failed on rank 3\n")
    assert error.exception is None
    assert error.__cause__ is None


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_remote_errors_travel(protocol: int) -> None:
    """A pickled `RemoteError` arrives with its failures, cause and text."""
    error = pickle.loads(pickle.dumps(RemoteError("call 7 (m.f)", [FIRST, SECOND]), protocol))
    assert type(error) is RemoteError
    assert [failure.headline() for failure in error.failures] == [FIRST.headline(), SECOND.headline()]
    assert repr(error.__cause__) == repr(FIRST.exception)
    assert str(error) == str(RemoteError("call 7 (m.f)", [FIRST, SECOND]))


@pytest.mark.parametrize(
    "error", [UsageError("a"), ProtocolError("b"), InternalError("c"), WorkerLostError("d", [4, 2])]
)
def test_other_errors_travel(error: TaskfarmError) -> None:
    """The other errors survive pickling and copying with their text and attributes."""
    for arrived in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(arrived) is type(error)
        assert str(arrived) == str(error)
        assert vars(arrived) == vars(error)


def test_lost_workers_are_named() -> None:
    """`ranks` is a tuple, empty if unknown."""
    assert WorkerLostError("gone", [1, 2]).ranks == (1, 2)
    assert WorkerLostError("gone").ranks == ()
    assert str(WorkerLostError("gone", [1])) == "gone"
