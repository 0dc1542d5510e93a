"""Arrays from the memory of one task into memory of another: offered, claimed, moved.

Theory of operation. The sender offers (an ARRAY frame: ticket and description) and waits. The receiver takes the next
offer that it wants, compares the description with the memory it has, starts to receive and answers; at that the sender
sends. So the data leave only when their place is ready: memory is lent no longer than the transfer takes, nothing of an
array that nobody claims lies in MPI, and both sides may change their mind until the sender has seen the claim. ::

    sender    offer ..........................  sees the claim: send    done: True
    receiver         claim: receive, answer  ........................   done: who sent it

Every offer has one end: it is claimed; refused, because the memory does not fit (both sides raise); answered with
"gone", because the task it is for has ended; or withdrawn by the sender, at its time limit or by an exception. A claim
and a withdrawal may cross: then the sender's word counts. It ignores the claim, and the receiver, which sees the
withdrawal after its claim, gives up the receive and waits for the next offer.

What to update with this module: `taskfarm.scheduling.offers`, `taskfarm.transport.direct`, docs/architecture.md.
"""

from __future__ import annotations

import math
import time
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from taskfarm.errors import ProtocolError, UsageError
from taskfarm.scheduling.offers import Offer, Offers
from taskfarm.scheduling.quiescence import Wait
from taskfarm.transport.base import ANSWER_MAX_BYTES, Transfer, raise_if_interrupted
from taskfarm.transport.memory import Memory
from taskfarm.wire.frames import Frame, Kind

if TYPE_CHECKING:
    from taskfarm.runtime.endpoint import Endpoint

__all__ = ["ArrayExchange"]

_TICKET = Struct("<q")
_ANSWER = Struct("<qB")  # ticket, verdict; then, if refused, the description of the receiver's memory
_MAX_TEXT_BYTES = ANSWER_MAX_BYTES - _ANSWER.size


_OFFERED, _WITHDRAWN = 1, 2  # what an ARRAY frame says, as its option
_CLAIMED, _REFUSED, _GONE = 1, 2, 3  # what an answer says


class _Wanted(NamedTuple):
    """What the running task waits for: where it goes, and from whom it may come."""

    memory: Memory
    rank: int | None
    number: int | None


class ArrayExchange:
    """One rank's side of the arrays that tasks send each other.

    Parameters
    ----------
    endpoint : Endpoint
        The rank's side of the session.

    Attributes
    ----------
    waits : Wait
        Whether, and how, the running task waits for the other side to come.
    n_sent, n_received : int
        Offers, withdrawals and answers sent to, and taken in from, other ranks.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._transport = endpoint.transport
        self._offers = Offers(endpoint.mailbox)
        self.waits = Wait.NOT
        self.n_sent = 0
        self.n_received = 0
        self._ticket = 0  # of the last offer
        self._peer = 0  # rank that it was made to
        self._answer: bytes | None = None
        self._withdrawn_from: set[int] = set()  # ranks whose answer to a withdrawn offer may still come
        self._wanted: _Wanted | None = None  # while the running task waits for an array
        self._claimed: Offer | None = None  # whose array is about to come, unless it is withdrawn
        self._posted: Transfer | None = None  # the receive for it
        self._posted_from: int | None = None
        self._lost: set[int] = set()

    # Sending

    def send(self, dest: int, number: int, memory: Memory, deadline: float) -> bool:
        """Send an array to task `number` on another rank, into memory of that task.

        Returns
        -------
        bool
            True when the array is there; False if that task has ended, or has not claimed it by `deadline`.

        Raises
        ------
        UsageError
            If the memory that it wants to receive into does not fit.
        """
        transport = self._transport
        if dest in self._lost:
            return False
        transport.direct.expect_answer(dest)
        self._ticket += 1
        self._peer = dest
        self._answer = None
        body = _TICKET.pack(self._ticket) + memory.description
        own_number = self._endpoint.mailbox.number or 0
        self.n_sent += 1
        transport.send(dest, Frame(Kind.ARRAY, own_number, number, _OFFERED, body))
        self.waits = Wait.FOR_EVER if deadline == math.inf else Wait.FOR_A_TIME
        try:
            self._endpoint.check_waiting()
            transport.direct.wait_until(self._take_answer, deadline, self._endpoint.handle)
        except BaseException:  # an interrupt, or the end of the session: the memory is the caller's again
            self._withdraw(dest, number)
            raise
        finally:
            self.waits = Wait.NOT
        answer = self._answer
        if answer is None:
            self._withdraw(dest, number)
            return False
        verdict = answer[_TICKET.size]
        if verdict == _CLAIMED:
            transfer = transport.direct.send(dest, memory.array)
            transport.direct.expect_answer(dest)  # to the next offer: now it costs no time
            transport.direct.finish(transfer, self._endpoint.handle, _never)
            self._raise_if_interrupted()
            return True
        if verdict == _GONE:
            return False
        raise UsageError(
            f"sendArray: array has {memory.description.decode()}, but the task {dest}:{number} receives into memory of "
            f"{answer[_ANSWER.size :].decode(errors='replace')}; nothing was sent"
        )

    def _withdraw(self, dest: int, number: int) -> None:
        self._withdrawn_from.add(dest)
        own_number = self._endpoint.mailbox.number or 0
        self.n_sent += 1
        self._transport.send(dest, Frame(Kind.ARRAY, own_number, number, _WITHDRAWN, _TICKET.pack(self._ticket)))

    def _take_answer(self) -> bool:
        """Look for the answer to the last offer; answers to withdrawn ones are dropped."""
        if self._answer is not None:  # the other side died
            return True
        while (answer := self._transport.direct.next_answer(self._peer)) is not None:
            self.n_received += 1
            if _ANSWER.unpack_from(answer)[0] == self._ticket:
                self._withdrawn_from.discard(self._peer)  # answers come in the order of the offers
                self._answer = answer
                return True
        return False

    # Receiving

    def receive(self, memory: Memory, rank: int | None, number: int | None, deadline: float) -> Offer | None:
        """Receive the next array that is offered to the running task into `memory`.

        Parameters
        ----------
        rank, number : int or None
            Only of this rank, only of this task of that rank.

        Returns
        -------
        Offer or None
            Which one it was; None if there was none by `deadline`, or nobody is left who could send one.

        Raises
        ------
        UsageError
            If `memory` does not fit; the sender is told.
        """
        self._wanted = _Wanted(memory, rank, number)
        try:
            while (offer := self._wait_for_offer(self._wanted, deadline)) is not None:
                if offer is not self._claimed:
                    self._claim_or_refuse(offer, memory)
                if self._take_in():
                    return offer
            return None
        finally:
            if self._claimed is not None:  # an exception came in between, but the sender has been told to send
                self._take_in()
            self._wanted = None
            self._post(None, memory)

    def _wait_for_offer(self, wanted: _Wanted, deadline: float) -> Offer | None:
        """Return the next offer; it is claimed already if it came while there was nothing to do but wait for it."""
        endpoint, rank, number = self._endpoint, wanted.rank, wanted.number
        for_ever = deadline == math.inf
        while (offer := self._claimed or self._offers.take(rank, number)) is None:
            if not for_ever and time.monotonic() >= deadline:
                endpoint.serve_nowait()
                return self._claimed or self._offers.take(rank, number)
            if not endpoint.may_send(rank, number):
                return None
            endpoint.check_waiting()
            self._post(rank, wanted.memory)
            self.waits = Wait.FOR_EVER if for_ever else Wait.FOR_A_TIME
            try:
                item = self._transport.receive(deadline)
                if item is not None:
                    endpoint.handle(*item)
            finally:
                self.waits = Wait.NOT
        return offer

    def _post(self, rank: int | None, memory: Memory) -> None:
        """Let there be a receive from `rank` and no other; data come only after a claim, so each may be given up."""
        if self._posted_from == rank:
            return
        if self._posted is not None:
            self._posted.cancel()
        self._posted = self._transport.direct.receive(rank, memory.array) if rank is not None else None
        self._posted_from = rank

    def _claim(self, offer: Offer, memory: Memory) -> None:
        self._post(offer.rank, memory)
        self._claimed = offer
        self._send_answer(offer, _CLAIMED)

    def _claim_or_refuse(self, offer: Offer, memory: Memory) -> None:
        if offer.description == memory.description:
            self._claim(offer, memory)
            return
        self._send_answer(offer, _REFUSED, memory.description)
        raise UsageError(
            f"receiveArray: the task {offer.rank}:{offer.number} sends an array with "
            f"{offer.description.decode(errors='replace')}, but out has {memory.description.decode()}; "
            "nothing was received"
        )

    def _take_in(self) -> bool:
        """Receive the claimed array; False if the offer was withdrawn meanwhile."""
        transfer = self._posted
        if self._claimed is None or transfer is None:
            return False
        wanted, self._wanted = self._wanted, None  # other offers wait: this one's receive is in use
        received = self._transport.direct.finish(transfer, self._endpoint.handle, self._is_given_up)
        self._wanted, self._claimed, self._posted, self._posted_from = wanted, None, None, None
        self._raise_if_interrupted()
        return received

    def _is_given_up(self) -> bool:
        return self._claimed is None

    def _send_answer(self, offer: Offer, verdict: int, text: bytes = b"") -> None:
        self.n_sent += 1
        self._transport.direct.answer(offer.rank, _ANSWER.pack(offer.ticket, verdict) + text[:_MAX_TEXT_BYTES])

    # Frames, and the ends of tasks

    def on_frame(self, source: int, frame: Frame) -> None:
        """Take in an offer, or its withdrawal."""
        _, number, to_number, option, body, _ = frame
        if len(body) < _TICKET.size or option not in (_OFFERED, _WITHDRAWN):
            raise ProtocolError(f"an ARRAY frame has option {option} and a body of {len(body)} bytes")
        self.n_received += 1
        (ticket,) = _TICKET.unpack_from(body)
        if option == _OFFERED:
            offer = Offer(source, number, to_number, ticket, bytes(body[_TICKET.size :]))
            wanted = self._wanted
            if wanted is not None and self._claimed is None and self._suits(offer, wanted):
                self._claim(offer, wanted.memory)  # at once: the sender waits
            elif not self._offers.put(offer):
                self._send_answer(offer, _GONE)
        elif self._claimed is not None and (self._claimed.rank, self._claimed.ticket) == (source, ticket):
            self._claimed = None
        else:
            self._offers.withdraw(source, ticket)

    def drop_late_answers(self) -> None:
        """Take in the answers to withdrawn offers that have come; whoever counts what is under way does this first."""
        for rank in self._withdrawn_from:
            while (rank != self._peer or not self.waits) and self._transport.direct.next_answer(rank) is not None:
                self.n_received += 1

    def _suits(self, offer: Offer, wanted: _Wanted) -> bool:
        """Tell whether a new offer is the one that is waited for; one that does not fit is dealt with later."""
        return (
            offer.description == wanted.memory.description
            and (wanted.rank is None or wanted.rank == offer.rank)
            and (wanted.number is None or wanted.number == offer.number)
            and offer.to_number == self._endpoint.mailbox.number
            and not self._offers
        )

    def answer_orphans(self) -> None:
        """Tell those who have offered something to tasks that have ended."""
        for offer in self._offers.take_orphans():
            self._send_answer(offer, _GONE)

    def on_lost(self, rank: int) -> None:
        """Wait no longer for a rank that died: what it was offered is gone, what it offered is withdrawn."""
        self._lost.add(rank)
        self._offers.drop(rank)
        if self._claimed is not None and self._claimed.rank == rank:
            self._claimed = None
        if self._peer == rank and self._answer is None:
            self._answer = _ANSWER.pack(self._ticket, _GONE)

    def _raise_if_interrupted(self) -> None:
        if self._transport.interrupted:
            raise_if_interrupted(self._transport)


def _never() -> bool:
    return False
