"""Collective calls as a state machine: every failure is told exactly once, ids stay aligned.

Rank 0 and the workers are played with real registries of managed objects; what workers report is delivered late, in
the order of each worker. The functions that are called make the same objects on every rank, until they fail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskfarm.errors import RankFailure
from taskfarm.runtime.registry import Registry
from taskfarm.scheduling.calls import MAX_AHEAD, CallBook


@dataclass
class Call:
    """A call as it was planned, and how it ended on each rank."""

    number: int
    first_id: int
    n_objects: int
    raised: dict[int, bool] = field(default_factory=dict)


@dataclass
class PlayedWorker:
    """A worker: which call is next, its objects, and its reports that are under way."""

    rank: int
    next_call: int = 1
    done_known: int = 0
    registry: Registry = field(default_factory=Registry)
    reports: deque[Callable[[], None]] = field(default_factory=deque)


class CallMachine(RuleBasedStateMachine):
    """Makes calls, nested ones too, that end in every way, with reports delivered late."""

    @initialize(n_workers=st.integers(0, 3))
    def start(self, n_workers: int) -> None:
        self.workers = [PlayedWorker(rank) for rank in range(1, n_workers + 1)]
        self.book = CallBook([worker.rank for worker in self.workers])
        self.registry = Registry()
        self.calls: dict[int, Call] = {}
        self.open: list[Call] = []  # running on rank 0, innermost last
        self.failed: set[tuple[int, int]] = set()  # (call, rank) that rank 0 has been told of by messages
        self.told: set[tuple[int, int]] = set()
        self.n_seen_diverged = 0  # calls up to this one were settled when the communicator was renewed

    # Rank 0

    @rule(n_objects=st.integers(0, 3))
    def begin(self, n_objects: int) -> None:
        if self.open and self.open[-1].n_objects:
            return  # a function that makes objects makes no calls
        if self.book.must_wait():
            return
        if not self.open:
            self.tell()
            self.repair()
        counter = self.registry.counter
        number = self.book.begin("f", counter)
        assert number == len(self.calls) + 1
        self.calls[number] = Call(number, counter, n_objects)
        self.open.append(self.calls[number])

    @precondition(lambda self: self.open)
    @rule(raises=st.booleans(), n_made=st.integers(0, 3))
    def end_on_rank_0(self, raises: bool, n_made: int) -> None:
        call = self.open.pop()
        self.make_objects(self.registry, call, raises, n_made)
        call.raised[0] = raises
        self.book.on_local_end(call.number, self.registry.counter, raised=raises)
        if raises:
            self.tell_notes(call.number)

    @rule()
    def tell(self) -> None:
        """Rank 0 raises what is pending."""
        expected = {(number, rank) for number, rank in self.failed if self.calls[number].raised.get(0) is False}
        assert self.book.has_untold is bool(expected - self.told)
        told = [(number, failure.rank) for number, _, failures in self.book.take_untold() for failure in failures]
        assert len(told) == len(set(told))
        assert set(told) == expected - self.told
        self.told |= set(told)
        assert not self.book.has_untold

    @rule(data=st.data())
    def notes(self, data: st.DataObject) -> None:
        raised = [number for number, call in self.calls.items() if call.raised.get(0)]
        if raised:
            self.tell_notes(data.draw(st.sampled_from(raised)))

    def tell_notes(self, number: int) -> None:
        told = {(number, failure.rank) for failure in self.book.take_failures_of(number)}
        assert told <= self.failed - self.told
        self.told |= told

    def repair(self) -> None:
        """What rank 0 does before an outermost call if it knows of trouble."""
        if self.book.has_trouble:
            for worker in self.workers:
                self.finish(worker)
            self.tell()
        assert not self.book.has_trouble or not self.workers
        self.remove(self.book.take_orphans())
        if self.book.diverged:
            self.book.on_repaired()
            self.n_seen_diverged = self.n_settled

    def remove(self, orphans: list[int]) -> None:
        assert orphans == sorted(set(orphans))
        for registry in (self.registry, *(worker.registry for worker in self.workers)):
            registry.discard(orphans)

    # Workers

    @staticmethod
    def make_objects(registry: Registry, call: Call, raises: bool, n_made: int) -> None:
        for index in range(min(n_made, call.n_objects) if raises else call.n_objects):
            registry.manage((call.number, index), owner=False)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), raises=st.booleans(), n_made=st.integers(0, 3), reports=st.booleans())
    def work(self, data: st.DataObject, raises: bool, n_made: int, reports: bool) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        if worker.next_call <= self.book.last:
            self.run(worker, raises, n_made)
            if reports:
                self.report_done(worker)

    def run(self, worker: PlayedWorker, raises: bool, n_made: int) -> None:
        call = self.calls[worker.next_call]
        worker.next_call += 1
        worker.registry.start_call(call.first_id)
        self.make_objects(worker.registry, call, raises, n_made)
        call.raised[worker.rank] = raises
        if raises:
            counter = worker.registry.counter
            worker.reports.append(lambda: self.hear_failure(call, worker.rank, counter))
            self.report_done(worker)

    def report_done(self, worker: PlayedWorker) -> None:
        number = worker.next_call - 1

        def hear() -> None:
            self.book.on_done_up_to(worker.rank, number)
            worker.done_known = number

        worker.reports.append(hear)

    def hear_failure(self, call: Call, rank: int, counter: int) -> None:
        self.book.on_failed(call.number, counter, RankFailure(rank, "h", "E", "no", "Traceback"))
        self.failed.add((call.number, rank))

    @precondition(lambda self: any(worker.reports for worker in self.workers))
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.reports]))
        worker.reports.popleft()()

    def finish(self, worker: PlayedWorker) -> None:
        """Let a worker work off everything, successfully, and deliver its reports."""
        while worker.next_call <= self.book.last:
            self.run(worker, False, 0)
        self.report_done(worker)
        while worker.reports:
            worker.reports.popleft()()

    # What must hold

    @property
    def n_settled(self) -> int:
        """Number of the last call that rank 0 knows to be over everywhere, all before it included."""
        known = min((worker.done_known for worker in self.workers), default=len(self.calls))
        return min([known, *(call.number - 1 for call in self.open)])

    @invariant()
    def progress_is_known(self) -> None:
        known = {worker.rank: worker.done_known for worker in self.workers}
        assert self.book.last == len(self.calls)
        assert self.book.done_everywhere == min(known.values(), default=self.book.last)
        assert self.book.must_wait() is (self.book.last - self.book.done_everywhere >= MAX_AHEAD)
        for number in {0, 1, self.book.last}:
            assert self.book.behind(number) == [rank for rank, done in known.items() if done < number]

    @invariant()
    def diverged_only_if_outcomes_differ(self) -> None:
        new = [self.calls[number] for number in range(self.n_seen_diverged + 1, self.n_settled + 1)]
        assert self.book.diverged is any(len(set(call.raised.values())) > 1 for call in new)

    @invariant()
    def trouble_is_known(self) -> None:
        open_calls = [call for number, call in self.calls.items() if number > self.n_settled]
        failed = {number for number, _ in self.failed}
        assert self.book.has_trouble is any(call.raised.get(0) or call.number in failed for call in open_calls)

    def teardown(self) -> None:
        """In the end every failure was told once or belonged to rank 0's own, and every rank has the same objects."""
        if not hasattr(self, "book"):
            return
        while self.open:
            self.end_on_rank_0(False, 0)
        for worker in self.workers:
            self.finish(worker)
        self.tell()
        self.remove(self.book.take_orphans())
        happened = {(n, rank) for n, call in self.calls.items() for rank, bad in call.raised.items() if rank and bad}
        assert self.failed == happened
        of_rank_0 = {(number, rank) for number, rank in happened if self.calls[number].raised[0]}
        assert happened - of_rank_0 <= self.told
        assert not self.book.has_trouble
        for worker in self.workers:
            worker.registry.start_call(self.registry.counter)
            assert worker.registry.objects == self.registry.objects


TestCalls = CallMachine.TestCase
