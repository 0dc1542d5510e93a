"""Running the user's function, and failures as messages."""

from __future__ import annotations

import functools
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskfarm
from taskfarm.errors import RankFailure
from taskfarm.runtime.runner import (
    Outcome,
    decode_failure,
    describe,
    encode_failure,
    failure_of,
    flush_output,
    is_own_file,
    print_error,
    run,
)
from taskfarm.wire.codec import OOB_MIN_BYTES

# Running


def test_a_value_becomes_an_outcome() -> None:
    """The function gets its arguments, by position and by name."""
    assert run(divmod, (7, 2)) == Outcome((3, 1), None)
    assert run(dict, (), {"a": 1}) == Outcome({"a": 1}, None)
    assert run(dict, ({"b": 2},), {"a": 1}) == Outcome({"b": 2, "a": 1}, None)
    assert run(list) == Outcome([], None)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, BaseException])
def test_whatever_is_raised_becomes_an_outcome(kind: type[BaseException]) -> None:
    """No exception of the user's function gets into the loop, `SystemExit` and the like included."""

    def fail() -> None:
        raise kind("seen")

    outcome = run(fail)
    assert outcome.value is None
    assert type(outcome.exception) is kind
    assert outcome.exception.args == ("seen",)


def test_a_wrong_call_is_an_outcome_too() -> None:
    """Arguments that do not fit, and things that cannot be called, fail like the function itself."""
    assert type(run(len).exception) is TypeError
    assert type(run(3, ()).exception) is TypeError  # type: ignore[arg-type]


# Describing failures


def inner() -> None:
    raise ValueError("what went wrong")


def caught(fn: Any) -> BaseException:
    exc = run(fn).exception
    assert exc is not None
    return exc


def test_a_failure_is_described() -> None:
    """Rank, host, class, message, place and traceback; the library's own frames are left out."""
    failure = failure_of(caught(inner), 3, "node")
    line = inner.__code__.co_firstlineno + 1
    assert (failure.rank, failure.host, failure.type_name, failure.message) == (
        3,
        "node",
        "ValueError",
        "what went wrong",
    )
    assert failure.place == f"{__file__}:{line} in inner"
    assert f'File "{__file__}", line {line}, in inner' in failure.traceback
    assert failure.traceback.rstrip().endswith("ValueError: what went wrong")
    assert "taskfarm/runtime/runner.py" not in failure.traceback
    assert isinstance(failure.exception, ValueError)


def test_causes_are_part_of_the_traceback() -> None:
    """An exception raised from another one shows both."""

    def outer() -> None:
        try:
            inner()
        except ValueError as exc:
            raise RuntimeError("because of it") from exc

    text = failure_of(caught(outer), 1, "h").traceback
    assert "ValueError: what went wrong" in text
    assert "RuntimeError: because of it" in text
    assert "direct cause" in text


def test_a_failure_without_user_frames_is_described() -> None:
    """Where no user code was reached, the whole traceback is shown."""
    failure = failure_of(caught(3), 1, "h")
    assert failure.type_name == "TypeError"
    assert "not callable" in failure.traceback


def test_a_failure_that_was_never_raised_is_described() -> None:
    """An exception without a traceback has no place."""
    assert failure_of(ValueError("x"), 1, "h").place == ""


class Broken(Exception):
    """An exception that cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_broken_exception_does_not_hide_the_failure() -> None:
    """An exception whose text cannot be made is still a failure with class and place."""

    def fail() -> None:
        raise Broken

    failure = failure_of(caught(fail), 1, "h")
    assert failure.type_name == "Broken"
    assert failure.message == "(its message cannot be formatted)"
    assert "Broken" in failure.traceback
    assert failure.place.endswith("in fail")


# Failures as messages


class Unpicklable(Exception):
    """An exception that holds what does not pickle."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.stream = sys.stdin if sys.stdin is not None else io.StringIO()
        self.generator = (x for x in ())


class TwoArguments(Exception):
    """An exception that pickles but does not unpickle: the constructor wants more than ``args`` has."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)


class NotItself(Exception):
    """An exception that arrives as something else."""

    def __reduce__(self) -> Any:
        return list, ()


def travelled(exc: BaseException) -> RankFailure:
    failure = failure_of(exc, 2, "node")
    arrived = decode_failure(encode_failure(failure))
    assert arrived.headline() == failure.headline()
    assert arrived.traceback == failure.traceback
    return arrived


def test_the_exception_travels_where_it_can() -> None:
    """The exception itself arrives, with its attributes, not only its text."""
    exc = ValueError("x", 3)
    exc.extra = [1, 2]  # type: ignore[attr-defined]
    arrived = travelled(exc).exception
    assert type(arrived) is ValueError
    assert arrived.args == ("x", 3)
    assert arrived.extra == [1, 2]  # type: ignore[attr-defined]


def test_exceptions_with_large_arrays_travel() -> None:
    """Buffers of the exception arrive with it."""
    array = np.arange(float(OOB_MIN_BYTES))
    arrived = travelled(ValueError(array)).exception
    assert arrived is not None
    np.testing.assert_array_equal(arrived.args[0], array)


def test_local_exception_classes_travel() -> None:
    """An exception class that cannot be imported goes by value."""

    class Local(Exception):
        pass

    arrived = travelled(Local("x")).exception
    assert type(arrived).__name__ == "Local"


@pytest.mark.parametrize("exc", [Unpicklable("x"), TwoArguments("x", 1), NotItself("x"), Broken()])
def test_text_travels_in_any_case(exc: Exception) -> None:
    """Where the exception itself cannot make the journey, class, message, place and traceback do."""
    arrived = travelled(exc)
    assert arrived.type_name == type(exc).__qualname__
    assert arrived.exception is None or type(arrived.exception) is type(exc)
    if not isinstance(exc, Broken):
        assert arrived.exception is None


def test_an_exception_that_cannot_be_loaded_here_leaves_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that only the worker can import does not stop the failure from arriving."""
    body = encode_failure(failure_of(Unloadable("x"), 2, "node"))
    monkeypatch.delattr(sys.modules[__name__], "Unloadable")
    arrived = decode_failure(body)
    assert arrived.exception is None
    assert arrived.headline() == "rank 2 (host node): Unloadable: x"


class Unloadable(Exception):
    """Is deleted from this module before it is loaded."""


# Small things


def test_own_files_are_those_of_the_package() -> None:
    """Only files inside the package's folder are its own, not those of a neighbour with a longer name."""
    package = Path(taskfarm.__file__).parent
    assert is_own_file(str(package / "runtime" / "worker.py"))
    assert is_own_file(str(package / "__init__.py"))
    assert not is_own_file(__file__)
    assert not is_own_file(f"{package}_study/run.py")
    assert not is_own_file(f"{package}-script.py")
    assert not is_own_file(f"{package}.py")
    assert not is_own_file("<string>")


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (inner, f"{__name__}.inner"),
        (Broken.__str__, f"{__name__}.Broken.__str__"),
        (pickle.dumps, "_pickle.dumps"),
        (Broken, f"{__name__}.Broken"),
    ],
)
def test_functions_are_described(fn: Any, text: str) -> None:
    """A function is named by module and qualified name."""
    assert describe(fn) == text


def test_callables_without_a_name_are_described() -> None:
    """A partial is shown as it shows itself."""
    assert describe(functools.partial(inner)).startswith("functools.partial(")


def test_errors_are_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """One message, ending in one line break."""
    print_error("a\nb\n\n")
    assert capsys.readouterr().err == "a\nb\n"


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_closed_streams_do_no_harm(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None) -> None:
    """A process without, or with closed, standard streams reports nothing and goes on."""
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    flush_output()
    print_error("x")
