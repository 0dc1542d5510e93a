"""The mailbox against a simple model: a list of everything that was not taken and not forgotten."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taskfarm.scheduling.mailbox import Letter, Mailbox

RANKS = st.integers(0, 3)


class WorkerMailbox(RuleBasedStateMachine):
    """The mailbox of a worker, on which tasks with growing numbers start and end."""

    def __init__(self) -> None:
        super().__init__()
        self.mailbox: Mailbox[int] = Mailbox()
        self.pending: list[Letter[int]] = []
        self.current: int | None = None
        self.ended = 0  # tasks up to this number are over for this rank
        self.n_letters = 0

    def visible(self, rank: int | None = None) -> list[Letter[int]]:
        mine = [letter for letter in self.pending if letter.to_number == self.current]
        return [letter for letter in mine if rank is None or letter.rank == rank]

    @rule(rank=RANKS, ahead=st.integers(-2, 4))
    def put(self, rank: int, ahead: int) -> None:
        number = max(self.ended + 1 + ahead, 1)
        self.n_letters += 1
        letter = Letter(rank, 7, number, self.n_letters)
        self.mailbox.put(letter)
        if number > self.ended:
            self.pending.append(letter)

    @rule(rank=st.none() | RANKS)
    def take(self, rank: int | None) -> None:
        expected = self.visible(rank)
        assert self.mailbox.holds(rank) is bool(expected)
        taken = self.mailbox.take(rank)
        assert taken == (expected[0] if expected else None)
        if taken is not None:
            self.pending.remove(taken)

    @precondition(lambda self: self.current is None)
    @rule(ahead=st.integers(0, 3))
    def start(self, ahead: int) -> None:
        self.current = self.ended + 1 + ahead
        self.ended = self.current - 1
        self.mailbox.start(self.current)
        self.pending = [letter for letter in self.pending if letter.to_number >= self.current]

    @rule()
    def finish(self) -> None:
        self.mailbox.finish()
        if self.current is not None:
            self.ended = self.current
            self.current = None
            self.pending = [letter for letter in self.pending if letter.to_number > self.ended]

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        assert self.mailbox.number == self.current
        assert len(self.mailbox) == len(self.visible())
        assert all(self.mailbox.holds(rank) is bool(self.visible(rank)) for rank in (None, 0, 1, 2, 3))

    def teardown(self) -> None:
        """All that is left comes out, first in, first out."""
        taken = []
        while (letter := self.mailbox.take()) is not None:
            taken.append(letter)
        assert taken == self.visible()


class SpawnerMailbox(RuleBasedStateMachine):
    """The mailbox of rank 0, whose one task is the main program."""

    def __init__(self) -> None:
        super().__init__()
        self.mailbox: Mailbox[int] = Mailbox(0)
        self.pending: list[Letter[int]] = []
        self.n_letters = 0

    @rule(rank=RANKS, number=st.integers(-1, 2))
    def put(self, rank: int, number: int) -> None:
        self.n_letters += 1
        letter = Letter(rank, 7, number, self.n_letters)
        self.mailbox.put(letter)
        if number == 0:
            self.pending.append(letter)

    @rule(rank=st.none() | RANKS)
    def take(self, rank: int | None) -> None:
        expected = [letter for letter in self.pending if rank is None or letter.rank == rank]
        assert self.mailbox.holds(rank) is bool(expected)
        taken = self.mailbox.take(rank)
        assert taken == (expected[0] if expected else None)
        if taken is not None:
            self.pending.remove(taken)

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        assert len(self.mailbox) == len(self.pending)
        assert self.mailbox.number == 0


TestWorkerMailbox = WorkerMailbox.TestCase
TestSpawnerMailbox = SpawnerMailbox.TestCase
