"""Helpers of the programs that use ``taskfarm.vm``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from tf_checks import equal, holds

from taskfarm.vm import MPI, MsgTaskExit, MsgTaskResult


def collect(vm: Any, ids: Iterable[Any], timeout_s: float = 15.0) -> dict[Any, list[Any]]:
    """Receive until every task of `ids` has exited; return its messages in order, the exit included.

    Also checks that a slot becomes free exactly when the exit is handed out, and that a result comes before its exit.
    """
    waiting = list(ids)
    messages: dict[Any, list[Any]] = {task: [] for task in waiting}
    deadline = time.monotonic() + timeout_s
    while waiting:
        holds(time.monotonic() < deadline, f"no exit of {waiting} within {timeout_s} s; seen {messages}")
        free = MPI.freeSlots()
        received = vm.receiveMessage(0.5)
        holds(type(received) is tuple, f"receiveMessage gave {received!r}")
        if not received:
            continue
        sender, message = received
        messages.setdefault(sender, []).append(message)
        if type(message) is MsgTaskExit:
            holds(sender in waiting, f"exit of {sender}, which was not expected")
            waiting.remove(sender)
            equal(MPI.freeSlots(), free + 1)
        else:
            equal(MPI.freeSlots(), free)
    return messages


def results(vm: Any, ids: Iterable[Any], timeout_s: float = 15.0) -> list[Any]:
    """Return values of the tasks in the order of `ids`; every task must succeed and send exactly result and exit."""
    ids = list(ids)
    messages = collect(vm, ids, timeout_s)
    values = []
    for task in ids:
        kinds = [type(m) for m in messages[task]]
        equal(kinds, [MsgTaskResult, MsgTaskExit])
        result = messages[task][0]
        holds(result.success is True, f"task {task} failed: {result!r} {getattr(result, 'traceback', '')}")
        values.append(result.returnValue)
    return values


def failure(vm: Any, ids: Iterable[Any], timeout_s: float = 15.0) -> Any:
    """The failed result of the only task in `ids`, after its exit."""
    (task,) = ids
    messages = collect(vm, [task], timeout_s)[task]
    equal([type(m) for m in messages], [MsgTaskResult, MsgTaskExit])
    holds(messages[0].success is False and messages[0].returnValue is None, messages)
    return messages[0]


def run(vm: Any, function: Any, args: Any = (), kwargs: Any = None, count: int | None = 1) -> list[Any]:
    """Spawn, collect, return the values."""
    ids = vm.spawnFunction(function, args=args, kwargs=kwargs or {}, count=count)
    return results(vm, ids)


def idle(vm: Any) -> None:
    """After a check: all slots are free and no message waits."""
    equal(vm.checkForIncoming(), False)
    equal(MPI.freeSlots(), MPI.slots() - 1)
    equal(vm.receiveMessage(0), ())
