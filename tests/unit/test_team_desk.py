"""Rank 0's side of tasks that several ranks run together: what it sends, and what it makes of the answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from taskfarm.errors import ProtocolError, RankFailure
from taskfarm.runtime.executor import team_desk
from taskfarm.runtime.executor.jobs import Supplies
from taskfarm.runtime.executor.team_desk import TEAM_REPORT, TeamDesk
from taskfarm.runtime.executor.teams import _read_head
from taskfarm.runtime.options import TeamForget, TeamReply
from taskfarm.runtime.registry import PlacedObjectId, Registry
from taskfarm.runtime.runner import encode_failure
from taskfarm.scheduling.dealing import Dealer
from taskfarm.wire.codec import Packed
from taskfarm.wire.frames import Buffer, Frame, Kind, encode, parse_whole

HOSTS = dict.fromkeys(range(1, 5), "a")


class Task:
    """A placed task that remembers what it was told."""

    job = SimpleNamespace(number=7, initializer=None, function=None)
    known = None
    retries = 1
    packed = Packed(b"work", ())

    def __init__(self, wants_all: bool = False, cancelled: bool = False, repeated: str = "-") -> None:
        self.wants_all = wants_all
        self.cancelled = cancelled
        self.repeated = repeated
        self.failures: list[RankFailure] = []
        self.results: list[bytes] | None = None

    def on_start(self) -> bool:
        return not self.cancelled

    def on_failed(self, failure: RankFailure) -> None:
        self.failures.append(failure)

    on_broken = on_failed

    def is_repeated(self, failure: RankFailure) -> bool:
        return failure.message == self.repeated

    def on_over(self, results: Sequence[tuple[Buffer, Sequence[Buffer]]]) -> None:
        self.results = [bytes(body) for body, _ in results]


class Desk:
    """A desk, with what it sends."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Frame]] = []
        self.told: list[int] = []
        self.registry = Registry()
        transport = SimpleNamespace(send=self.send, send_to=self.send_to)
        handlers: dict[Kind, Any] = {}
        controller = SimpleNamespace(
            transport=transport,
            registry=self.registry,
            hosts=HOSTS,
            tags={},
            tell_losses=lambda worker: self.told.append(worker),
            add_handler=handlers.__setitem__,
            caller=SimpleNamespace(book=SimpleNamespace(is_settled=True)),
        )
        self.dealer = Dealer(HOSTS)
        crew = SimpleNamespace(
            workers=tuple(HOSTS), dealer=self.dealer, supplies=Supplies(HOSTS), clock=lambda: 0.0, n_done=0
        )
        self.desk = TeamDesk(cast("Any", crew), cast("Any", controller))
        self.on_done = handlers[Kind.TEAM_DONE]

    def lose(self, rank: int) -> None:
        self.dealer.on_worker_lost(rank, "died")
        self.desk.on_worker_lost(rank, "died")

    def send(self, dest: int, frame: Frame) -> None:
        control, bulk = encode(frame)
        assert not bulk
        read = parse_whole(control)
        assert read is not None
        self.sent.append((dest, read))

    def send_to(self, dests: Sequence[int], frame: Frame) -> None:
        for dest in dests:
            self.send(dest, frame)

    def take(self, kind: Kind) -> list[tuple[int, Frame]]:
        found = [item for item in self.sent if item[1].kind is kind]
        self.sent = [item for item in self.sent if item[1].kind is not kind]
        return found

    def answer(self, rank: int, run: int, how: int, body: bytes = b"", n_steps: int = 0, unmatched: int = 0) -> None:
        self.on_done(rank, Frame(Kind.TEAM_DONE, run, unmatched, how, TEAM_REPORT.pack(n_steps) + body))


def failure(text: str) -> bytes:
    return encode_failure(RankFailure(2, "a", "ValueError", text, "", ""))


def started(desk: Desk, task: Task, n: int = 2) -> int:
    """Add a task and return its run number."""
    desk.desk.add(cast("Any", task), n, None)
    desk.desk.place(0.0)
    sent = desk.take(Kind.TEAM_TASK)
    assert len(sent) == n
    desk.take(Kind.FUNCTION)
    return sent[0][1].a


def test_a_task_goes_to_all_of_its_ranks() -> None:
    """Each gets the same frame: the job, the ranks, the work; and before it what the job needs."""
    desk = Desk()
    desk.desk.add(cast("Any", Task()), 3, None)
    desk.desk.place(0.0)
    assert [rank for rank, _ in desk.take(Kind.FUNCTION)] == [1, 2, 3]
    frames = desk.take(Kind.TEAM_TASK)
    assert [rank for rank, _ in frames] == [1, 2, 3]
    assert len({frame.a for _, frame in frames}) == len({frame.b for _, frame in frames}) == 1
    job, ranks, work = _read_head(frames[0][1].body)
    assert (job, ranks, bytes(work)) == (7, (1, 2, 3), b"work")


def test_results_of_the_first_or_of_all() -> None:
    """In the order of the ranks, whatever the order of the answers."""
    desk = Desk()
    for wants_all, expected in ((False, [b"r1"]), (True, [b"r1", b"r2"])):
        task = Task(wants_all)
        run = started(desk, task)
        desk.answer(2, run, TeamReply.VALUE, b"r2")
        assert task.results is None
        desk.answer(1, run, TeamReply.VALUE, b"r1")
        assert task.results == expected
    assert not desk.sent
    assert not desk.desk.is_busy


def test_a_failure_is_told_once_and_first() -> None:
    """Also if ranks that it has ended answer before the one that failed; and all ranks tidy up."""
    desk = Desk()
    task = Task()
    run = started(desk, task, 3)
    desk.answer(1, run, TeamReply.ENDED, n_steps=4)
    assert not task.failures
    desk.answer(2, run, TeamReply.FAILED, failure("first"), n_steps=3)
    assert [told.message for told in task.failures] == ["first"]
    assert task.results is None
    desk.answer(3, run, TeamReply.FAILED, failure("second"), n_steps=5)
    assert len(task.failures) == 1
    assert task.results == []
    tidy = desk.take(Kind.TEAM_FORGET)
    assert [(rank, frame.b, frame.option) for rank, frame in tidy] == [(rank, 5, TeamForget.TIDY) for rank in (1, 2, 3)]
    assert TEAM_REPORT.unpack(tidy[0][1].body) == (run,)


def test_a_failure_that_is_repeated() -> None:
    """All ranks run the task again, when all have left the first attempt; as often as it may be, then it has failed."""
    desk = Desk()
    task = Task(repeated="again")
    run = started(desk, task)
    desk.answer(2, run, TeamReply.FAILED, failure("again"), n_steps=1)
    assert not desk.desk.place(0.0) and not desk.take(Kind.TEAM_TASK) and desk.desk.stuck_ranks(1.0) == [1]
    desk.answer(1, run, TeamReply.ENDED, n_steps=1)
    assert [frame.option for _, frame in desk.take(Kind.TEAM_FORGET)] == [TeamForget.TIDY] * 2
    desk.desk.place(0.0)
    frames = desk.take(Kind.TEAM_TASK)
    assert [rank for rank, _ in frames] == [1, 2] and not task.failures and task.results is None
    for rank, frame in frames:
        desk.answer(rank, frame.a, TeamReply.FAILED, failure("again"))
    assert [told.message for told in task.failures] == ["again"] and task.results == [] and not desk.desk.is_busy
    other = Task(repeated="again")
    run = started(desk, other)
    desk.answer(1, run, TeamReply.FAILED, failure("other"))
    desk.answer(2, run, TeamReply.ENDED)
    assert [told.message for told in other.failures] == ["other"] and not desk.desk.is_busy


def test_a_repeated_task_that_nobody_can_run_any_more() -> None:
    """If too few workers are left when its ranks have left the attempt, it ends with what it raised."""
    desk = Desk()
    task = Task(repeated="again")
    run = started(desk, task, 4)
    desk.answer(2, run, TeamReply.FAILED, failure("again"))
    desk.lose(3)
    for rank in (1, 4):
        desk.answer(rank, run, TeamReply.ENDED)
    assert [told.message for told in task.failures] == ["again"] and task.results == [] and not desk.desk.is_busy


def test_a_communicator_is_kept_until_something_is_left_in_it() -> None:
    """A team gets the same number again; a new one after a failure, and after messages that nobody received."""
    desk = Desk()
    numbers = []
    for unmatched in (0, 0, 1, 0):
        desk.desk.add(cast("Any", Task()), 2, None)
        desk.desk.place(0.0)
        frames = desk.take(Kind.TEAM_TASK)
        numbers.append(frames[0][1].b)
        for rank, frame in frames:
            desk.answer(rank, frame.a, TeamReply.VALUE, unmatched=unmatched)
    assert numbers[0] == numbers[1] == numbers[2] != numbers[3]
    assert [frame.a for _, frame in desk.take(Kind.TEAM_FORGET)] == [numbers[0]] * 2


def test_what_was_not_counted_is_kept_for_ever() -> None:
    """After a failure of a task that a C library may have sent messages in."""
    desk = Desk()
    run = started(desk, Task())
    desk.answer(1, run, TeamReply.FAILED | TeamReply.UNCOUNTED, failure("x"))
    desk.answer(2, run, TeamReply.ENDED)
    assert {frame.option for _, frame in desk.take(Kind.TEAM_FORGET)} == {TeamForget.KEEP}


def test_the_number_of_communicators_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was not used for longest is freed."""
    monkeypatch.setattr(team_desk, "MAX_TEAMS", 2)
    desk = Desk()
    for pair in itertools.islice(itertools.combinations(HOSTS, 2), 3):
        desk.desk.add(cast("Any", Task()), 2, frozenset(pair))
        desk.desk.place(0.0)
        for rank, frame in desk.take(Kind.TEAM_TASK):
            desk.answer(rank, frame.a, TeamReply.VALUE)
    freed = desk.take(Kind.TEAM_FORGET)
    assert [(rank, frame.a, frame.option) for rank, frame in freed] == [(rank, 1, TeamForget.FREE) for rank in (1, 2)]


def test_cancelled_tasks_make_room() -> None:
    """A task that was cancelled while it waited is not sent, and the next one starts at once."""
    desk = Desk()
    desk.desk.add(cast("Any", Task(cancelled=True)), 4, None)
    desk.desk.add(cast("Any", Task()), 4, None)
    desk.desk.place(0.0)
    assert len(desk.take(Kind.TEAM_TASK)) == 4


def test_answers_that_do_not_fit() -> None:
    """Of a rank that has no part in it, a second time, or too short: an error, and nothing changes."""
    desk = Desk()
    run = started(desk, Task())
    desk.answer(1, run, TeamReply.VALUE)
    for rank, number in ((3, run), (1, run), (2, run + 1)):
        with pytest.raises(ProtocolError):
            desk.answer(rank, number, TeamReply.VALUE)
    with pytest.raises(ProtocolError):
        desk.on_done(2, Frame(Kind.TEAM_DONE, run, 0, 0, b"x"))
    desk.answer(2, run, TeamReply.VALUE)
    for body in (b"", b"\0" * 12, Task.packed.body * 4):
        with pytest.raises(ProtocolError):
            _read_head(body)


def test_ranks_that_do_not_come_back() -> None:
    """Known when nothing else is left."""
    desk = Desk()
    run = started(desk, Task())
    assert desk.desk.stuck_ranks(float("inf")) == []
    desk.answer(1, run, TeamReply.FAILED, failure("x"))
    assert desk.desk.stuck_ranks(0.0) == []
    assert desk.desk.stuck_ranks(float("inf")) == [2]


def test_objects_go_with_their_last_handle() -> None:
    """Each copy on rank 0 counts; then the ranks that have the parts are told."""
    desk = Desk()
    handles = []
    for _ in range(2):
        handle = PlacedObjectId(1 << 62 | 5)
        handle.ranks = (1, 3)
        handle._dying = desk.registry.adopt(handle)
        handles.append(handle)
    del handles[0], handle
    desk.desk.place(0.0)
    assert not desk.sent
    handles.clear()
    assert desk.desk.is_used
    desk.desk.place(0.0)
    assert [(rank, frame.a, frame.option) for rank, frame in desk.take(Kind.TEAM_FORGET)] == [
        (rank, 1 << 62 | 5, TeamForget.OBJECT) for rank in (1, 3)
    ]


def test_a_task_is_tried_again_when_a_rank_dies() -> None:
    """At once, on ranks that live; the others of the lost attempt are told, and keep their slots until they answer."""
    desk = Desk()
    task = Task()
    first = started(desk, task)
    desk.lose(1)
    assert desk.told == [2]
    desk.desk.place(0.0)
    frames = desk.take(Kind.TEAM_TASK)
    assert [dest for dest, _ in frames] == [3, 4]
    desk.answer(2, first, TeamReply.ENDED)
    assert [(dest, frame.option) for dest, frame in desk.take(Kind.TEAM_FORGET)] == [(2, TeamForget.KEEP)]
    assert (task.failures, task.results) == ([], None)
    desk.desk.placer.check_invariants()
    desk.lose(4)
    [error] = task.failures
    assert str(error) == (
        "the task was lost 2 times with the process that ran it: attempt 1, rank 1: died; attempt 2, rank 4: died"
    )
    assert task.results == []
    assert desk.desk.is_busy
    desk.answer(3, frames[0][1].a, TeamReply.FAILED, failure("too late"))
    assert len(task.failures) == 1
    assert not desk.desk.is_busy
    desk.desk.placer.check_invariants()


def test_a_task_that_has_failed_is_not_tried_again() -> None:
    """What one of its ranks raised counts, also if another one dies before all are through."""
    desk = Desk()
    task = Task()
    run = started(desk, task)
    desk.answer(1, run, TeamReply.FAILED, failure("mine"))
    desk.lose(2)
    assert [str(one.message) for one in task.failures] == ["mine"]
    assert task.results == []
    assert not desk.desk.is_busy


def test_a_task_that_nobody_can_run_any_more_fails() -> None:
    """At once, when the ranks that it may run on have died, whether it waits or is to be tried again."""
    desk = Desk()
    waiting, running = Task(), Task()
    run = started(desk, running, 4)
    desk.desk.add(cast("Any", waiting), 3, frozenset({2, 3, 4}))
    desk.lose(3)
    assert str(waiting.failures[0]) == "no workers are left that could run the task, since rank 3 died"
    assert waiting.results == []
    assert "attempt 1, rank 3: died" in str(running.failures[0])
    for rank in (1, 2, 4):
        desk.answer(rank, run, TeamReply.ENDED)
    assert not desk.desk.is_busy
    desk.desk.placer.check_invariants()
