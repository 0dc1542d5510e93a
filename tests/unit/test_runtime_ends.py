"""Controller and workers in one process: how tasks meet calls, queries, the end, and frames that do not fit."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Any

import numpy as np
import pytest
from runtime_support import (
    LocalFarm,
    everywhere,
    hold_rank,
    local_farm,
    logs,
    note,
    receive,
    send,
    wait_at_gate,
    where,
)

from taskfarm.errors import UsageError
from taskfarm.runtime.endpoint import TASK_ENDED
from taskfarm.runtime.work import pack_work
from taskfarm.scheduling.quiescence import Wait
from taskfarm.wire.frames import Frame, Kind


@pytest.fixture(autouse=True)
def _empty_logs() -> None:
    logs.clear()


# Tasks and calls


def test_a_call_waits_for_running_tasks(farm: LocalFarm, gate: threading.Event) -> None:
    """With tasks outstanding, a call is sent when every exit has arrived; the messages are received afterwards."""
    farm.spawn(wait_at_gate, count=2)
    threading.Timer(0.01, gate.set).start()
    assert farm.call(where) == 0
    assert farm.controller.farm.n_running == 0
    assert farm.controller.farm.free == {3}
    assert len(farm.collect(2)) == 4


def test_a_call_wakes_no_task_that_gets_its_message(farm: LocalFarm) -> None:
    """A task that waits for a message which is under way is not taken for stuck."""
    for _ in range(20):
        ((rank, number),) = farm.spawn(receive)
        farm.controller.send_message(rank, number, "x")
        farm.call(where)
        assert farm.collect(1)[0][2] == ("result", "x")


def test_a_call_that_would_wait_for_ever_is_an_error(farm: LocalFarm, gate: threading.Event) -> None:
    """If all remaining tasks wait for what nobody will send, the call raises, names them, and did not happen."""
    assert farm.spawn(receive, count=2) == [(1, 1), (2, 2)]
    farm.spawn(wait_at_gate)
    threading.Timer(0.01, gate.set).start()
    with pytest.raises(UsageError, match=r"tasks 1:1, 2:2 wait in receiveMessage and nobody will send"):
        farm.call(note, "call")
    assert farm.controller.caller.book.last == 0
    for rank, number in [(1, 1), (2, 2)]:
        farm.controller.send_message(rank, number, "now")
    farm.call(note, "call")
    assert farm.controller.caller.book.last == 1
    assert len(farm.collect(3)) == 6


def ping(partner: tuple[int, int], n: int, first: bool) -> None:
    for step in range(n):
        if first:
            send(*partner, step)
        assert receive() == step
        if not first:
            send(*partner, step)


def test_tasks_that_wait_for_each_other_are_served(farm: LocalFarm) -> None:
    """Tasks that exchange messages while the call waits are not stuck."""
    farm.spawn(ping, (2, 2), 200, True)
    farm.spawn(ping, (1, 1), 200, False)
    farm.call(where)
    assert len(farm.collect(2)) == 4


def noted() -> list[Any]:
    return list(logs.get(where(), []))


def test_a_task_does_not_overtake_a_call(farm: LocalFarm, gate: threading.Event) -> None:
    """A task spawned after a call runs after it, also on ranks that get calls from a busy one."""
    farm.call(hold_rank, 2)
    farm.call(note, "call")
    threading.Timer(0.02, gate.set).start()
    tasks = farm.spawn(noted, count=None)
    results = {rank: message[1] for rank, _, message in farm.collect(len(tasks)) if message != ("exit",)}
    assert results == {1: ["call"], 2: ["call"], 3: ["call"]}


# Queries


def receive_twice() -> None:
    send(0, 0, receive())
    receive()


def test_every_rank_answers_queries() -> None:
    """A rank says which task runs and whether it waits without a deadline, also from within a task, and its counts."""
    with local_farm(2) as farm:
        asker = farm.controller
        answers: list[Any] = []
        asker._handlers[Kind.STATUS] = lambda source, frame: answers.append((frame.a, asker.read_status(frame.body)))

        def ask(round_: int) -> Any:
            asker.transport.send(1, Frame(Kind.QUERY, round_))
            assert asker.serve_until(lambda: bool(answers), time.monotonic() + 10.0)
            number, status = answers.pop()
            assert number == round_
            return status.task, status.waits, status.n_sent, status.n_received

        assert ask(1) == (0, Wait.NOT, 0, 0)
        farm.spawn(receive_twice)
        while ask(2)[:2] != (1, Wait.FOR_EVER):
            time.sleep(0.001)
        asker.send_message(1, 1, "first")
        while ask(3) != (1, Wait.FOR_EVER, 1, 1):
            time.sleep(0.001)
        asker.send_message(1, 1, "second")
        farm.collect(1)
        assert ask(5) == (0, Wait.NOT, 1, 2)


def test_waiting_with_a_deadline_is_not_waiting_for_ever() -> None:
    """A task that will give up by itself is not stuck: the call waits for it."""
    with local_farm(2) as farm:
        farm.spawn(receive, None, time.monotonic() + 0.06)
        farm.call(where)
        assert farm.collect(1)[0][2] == ("result", None)


# The end


@pytest.mark.parametrize("deadline", [math.inf, time.monotonic() + 3600.0], ids=["never", "late"])
def test_tasks_that_wait_are_cut_off_at_the_end(farm: LocalFarm, deadline: float) -> None:
    """Tasks that wait for a message nobody sends, for ever or for long, do not keep the session from ending."""
    farm.spawn(receive, None, deadline, count=3)


def test_unread_messages_do_not_keep_the_session_from_ending(farm: LocalFarm) -> None:
    """Messages that nobody received are drained."""
    farm.spawn(send, 0, 0, np.zeros(50_000), count=3)


def test_the_end_comes_after_calls_that_are_under_way(gate: threading.Event) -> None:
    """A call is run on every rank although the session ends right after it and an inner rank is busy."""
    with local_farm(5) as farm:
        farm.call(hold_rank, 2)
        farm.call(note, "call")
        threading.Timer(0.02, gate.set).start()
    assert logs == everywhere(5, ["call"])


def test_a_rank_that_does_not_leave_is_named(gate: threading.Event) -> None:
    """Only ranks that are really still at work are named when the time is up."""
    farm = LocalFarm(4)
    farm.start()
    farm.call(hold_rank, 2)
    stayed = farm.controller.quit_workers(time.monotonic() + 0.02)
    gate.set()
    farm.join()
    assert stayed == [2]


# What does not fit


def bad_frames() -> list[Frame]:
    return [
        Frame(Kind.DONE, 99, 1),
        Frame(Kind.DONE, -1, 1),
        Frame(Kind.CALL_FAILED, 5, 0, 0, b"not a pickle"),
        Frame(Kind.CALL_FAILED, 5, 0, 0, b""),
        Frame(Kind.CALL_VALUE, 5, 0, 0, b"x"),
        Frame(Kind.CALLS_DONE, 5),
        Frame(Kind.CALLS_DONE, -1),
        Frame(Kind.STATUS, 0, body=b"short"),
        Frame(Kind.STATUS, 10**9, body=bytes(32)),
        Frame(Kind.SPAWN, 1, 1),
        Frame(Kind.CALL, 1),
        Frame(Kind.QUIT),
        Frame(Kind.SYNC),
    ]


@pytest.mark.parametrize("frame", bad_frames(), ids=lambda frame: f"{frame.kind.name}-{frame.a}-{len(frame.body)}")
def test_frames_that_do_not_fit_change_nothing(frame: Frame, caplog: pytest.LogCaptureFixture) -> None:
    """A frame that rank 0 cannot use is logged or ignored; no letter, no slot, no call comes of it."""
    farm = LocalFarm(3)
    farm.spawn(where)
    with caplog.at_level(logging.ERROR, logger="taskfarm"):
        farm.controller.handle(2, frame)
    assert len(farm.controller.mailbox) == 0
    assert farm.controller.farm.busy() == {1: 1}
    assert farm.controller.farm.n_running == 1
    assert farm.controller.caller.book.last == 0
    assert not farm.controller.caller.book.has_untold
    farm.controller.farm.check_invariants()
    if frame.kind not in (Kind.CALL_VALUE, Kind.STATUS) or frame.body == b"short":
        assert f"dropped a {frame.kind.name} frame from rank 2" in caplog.text


def test_a_task_that_ends_twice_ends_once(caplog: pytest.LogCaptureFixture) -> None:
    """A second report of the same end, or a report of the wrong rank, gives no second exit."""
    farm = LocalFarm(3)
    farm.spawn(where)
    with caplog.at_level(logging.ERROR, logger="taskfarm"):
        farm.controller.handle(2, Frame(Kind.DONE, 1, 1))
        farm.controller.handle(1, Frame(Kind.DONE, 1, 1))
        farm.controller.handle(1, Frame(Kind.DONE, 1, 1))
    assert len(caplog.records) == 2
    letter = farm.controller.take_letter(0.0)
    assert letter is not None
    assert (letter.number, letter.content) == (1, TASK_ENDED)
    assert farm.controller.take_letter(0.0) is None


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.DONE, 1),
        Frame(Kind.BYE),
        Frame(Kind.CALLS_DONE, 3),
        Frame(Kind.STATUS),
        Frame(Kind.REMOVE, body=b"123"),
        Frame(Kind.LOG, body=b"x"),
    ],
    ids=lambda frame: frame.kind.name,
)
def test_a_worker_drops_what_is_not_for_it(frame: Frame, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that gets a frame for rank 0, or one that it cannot read, goes on."""
    farm = LocalFarm(2)
    worker = farm.new_worker(1)
    with caplog.at_level(logging.ERROR, logger="taskfarm"):
        worker.handle(0, frame)
    assert f"rank 1: dropped a {frame.kind.name} frame from rank 0" in caplog.text
    assert farm.transports[0].receive_nowait() is None


def test_work_that_is_no_work_is_a_failure() -> None:
    """A spawn whose body is no task, or no pickle, is reported like any failing task; the loop goes on."""
    farm = LocalFarm(2)
    worker = farm.new_worker(1)
    for body in (b"", b"garbage", pack_work("x", where, (), {}).body[:-5], b"\x80\x05N."):
        farm.spawn(where)
        spawned = farm.transports[1].receive_nowait()
        assert spawned is not None
        worker.handle(0, spawned[1]._replace(body=body))
        kinds = [farm.next_message(0.0)[2][0] for _ in range(2)]
        assert kinds == ["failed", "exit"]
