"""From what arrives at a task to what `receiveMessage` returns."""

from __future__ import annotations

import logging
import sys
from typing import Any

from taskfarm.runtime.endpoint import TASK_ENDED
from taskfarm.runtime.options import ResultWanted
from taskfarm.runtime.runner import decode_failure, run
from taskfarm.runtime.session import Session
from taskfarm.scheduling.mailbox import Letter
from taskfarm.vm import base
from taskfarm.vm._ids import MPITaskID
from taskfarm.vm._status import view_in_use
from taskfarm.wire.codec import unpack
from taskfarm.wire.frames import Frame, Kind

__all__ = ["open_letter"]

logger = logging.getLogger(__name__)

_DONE = Kind.DONE  # hot path: see `taskfarm.fast`
_FAILED, _WITH_VALUE = ResultWanted.FAILED, ResultWanted.VALUE


def open_letter(session: Session, letter: Letter) -> tuple[Any, ...] | None:
    """Return (sender, message) for a letter; None if its content cannot be loaded."""
    rank, number, _, content = letter
    sender = MPITaskID(rank, number)
    if content is TASK_ENDED:
        if (view := view_in_use(session)) is not None:
            view.update(rank)
        return sender, _message_class("MsgTaskExit")(sender)
    if content.kind is _DONE:
        return sender, _result_message(content)
    value, exc = run(unpack, (content.body, content.buffers))  # what it loads may raise anything, SystemExit too
    if exc is not None:
        logger.error("rank %d: a message from %s cannot be loaded: %r", session.rank, sender, exc)
        return None
    return sender, value


def _result_message(frame: Frame) -> Any:
    option = frame.option
    if option & _FAILED:
        failure = decode_failure(frame.body)
        return _failed_result(failure.exception, failure.traceback)
    if not option & _WITH_VALUE:
        return _message_class("MsgTaskResult")(True, None)
    value, exc = run(unpack, (frame.body, frame.buffers))
    if exc is not None:
        return _failed_result(exc, f"the result cannot be loaded on the spawner: {type(exc).__name__}: {exc}")
    return _message_class("MsgTaskResult")(True, value)


def _failed_result(exception: BaseException | None, text: str) -> Any:
    kind = _message_class("MsgTaskResult")
    if kind is base.MsgTaskResult:
        return base.MsgTaskResult(False, None, exception, text)
    message = kind(False, None)
    message.exception, message.traceback = exception, text
    return message


def _message_class(name: str) -> Any:
    """Return a message class: ours, or the host package's own where only its MPI module was replaced by ours."""
    foreign = sys.modules.get("pyopus.parallel.base")
    if foreign is None or foreign is base:
        return getattr(base, name)
    if sys.modules.get("pyopus.parallel.mpi") is sys.modules.get("taskfarm.vm"):
        return getattr(foreign, name, getattr(base, name))
    return getattr(base, name)
