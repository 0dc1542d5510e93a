"""The controller of a group: takes portions from rank 0, deals them to its workers, and passes on what they gave.

Theory of operation. A rank becomes one when rank 0 tells it of its workers (GROUP), and stays a worker otherwise:
calls and tasks of other faces reach it as before, when nothing of an executor is under way. It runs no tasks of an
executor, since it could feed nobody meanwhile.

Its `Dealer` deals *pieces*, by number; what is in them is not looked at, so items and results pass through as they are.
A worker gets a FUNCTION before its first batch that needs it, as from rank 0. Results are *parts* of portions; those
of single items are gathered in columns. They go to rank 0 together, some time apart (`pause_s`), but at once if nothing
was sent for so long or nothing is left to wait for. What a worker gives back of a piece, and what is recalled, is a
part, too, for rank 0 to deal anew.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from taskfarm.errors import ProtocolError
from taskfarm.runtime.executor.batches import BatchReport, read_report
from taskfarm.runtime.executor.portions import BACK, Part, Piece, Singles, parts_frame, read_portion
from taskfarm.runtime.executor.results import ReplyOption
from taskfarm.runtime.options import BatchOption, FunctionOption
from taskfarm.scheduling.allotting import report_s
from taskfarm.scheduling.dealing import Batch, Dealer
from taskfarm.transport.base import Transport
from taskfarm.wire.frames import Buffer, Frame, Kind

__all__ = ["Relay"]

_LONG, _FRESH = int(BatchOption.LONG), int(BatchOption.FRESH)
MAX_HELD_BYTES = 1 << 20  # of results that wait for others: more is a large message by itself


class _Held(NamedTuple):
    """A piece of a portion."""

    portion: int
    piece: Piece


@dataclass(slots=True)
class _Job:
    """The pieces of a job that have not ended, by number."""

    option: int
    n_pieces: int = 0
    pieces: dict[int, _Held] = field(default_factory=dict)
    is_dropped: bool = False


class Relay:
    """Feeds the workers of a group.

    Parameters
    ----------
    transport : Transport
        To them and to rank 0.
    members : sequence of int
        Their ranks.
    n_groups : int
        How many groups there are.
    forget_here : callable
        Takes a FORGET frame for what this rank keeps itself.

    Attributes
    ----------
    due : float
        When `send_parts` should be called next.
    """

    def __init__(
        self,
        transport: Transport,
        members: Sequence[int],
        n_groups: int,
        forget_here: Callable[[int, Frame], None],
    ) -> None:
        self._transport = transport
        self._forget_here = forget_here
        self._dealer = Dealer(members)
        self._functions: dict[int, Frame] = {}
        self._known: dict[int, set[int]] = {member: set() for member in members}  # numbers that it was sent
        self._jobs: dict[int, _Job] = {}
        self._pause_s = report_s(n_groups)
        self._sent_at = -math.inf
        self._parts: list[Part] = []
        self._singles: dict[int, Singles] = {}  # by job
        self._parts_bytes = 0
        self.due = math.inf
        for member in members:
            transport.send(member, Frame(Kind.GROUP, n_groups, len(members)))

    # From rank 0

    def on_function(self, source: int, frame: Frame) -> None:
        """Keep a function or an initializer for the workers."""
        self._functions[frame.a] = frame

    def on_portion(self, source: int, frame: Frame) -> None:
        """Take the pieces of a portion."""
        limit, pieces = read_portion(frame)
        if frame.b not in self._functions:
            raise ProtocolError(f"portion {frame.a} is of job {frame.b}, which is not known here")
        job = self._jobs.get(frame.b)
        if job is not None and job.is_dropped:
            raise ProtocolError(f"portion {frame.a} is of job {frame.b}, which has ended")
        if job is None:
            job = self._jobs[frame.b] = _Job(frame.option)
            self._dealer.on_job(frame.b, limit)
        self._add(frame.b, job, [_Held(frame.a, piece) for piece in pieces])
        self._deal()

    def on_forget(self, source: int, frame: Frame) -> None:
        """Drop a function, and what waits of a job; tell the workers."""
        self._forget_here(source, frame)
        number = frame.a
        is_function = self._functions.pop(number, None) is not None
        for member, known in self._known.items():
            if number in known or not is_function:  # else it is something that tasks have kept
                known.discard(number)
                self._transport.send(member, frame)
        job = self._jobs.get(number)
        if job is not None and not job.is_dropped:
            for start, stop in self._dealer.drop_waiting(number):
                self._give_back([job.pieces.pop(index) for index in range(start, stop)])
            self._dealer.drop_job(number)
            job.is_dropped = True
            self._forget_if_over(number, job)

    def on_recall(self, source: int, frame: Frame) -> None:
        """Give back so many items of a job, or fewer, that no worker has been given; the last ones first."""
        job = self._jobs.get(frame.a)
        if job is not None and not job.is_dropped:
            ranges = self._dealer.drop_waiting(frame.a)
            waiting = [job.pieces.pop(index) for start, stop in ranges for index in range(start, stop)]
            kept, n = len(waiting), 0
            while kept and n < frame.b:
                kept -= 1
                n += waiting[kept].piece.n
            self._add(frame.a, job, waiting[:kept])
            self._give_back(waiting[kept:])
            self._deal()
        self._send_parts(answers=True)

    # From the workers

    def on_batch_done(self, source: int, frame: Frame) -> None:
        """Take what a worker has made of a batch, and give it the next one."""
        report = read_report(frame.body)
        batch = self._dealer.flying.get(frame.a)
        if batch is None or batch.worker != source:
            raise ProtocolError(f"batch {frame.a} is not under way at rank {source}")
        job = self._jobs[batch.job]
        held = [job.pieces[index] for index in range(batch.start, batch.stop)]
        n_items = sum(one.piece.n for one in held)
        if frame.option & ~ReplyOption.LATE <= ReplyOption.APART:
            if not 0 <= frame.b <= n_items:
                raise ProtocolError(f"batch {frame.a} with {frame.b} of {n_items} items done")
            self._on_results(batch, job, held, report, frame)
        elif frame.option == ReplyOption.UNREADABLE and len(held) > 1 and not job.is_dropped:
            self._dealer.on_unsent(batch.number)
        else:
            self._dealer.on_void(batch.number)
            self._end(job, batch.start, batch.stop)
            first = held[0]
            self._note(Part(first.portion, first.piece.offset, 0, n_items, frame.option, 0.0, report.body))
        self._forget_if_over(batch.job, job)
        self._deal()

    def _on_results(self, batch: Batch, job: _Job, held: Sequence[_Held], report: BatchReport, frame: Frame) -> None:
        n_done, first = frame.b, held[0]
        n_pieces = n_begun = 0  # pieces that were begun, and their items
        while n_begun < n_done or (job.is_dropped and n_pieces < len(held)):
            n_begun += held[n_pieces].piece.n
            n_pieces += 1
        size_bytes = len(report.body) + sum(map(len, frame.buffers))
        late, form = bool(frame.option & ReplyOption.LATE), frame.option & ~ReplyOption.LATE
        self._dealer.on_done(batch.number, n_pieces, report.seconds, report.gap_s, size_bytes, late)
        self._end(job, batch.start, batch.start + n_pieces)
        if n_begun == n_done == 1 and form == ReplyOption.VALUE and not frame.buffers:
            self._note_single(batch.job, first, report)
        elif n_begun:
            numbers = first.portion, first.piece.offset, n_done, n_begun - n_done
            self._note(Part(*numbers, form, report.seconds, report.body, frame.buffers))

    # Details

    def _add(self, number: int, job: _Job, held: Sequence[_Held]) -> None:
        """Have pieces dealt; what is not consecutive in one portion does not come into one batch."""
        at = 0
        while at < len(held):
            first = at
            at += 1
            while at < len(held) and _follows(held[at], held[at - 1]):
                at += 1
            job.pieces.update(zip(range(job.n_pieces, job.n_pieces + at - first), held[first:at], strict=True))
            job.n_pieces += at - first
            self._dealer.on_items(number, at - first, apart=True)

    def _end(self, job: _Job, start: int, stop: int) -> None:
        for index in range(start, stop):
            del job.pieces[index]

    def _forget_if_over(self, number: int, job: _Job) -> None:
        if job.is_dropped and not job.pieces:
            self._jobs.pop(number, None)

    def _deal(self) -> None:
        for batch in self._dealer.deal():
            job = self._jobs[batch.job]
            pieces = [job.pieces[index].piece for index in range(batch.start, batch.stop)]
            for number in self._needs(batch.job, job.option):
                self._supply(batch.worker, number)
            option, body, buffers = _pack(job.option, pieces)
            option |= batch.is_long * _LONG | batch.is_fresh * _FRESH
            frame = Frame(Kind.BATCH, batch.number, batch.job, option, body, buffers)
            self._dealer.on_packed(batch.number, len(body) + sum(map(len, buffers)))
            self._transport.send(batch.worker, frame)
        if self._parts or self._singles:
            now = time.monotonic()
            over = not self._dealer.flying or self._parts_bytes > MAX_HELD_BYTES
            self.due = now if over else max(now, self._sent_at + self._pause_s)

    def _needs(self, number: int, option: int) -> list[int]:
        """Return what a worker must have for a batch of a job; tasks may name any function that is not a job's."""
        needs = [self._functions[number].b, number]
        if option & (BatchOption.TASKS | BatchOption.ONE_TASK):
            needs += [
                other
                for other, frame in self._functions.items()
                if other not in self._jobs and frame.option != FunctionOption.INITIALIZER
            ]
        return needs

    def _supply(self, member: int, number: int) -> None:
        known, frame = self._known[member], self._functions.get(number)
        if frame is not None and number not in known:
            known.add(number)
            self._transport.send(member, frame)

    # To rank 0

    def send_parts(self) -> None:
        """Tell rank 0 what there is to tell, if it is time."""
        if time.monotonic() >= self.due:
            self._send_parts(answers=False)

    def _send_parts(self, *, answers: bool) -> None:
        self._transport.send(0, parts_frame(self._parts, list(self._singles.values()), answers))
        self._parts = []
        self._singles = {}
        self._parts_bytes = 0
        self._sent_at = time.monotonic()
        self.due = math.inf

    def _note(self, part: Part) -> None:
        self._parts.append(part)
        self._parts_bytes += part.size_bytes
        self.due = min(self.due, self._sent_at + self._pause_s)

    def _note_single(self, job: int, held: _Held, report: BatchReport) -> None:
        of_job = self._singles.get(job) or Singles(job, 0.0, [], [], [])
        of_job.portions.append(held.portion)
        of_job.offsets.append(held.piece.offset)
        of_job.bodies.append(bytes(report.body))
        self._singles[job] = of_job._replace(seconds=of_job.seconds + report.seconds)
        self._parts_bytes += len(report.body)
        self.due = min(self.due, self._sent_at + self._pause_s)

    def _give_back(self, held: Sequence[_Held]) -> None:
        for one in held:
            self._note(Part(one.portion, one.piece.offset, 0, one.piece.n, BACK, 0.0))


def _follows(one: _Held, other: _Held) -> bool:
    return one.portion == other.portion and one.piece.offset == other.piece.offset + other.piece.n


def _pack(option: int, pieces: Sequence[Piece]) -> tuple[int, Buffer, Sequence[Buffer]]:
    """Return pieces as a batch, as rank 0 packs one."""
    first, is_one = pieces[0], len(pieces) == 1
    if is_one and (option & (BatchOption.ONE_TASK | BatchOption.CHUNKS) or first.n > 1):
        return option, first.body, first.buffers
    buffers = [buffer for piece in pieces for buffer in piece.buffers]
    if not option & BatchOption.ONE_TASK:
        counted = [(piece.body, piece.n, len(piece.buffers)) for piece in pieces]
        return option | BatchOption.PIECES, pickle.dumps(counted, 5), buffers
    if buffers:
        tasks = [(piece.body, len(piece.buffers)) for piece in pieces]
        return BatchOption.TASKS | BatchOption.BUFFERS, pickle.dumps(tasks, 5), buffers
    return BatchOption.TASKS, pickle.dumps([piece.body for piece in pieces], 5), ()
