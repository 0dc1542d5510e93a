"""From what arrives at a task to what `receiveMessage` returns."""

from __future__ import annotations

import logging
import sys
from typing import Any

from taskfarm.runtime.endpoint import TaskEnded, TaskResult
from taskfarm.runtime.options import ResultWanted
from taskfarm.runtime.runner import decode_failure, run
from taskfarm.runtime.session import Session
from taskfarm.scheduling.mailbox import Letter
from taskfarm.vm import base
from taskfarm.vm._ids import MPITaskID
from taskfarm.vm._status import spawner_view
from taskfarm.wire.codec import unpack

__all__ = ["open_letter"]

logger = logging.getLogger(__name__)


def open_letter(session: Session, letter: Letter) -> tuple[Any, ...] | None:
    """Return (sender, message) for a letter; None if its content cannot be loaded."""
    sender = MPITaskID(letter.rank, letter.number)
    content = letter.content
    if type(content) is TaskEnded:
        spawner_view(session).update(letter.rank)
        return sender, _message_class("MsgTaskExit")(sender)
    if type(content) is TaskResult:
        return sender, _result_message(content)
    loaded = run(unpack, (content.body, content.buffers))
    if loaded.exception is not None:
        logger.error("rank %d: a message from %s cannot be loaded: %r", session.rank, sender, loaded.exception)
        return None
    return sender, loaded.value


def _result_message(result: TaskResult) -> Any:
    frame = result.frame
    if not frame.option & ResultWanted.FAILED:
        if not frame.option & ResultWanted.VALUE:
            return _message_class("MsgTaskResult")(True, None)
        loaded = run(unpack, (frame.body, frame.buffers))
        exc = loaded.exception
        if exc is None:
            return _message_class("MsgTaskResult")(True, loaded.value)
        return _failed_result(exc, f"the result cannot be loaded on the spawner: {type(exc).__name__}: {exc}")
    failure = decode_failure(frame.body)
    return _failed_result(failure.exception, failure.traceback)


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
    if (
        foreign is not None
        and foreign is not base
        and sys.modules.get("pyopus.parallel.mpi") is sys.modules.get("taskfarm.vm")
    ):
        return getattr(foreign, name, getattr(base, name))
    return getattr(base, name)
