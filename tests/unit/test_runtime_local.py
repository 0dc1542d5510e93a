"""Controller and workers in one process: tasks and messages."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_support import FULL, LocalFarm, here, receive, send, wait_at_gate, where

from taskfarm.errors import UsageError
from taskfarm.ids import ObjectId
from taskfarm.runtime.options import ResultWanted
from taskfarm.runtime.work import pack_work
from taskfarm.wire.codec import pack
from taskfarm.wire.frames import Frame, Kind


def boom(kind: type[BaseException], *args: Any) -> None:
    raise kind(*args)


# Tasks


def test_a_task_sends_result_then_exit(farm: LocalFarm) -> None:
    """A task gives two messages, its result and its exit, in this order; handing out the exit frees the slot."""
    assert farm.spawn(pow, 2, 10) == [(1, 1)]
    assert farm.controller.farm.free == {2, 3}
    assert farm.next_message() == (1, 1, ("result", 1024))
    assert farm.controller.farm.free == {2, 3}
    assert farm.next_message() == (1, 1, ("exit",))
    assert farm.controller.farm.free == {1, 2, 3}
    assert farm.next_message(0.0) is None


def test_tasks_run_on_their_rank(farm: LocalFarm) -> None:
    """All free slots are filled, lowest rank first, each task on the rank that its number says."""
    tasks = farm.spawn(where, count=None)
    assert tasks == [(1, 1), (2, 2), (3, 3)]
    assert farm.spawn(where) == []
    results = {(rank, number): message[1] for rank, number, message in farm.collect(3) if message != ("exit",)}
    assert results == {(rank, number): rank for rank, number in tasks}
    assert farm.spawn(where, count=2, hosts=["odd"]) == [(1, 4), (3, 5)]
    farm.collect(2)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (FULL, [("result", 8), ("exit",)]),
        (ResultWanted.MESSAGE, [("result", None), ("exit",)]),
        (ResultWanted.NOTHING, [("exit",)]),
    ],
)
def test_how_much_of_the_result_is_wanted(farm: LocalFarm, wanted: ResultWanted, expected: list[Any]) -> None:
    """Result and exit, a result without its value, or the exit alone."""
    farm.spawn(pow, 2, 3, wanted=wanted)
    assert [message for *_, message in farm.collect(1)] == expected


class LoadsNowhere:
    """Pickles, but cannot be loaded."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


FAILURES: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "raises": (boom, (ValueError, "bad"), "ValueError"),
    "sys.exit": (sys.exit, (3,), "SystemExit"),
    "keyboard interrupt": (boom, (KeyboardInterrupt,), "KeyboardInterrupt"),
    "a result that does not pickle": (threading.Lock, (), "TypeError"),
    "arguments that do not load": (where, (LoadsNowhere(),), "ValueError"),
    "arguments that do not fit": (where, (1, 2, 3), "TypeError"),
    "an unknown object": (where, (ObjectId(77),), "UnknownObjectError"),
}


@pytest.mark.parametrize(("fn", "args", "type_name"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failing_task_is_reported_and_the_worker_lives_on(
    farm: LocalFarm, fn: Any, args: tuple[Any, ...], type_name: str
) -> None:
    """Whatever goes wrong in a task arrives as its result, then comes its exit; the slot is used again."""
    for _ in range(2):
        ((rank, number),) = farm.spawn(fn, *args)
        (source, of, message), end = farm.collect(1)
        assert (source, of) == (rank, number)
        assert end == (rank, number, ("exit",))
        assert message[0] == "failed"
        assert (message[1].type_name, message[1].rank, message[1].host) == (type_name, 1, "odd")
    farm.spawn(where)
    assert farm.collect(1)[0][2] == ("result", 1)


def test_a_failing_task_whose_result_nobody_wants(farm: LocalFarm) -> None:
    """Without a wanted result, a failing task gives its exit and nothing else."""
    farm.spawn(boom, ValueError, wanted=ResultWanted.NOTHING)
    assert farm.collect(1) == [(1, 1, ("exit",))]


def test_what_does_not_pickle_takes_no_slot(farm: LocalFarm) -> None:
    """Pickling comes before a slot is taken; the error names what does not pickle."""
    with pytest.raises(UsageError, match="spawn: positional argument 1, a lock, cannot be pickled"):
        farm.spawn(pow, 2, threading.Lock())
    assert farm.controller.farm.free == {1, 2, 3}
    assert farm.spawn(where) == [(1, 1)]
    farm.collect(1)


def manage_part() -> None:
    here().registry.manage(f"part {here().rank}", owner=False)


def test_managed_objects_are_the_ranks_own(farm: LocalFarm) -> None:
    """An `ObjectId` argument of a task arrives as that rank's own part of the object."""
    farm.call(manage_part)
    farm.spawn(lambda part, other: (part, other), ObjectId(0), 5, count=None)
    results = sorted(message[1] for *_, message in farm.collect(3) if message != ("exit",))
    assert results == [("part 1", 5), ("part 2", 5), ("part 3", 5)]


def test_large_results_and_arguments(farm: LocalFarm) -> None:
    """Arrays travel both ways, and arrive writable."""
    array = np.arange(100_000.0)
    farm.spawn(lambda a: (a.flags.writeable, a * 2), array)
    writable, doubled = farm.collect(1)[0][2][1]
    assert writable
    assert doubled.flags.writeable
    np.testing.assert_array_equal(doubled, array * 2)


def enter_and_remove(path: str) -> None:
    os.chdir(path)
    os.rmdir(path)


def test_a_tasks_directory_is_its_own_affair(farm: LocalFarm, tmp_path: Path) -> None:
    """After a task that changed the working directory, or removed it, the worker is back where it began."""
    before = os.getcwd()
    farm.call(where, values=True)  # every worker has begun, and knows where
    (tmp_path / "gone").mkdir()
    for fn, argument in [(os.chdir, str(tmp_path)), (enter_and_remove, str(tmp_path / "gone"))]:
        farm.spawn(fn, argument)
        farm.collect(1)
        assert farm.spawn(os.getcwd)[0][0] == 1
        assert farm.collect(1)[0][2] == ("result", before)


# Messages


def echo(n: int) -> None:
    for _ in range(n):
        send(0, 0, receive())


def test_messages_there_and_back(farm: LocalFarm) -> None:
    """Messages to a task and back arrive in order; the sender may change what it sent."""
    ((rank, number),) = farm.spawn(echo, 3)
    array = np.zeros(50_000)
    for value in (1.0, 2.0, 3.0):
        array[:] = value
        farm.controller.send_message(rank, number, array)
    array[:] = -1.0
    echoes = [message for *_, message in farm.collect(1)]
    assert [(kind, obj[0], obj[-1]) for kind, obj in echoes[:3]] == [("message", v, v) for v in (1.0, 2.0, 3.0)]
    assert echoes[3:] == [("result", None), ("exit",)]


def pass_on(following: tuple[int, int]) -> Any:
    send(*following, here().rank)
    return receive()


def test_tasks_send_to_each_other(farm: LocalFarm) -> None:
    """A ring: every task sends to the next one, also before that one has started."""
    tasks = [(1, 1), (2, 2), (3, 3)]
    for index, task in enumerate(tasks):
        assert farm.spawn(pass_on, tasks[(index + 1) % 3]) == [task]
    results = {rank: message[1] for rank, _, message in farm.collect(3) if message != ("exit",)}
    assert results == {1: 3, 2: 1, 3: 2}


def test_the_spawner_sends_to_itself(farm: LocalFarm) -> None:
    """Rank 0 may send to its own task; what it gets is a copy."""
    array = np.zeros(50_000)
    farm.controller.send_message(0, 0, array)
    array[:] = 1.0
    rank, number, (kind, received) = farm.next_message(0.0)
    assert (rank, number, kind, received.any()) == (0, 0, "message", False)


def test_one_rank_can_be_asked_for(farm: LocalFarm) -> None:
    """With a rank, messages of others wait."""
    farm.spawn(where, count=None)
    assert farm.next_message(rank=3) == (3, 3, ("result", 3))
    assert farm.next_message(rank=3) == (3, 3, ("exit",))
    assert farm.next_message(0.0, rank=3) is None
    assert {rank for rank, *_ in farm.collect(2)} == {1, 2}


def test_misaddressed_messages_are_dropped(farm: LocalFarm) -> None:
    """A message for a task that is not the current one disturbs nobody."""
    ((rank, number),) = farm.spawn(receive)
    for other in (number + 7, 0):
        farm.controller.transport.send(rank, Frame(Kind.MESSAGE, 0, other, body=pack("for another task").body))
    assert farm.controller.send_message(rank, number, "right")
    assert farm.collect(1)[0][2] == ("result", "right")


def test_messages_to_nobody_are_not_sent(farm: LocalFarm) -> None:
    """A sender that knows that there is no such task is told so, and sends nothing."""
    ((rank, number),) = farm.spawn(answers, [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 2), (-1, 1), (9, 1)])
    assert (rank, number) == (1, 1)
    others = [(rank, 0), (rank, number + 7), (2, number), (0, 1), (-1, 0), (9, 1)]
    assert [farm.controller.send_message(*other, "x") for other in others] == [False] * len(others)
    sent = [True, False, False, True, False, True, False, False]  # it cannot know what runs on rank 2
    assert farm.collect(1)[-2][2] == ("result", sent)


def answers(tasks: list[tuple[int, int]]) -> list[bool]:
    """Return what a task is told when it sends to each of `tasks`."""
    return [here().endpoint.send_message(*task, "x") for task in tasks]


def test_one_deadline_bounds_the_wait(farm: LocalFarm) -> None:
    """Whatever else arrives, a receive with a deadline returns when it has passed."""
    ((rank, number),) = farm.spawn(receive, None, time.monotonic() + 0.05)
    for _ in range(20):
        farm.controller.transport.send(rank, Frame(Kind.MESSAGE, 0, number + 1, body=pack("stray").body))
    started = time.monotonic()
    assert farm.collect(1)[0][2] == ("result", None)
    assert time.monotonic() - started < 1.0


def test_a_receive_without_patience_sees_all_that_is_here() -> None:
    """With a deadline that has passed, a message that has arrived is returned, whatever frames came before it."""
    farm = LocalFarm(2)
    worker = farm.transports[1]
    worker.send(0, Frame(Kind.STATUS, 99, body=bytes(32)))
    worker.send(0, Frame(Kind.MESSAGE, 1, 5, 0, b"for nobody"))
    worker.send(0, Frame(Kind.MESSAGE, 1, 0, 0, pack_work("x", where, (), {}).body))
    letter = farm.controller.take_letter(time.monotonic() - 1.0)
    assert letter is not None
    assert (letter.rank, letter.number) == (1, 1)


def test_checking_is_true_only_if_a_message_would_come(farm: LocalFarm, gate: threading.Event) -> None:
    """`check_letter` sees what `take_letter` would return, by rank too, and takes nothing."""
    farm.spawn(wait_at_gate)
    assert not farm.controller.check_letter()
    farm.controller.send_message(0, 0, "x")
    assert farm.controller.check_letter()
    assert farm.controller.check_letter(0)
    assert not farm.controller.check_letter(1)
    assert farm.next_message(0.0, rank=0) is not None
    gate.set()
    farm.collect(1)


# Debug text


def test_debug_text_comes_before_the_end_that_it_tells(farm: LocalFarm, capsys: pytest.CaptureFixture[str]) -> None:
    """With debugging on, workers tell of their tasks; it is printed on rank 0 while it receives."""
    farm.controller.set_worker_debug(1)
    farm.spawn(where)
    farm.spawn(boom, ValueError, "bad")
    farm.collect(2)
    farm.controller.set_worker_debug(0)
    farm.spawn(where)
    farm.collect(1)
    lines = capsys.readouterr().out.splitlines()
    assert "[rank 1 odd] task 1 started" in lines
    assert "[rank 1 odd] task 1 ended" in lines
    assert any(line.startswith("[rank 2 even] task 2 failed: rank 2 (host even): ValueError: bad") for line in lines)
    assert not any("task 3" in line for line in lines)
