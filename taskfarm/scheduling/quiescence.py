"""Find out whether all remaining tasks wait for messages that nobody will send.

Rank 0 asks every rank in rounds. A rank answers with what it waits for and with the numbers of messages that it has
sent and received so far. The tasks are stuck if, in two rounds in a row, every remaining task waited without a
deadline and with nothing for it, nothing was under way (sums of sent and received are equal) and no number changed
in between (the four-counter method: F. Mattern, *Algorithms for distributed termination detection*, Distributed
Computing 2, 1987, section 5).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Inquiry", "RankStatus", "Wait"]


class Wait(IntEnum):
    """How a task waits for a message."""

    NOT = 0
    FOR_EVER = 1
    FOR_A_TIME = 2


@dataclass(frozen=True)
class RankStatus:
    """One rank's answer.

    Attributes
    ----------
    task : int
        Number of the running task; 0 if there is none.
    waits : Wait
        Whether, and how, that task waits in `receiveMessage` with nothing for it.
    n_sent, n_received : int
        Messages between tasks sent to, and taken in from, other ranks since the session began.
    """

    task: int
    waits: Wait
    n_sent: int
    n_received: int


class Inquiry:
    """Collects the answers of the rounds and draws the conclusion.

    Parameters
    ----------
    ranks : collection of int
        The ranks that answer; rank 0 answers for itself like everybody.
    last_round : int
        Number of the last round of the inquiry before this one, so that late answers to it are recognised.
    """

    def __init__(self, ranks: Collection[int], last_round: int = 0) -> None:
        self._ranks = frozenset(ranks)
        self._answers: dict[int, RankStatus] = {}
        self._before: dict[int, RankStatus] | None = None
        self.round = last_round

    def start_round(self) -> int:
        """Begin the next round and return its number."""
        self._before = self._answers if self.complete else None
        self._answers = {}
        self.round += 1
        return self.round

    @property
    def complete(self) -> bool:
        """Whether every rank has answered in this round."""
        return len(self._answers) == len(self._ranks)

    def on_answer(self, rank: int, round_: int, status: RankStatus) -> None:
        """Take in an answer; one to an earlier round is ignored."""
        if round_ == self.round and rank in self._ranks:
            self._answers[rank] = status

    def stuck_tasks(self, running: Collection[tuple[int, int]], *, or_waiting: bool = False) -> list[tuple[int, int]]:
        """Return the tasks ``(rank, number)`` of `running` if all of them wait for ever, else an empty list.

        With `or_waiting`, waits that have a deadline count too: at the end of a session nobody will send.
        """
        enough = (Wait.FOR_EVER, Wait.FOR_A_TIME) if or_waiting else (Wait.FOR_EVER,)
        if not running or not self.complete or self._answers != self._before:
            return []
        sent = sum(status.n_sent for status in self._answers.values())
        received = sum(status.n_received for status in self._answers.values())
        if sent != received:
            return []
        for rank, number in running:
            status = self._answers[rank]
            if status.waits not in enough or status.task != number:
                return []
        return sorted(running)
