"""Results of a batch: together where that is safe, apart where one may spoil the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from taskfarm.runtime.executor.results import ReplyOption, Results, pack_results
from taskfarm.runtime.runner import encode_failure, failure_of
from taskfarm.wire.codec import OOB_MIN_BYTES


def fail_to_load(text: str) -> None:
    raise LookupError(text)


class Unreadable:
    """Pickles, but cannot be read back."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return fail_to_load, ("cannot be read",)


class Unwritable:
    """Does not pickle."""

    def __reduce__(self) -> str:
        raise TypeError("cannot be written")


class Point:
    """Pickles and unpickles."""

    def __init__(self, x: int) -> None:
        self.x = x


def travel(results: list[Any], failures: dict[int, bytes] | None = None) -> tuple[bool, list[Any], dict[int, Any]]:
    form, packed = pack_results(list(results), dict(failures or {}), encode)
    arrived = Results(len(results), packed.body, packed.buffers, form)
    assert arrived.size_bytes == len(packed.body) + sum(map(len, packed.buffers))
    return form == ReplyOption.APART, *arrived.read("task")


def encode(exc: BaseException) -> bytes:
    return encode_failure(failure_of(exc, 1, "here"))


@pytest.mark.parametrize(
    "results",
    [
        [1, 2.5, "a", None, b"\x93"],
        [(1, 0.1), (2, 0.2), [3, None]],
        [np.float64(1.5), np.arange(3)],
        [[(1, 2)], [(3, (4, 5))]],
        [0.1 * n for n in range(1000)],
    ],
)
def test_plain_results_travel_together(results: list[Any]) -> None:
    """Numbers, text, arrays, and tuples and lists of them, are pickled in one go."""
    is_apart, values, failures = travel(results)
    assert not is_apart
    assert not failures
    assert str(values) == str(results)


def test_large_arrays_keep_their_places() -> None:
    """Each result gets its own raw buffers back, whether results travel together or apart."""
    large = np.arange(OOB_MIN_BYTES)
    for others, expected in ([[], []], False), ([[Point(1)], [Point(2)]], True):
        results = [large, *others, 3, [large + 1, large + 2]]
        is_apart, values, failures = travel(results)
        assert (is_apart, failures) == (expected, {})
        assert np.array_equal(values[0], large)
        assert values[-2] == 3
        assert np.array_equal(values[-1][0], large + 1)
        assert np.array_equal(values[-1][1], large + 2)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: {"key": x}, lambda x: ((((x,),),),)])
def test_what_cannot_be_read_fails_alone(wrap: Callable[[Any], Any]) -> None:
    """A result that rank 0 cannot unpickle, however deep it hides, is the failure of its own item only."""
    array = np.empty(1, dtype=object)
    array[0] = Unreadable()
    for bad in wrap(Unreadable()), array:
        is_apart, values, failures = travel([1, bad, 3, Point(4)])
        assert is_apart
        assert values[::2] == [1, 3]
        assert values[3].x == 4
        assert list(failures) == [1]
        assert isinstance(failures[1], LookupError)


def test_a_single_result_that_cannot_be_read() -> None:
    """The only result of a batch fails in the same way."""
    _, values, failures = travel([Unreadable()])
    assert values == [None]
    assert isinstance(failures[0], LookupError)


@pytest.mark.parametrize("value", [None, 1, [1, 2], Point(3), (None, {})])
def test_a_single_result(value: Any) -> None:
    """One result travels as it is, one failure as such."""
    _, values, failures = travel([value])
    assert str(vars(values[0]) if isinstance(value, Point) else values[0]) == str(
        vars(value) if isinstance(value, Point) else value
    )
    assert not failures
    _, values, failures = travel([None], {0: encode(ValueError("raised"))})
    assert isinstance(failures[0], ValueError)


def test_what_cannot_be_written_fails_alone() -> None:
    """A result that does not pickle is a failure beside the others, and beside those that there were."""
    _, values, failures = travel([1, Unwritable(), None, 4], {2: encode(ValueError("raised"))})
    assert values[0] == 1
    assert values[3] == 4
    assert {index: type(error) for index, error in failures.items()} == {1: TypeError, 2: ValueError}
    assert failures[1].__cause__.failures[0].rank == 1


def test_an_error_instead_of_results() -> None:
    """Items that could not be run at all have the same exception."""
    error = OSError("gone")
    values, failures = Results(2, b"", error=error).read("map")
    assert values == [None, None]
    assert failures == {0: error, 1: error}
