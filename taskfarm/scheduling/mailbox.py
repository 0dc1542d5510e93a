"""Messages that have arrived and were not handed out yet."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any, NamedTuple

__all__ = ["Letter", "Mailbox", "Place"]


class Place(Enum):
    """Where a task of this rank is."""

    NOW = "running"
    COMING = "not yet there"
    NOWHERE = "ended, or never to come"


class Letter(NamedTuple):
    """One message.

    Attributes
    ----------
    rank, number : int
        The task that sent it.
    to_number : int
        Number of the task it is for, on this rank.
    content : object
        The payload.
    """

    rank: int
    number: int
    to_number: int
    content: Any


class Mailbox:
    """Letters for the task that runs on this rank now, first come first served.

    Numbers of tasks grow, so a letter for a smaller number than the current one is for a task that has ended, and is
    dropped; one for a larger number is for a task whose spawn is still under way (another rank may be faster than the
    spawner), and waits for it.

    Parameters
    ----------
    number : int or None
        Number of the current task; None if there is none.
    """

    def __init__(self, number: int | None = None) -> None:
        self.number = number
        self._ended = -1  # every task of this rank up to this number has ended
        self._letters: deque[Letter] = deque()
        self._early: list[Letter] = []

    def __len__(self) -> int:
        return len(self._letters)

    def place(self, number: int) -> Place:
        """Tell where task `number` of this rank is; where the spawner runs, no other task ever does."""
        if number == self.number:
            return Place.NOW
        return Place.COMING if number > self._ended and self.number != 0 else Place.NOWHERE

    def put(self, letter: Letter) -> None:
        """Take in a letter; one for an ended task is dropped, and so is one for any task but the spawner's there."""
        if letter.to_number == self.number:
            self._letters.append(letter)
        elif self.place(letter.to_number) is Place.COMING:
            self._early.append(letter)

    def take(self, rank: int | None = None) -> Letter | None:
        """Remove and return the oldest letter, or the oldest one from `rank`; None if there is none."""
        if not self._letters:
            return None
        if rank is None:
            return self._letters.popleft()
        for index, letter in enumerate(self._letters):
            if letter.rank == rank:
                del self._letters[index]
                return letter
        return None

    def holds(self, rank: int | None = None) -> bool:
        """Tell whether `take` would return a letter."""
        if rank is None:
            return bool(self._letters)
        return any(letter.rank == rank for letter in self._letters)

    def start(self, number: int) -> None:
        """Begin with task `number` and take up the letters for it that came early."""
        self.number = number
        self._ended = number - 1
        self._letters.clear()
        if self._early:
            early, self._early = self._early, []
            for letter in early:
                self.put(letter)

    def finish(self) -> None:
        """End the current task and forget its letters."""
        if self.number is not None:
            self._ended = self.number
            self.number = None
            self._letters.clear()
