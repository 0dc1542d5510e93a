"""Running the user's function: the one place where ``BaseException`` is caught, and failures as messages.

The worker loop hands work to `run` and gets an `Outcome` back; it does not assume in which process the function ran.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

from taskfarm.errors import ProtocolError, RankFailure, RemoteError
from taskfarm.fast import new_tuple
from taskfarm.wire.codec import pack, unpack
from taskfarm.wire.frames import Buffer

__all__ = [
    "Outcome",
    "decode_failure",
    "describe",
    "encode_failure",
    "end_forked_child",
    "exception_of",
    "failure_of",
    "is_own_file",
    "run",
]

_PACKAGE_DIR = str(Path(__file__).parent.parent) + os.sep


class Outcome(NamedTuple):
    """How one execution of the user's function ended: with a value, or with an exception."""

    value: Any = None
    exception: BaseException | None = None


def run(fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Outcome:
    """Run the user's function; whatever it raises, ``SystemExit`` included, becomes an `Outcome`."""
    try:
        return new_tuple(Outcome, (fn(*args, **kwargs) if kwargs else fn(*args), None))
    except BaseException as exc:  # noqa: BLE001
        return Outcome(None, exc)


def end_forked_child(exc: BaseException | None) -> NoReturn:
    """End a child that the user's function forked and that came out of it: it must not go on as a second worker.

    By ``os._exit``, since the end of the interpreter would end the parent's MPI.
    """
    if exc is not None and not isinstance(exc, SystemExit):
        traceback.print_exception(type(exc), exc, exc.__traceback__)
    flush_output()
    code = exc.code if isinstance(exc, SystemExit) else exc and 1
    os._exit(code if isinstance(code, int) else 1 if code else 0)


def is_own_file(filename: str) -> bool:
    """Tell whether a source file belongs to this package."""
    return filename.startswith(_PACKAGE_DIR)


def _user_traceback(tb: TracebackType | None) -> TracebackType | None:
    """Return `tb` without the leading frames of this package; the whole of it if there are no others."""
    first = tb
    while first is not None and is_own_file(first.tb_frame.f_code.co_filename):
        first = first.tb_next
    return first if first is not None else tb


def failure_of(exc: BaseException, rank: int, host: str) -> RankFailure:
    """Describe an exception that was just caught on this rank."""
    tb = _user_traceback(exc.__traceback__)
    text = "".join(traceback.format_exception(type(exc), exc, tb))
    frames = traceback.extract_tb(tb)
    place = f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return RankFailure(rank, host, type(exc).__qualname__, _message_of(exc), text, place, exc)


def _message_of(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - a broken __str__ of the user's exception must not hide the failure
        return "(its message cannot be formatted)"


def encode_failure(failure: RankFailure) -> bytes:
    """Return `failure` as bytes; the exception itself is left out if it would not survive the journey."""
    body = b""
    if failure.exception is not None:
        packed = run(pack, (failure.exception,))  # user code in __reduce__ may raise anything
        if packed.exception is None:
            body = pickle.dumps((packed.value.body, [bytes(buffer) for buffer in packed.value.buffers]))
            if not isinstance(run(_decode_exception, (body,)).value, BaseException):
                body = b""
    text = (failure.rank, failure.host, failure.type_name, failure.message, failure.traceback, failure.place)
    return pickle.dumps((text, body), protocol=5)


def _decode_exception(body: bytes) -> Any:
    pickled, buffers = pickle.loads(body)
    return unpack(pickled, buffers)


def decode_failure(body: Buffer) -> RankFailure:
    """Return the failure that `encode_failure` made bytes of; raise `ProtocolError` if these are others."""
    try:
        text, pickled = pickle.loads(body)
        rank, host, type_name, message, trace, place = text
    except Exception as exc:
        raise ProtocolError(f"a failure report that cannot be read: {type(exc).__name__}: {exc}") from exc
    exception = None
    if pickled:
        exception = run(_decode_exception, (pickled,)).value  # None e.g. where its class is not importable
    return RankFailure(
        rank, host, type_name, message, trace, place, exception if isinstance(exception, BaseException) else None
    )


def exception_of(failure: RankFailure | BaseException, what: str) -> BaseException:
    """Return the exception to raise for a failure on another rank.

    The exception itself where it travels, with the remote traceback as its ``__cause__``; else a `RemoteError`.
    """
    if isinstance(failure, BaseException):
        return failure
    exception = failure.exception
    if exception is None:
        return RemoteError(what, [failure])
    exception.__cause__ = RemoteError(what, [dataclasses.replace(failure, exception=None)])
    return exception


def describe(fn: object) -> str:
    """Return ``module.name`` of a function, for messages."""
    name = getattr(fn, "__qualname__", None)
    return f"{getattr(fn, '__module__', '?')}.{name}" if name else repr(fn)


def flush_output() -> None:
    """Flush what the user's function printed; the streams may be objects of the user's that cannot be."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - `suppress` takes longer than the flush
            stream.flush()
        except Exception:  # noqa: BLE001
            pass


def print_error(text: str) -> None:
    """Print one message on standard error, whole and at once."""
    for stream in (sys.stderr, sys.__stderr__):
        with contextlib.suppress(Exception):  # None, closed, or an object of the user's
            stream.write(text.rstrip() + "\n")  # type: ignore[union-attr]
            stream.flush()  # type: ignore[union-attr]
            return
