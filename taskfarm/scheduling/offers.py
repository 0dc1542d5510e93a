"""Arrays that have been offered to tasks of this rank and were not claimed yet."""

from __future__ import annotations

from typing import NamedTuple

from taskfarm.scheduling.mailbox import Mailbox, Place

__all__ = ["Offer", "Offers"]


class Offer(NamedTuple):
    """One array that a task wants to send.

    Attributes
    ----------
    rank, number : int
        The task that offers it.
    to_number : int
        Number of the task it is for, on this rank.
    ticket : int
        What the offering rank calls it; its offers have growing ones.
    description : bytes
        Shape, dtype and order, as readable text.
    """

    rank: int
    number: int
    to_number: int
    ticket: int
    description: bytes


class Offers:
    """Offers for the task that runs on this rank now, and for coming ones; first come, first claimed.

    Which task an offer is for is decided as for letters. But while a letter for a task that has ended is dropped,
    somebody waits for the answer to an offer: what is not kept here is returned, to be answered.

    Parameters
    ----------
    mailbox : Mailbox
        Knows which task runs.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._offers: list[Offer] = []

    def __len__(self) -> int:
        return len(self._offers)

    def put(self, offer: Offer) -> bool:
        """Take in an offer; False if it is for a task that has ended or will never be."""
        if self._mailbox.place(offer.to_number) is Place.NOWHERE:
            return False
        self._offers.append(offer)
        return True

    def take(self, rank: int | None = None, number: int | None = None) -> Offer | None:
        """Remove and return the oldest offer for the current task; of `rank`, and of its task `number`, if given."""
        for index, offer in enumerate(self._offers):
            if (
                offer.to_number == self._mailbox.number
                and rank in (None, offer.rank)
                and number in (None, offer.number)
            ):
                del self._offers[index]
                return offer
        return None

    def withdraw(self, rank: int, ticket: int) -> bool:
        """Forget an offer of `rank`; False if it is not here."""
        for index, offer in enumerate(self._offers):
            if (offer.rank, offer.ticket) == (rank, ticket):
                del self._offers[index]
                return True
        return False

    def drop(self, rank: int) -> None:
        """Forget the offers of a rank that died."""
        self._offers = [offer for offer in self._offers if offer.rank != rank]

    def take_orphans(self) -> list[Offer]:
        """Remove and return the offers for tasks that have ended."""
        orphans = [offer for offer in self._offers if self._mailbox.place(offer.to_number) is Place.NOWHERE]
        if orphans:
            self._offers = [offer for offer in self._offers if offer not in orphans]
        return orphans
