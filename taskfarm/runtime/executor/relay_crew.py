"""Rank 0's side of the executor where it feeds groups of workers, each by a controller of its own (`relay`).

What differs from a `Crew` is what leaves and what comes back: portions, made of pieces that are packed together, and
news of their parts, many in one message. So what rank 0 does for an item is a loop in C, or done for many at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from taskfarm.errors import ProtocolError
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.dispatch import Clock
from taskfarm.runtime.executor.jobs import Job, Pieces, Supplies
from taskfarm.runtime.executor.portions import BACK, Part, Singles, group_frame, portion_frame, read_parts
from taskfarm.runtime.executor.results import ReplyOption, Results
from taskfarm.runtime.runner import decode_failure, run
from taskfarm.scheduling.allotting import Allotter
from taskfarm.scheduling.dealing import Batch
from taskfarm.wire.frames import Frame, Kind

__all__ = ["RelayCrew"]


class RelayCrew(Crew):
    """The workers, in groups, and what is under way to them.

    Parameters
    ----------
    controller : Controller
        Has the transport to all ranks.
    groups : mapping of int to sequence of int
        Rank of each group's controller, and the ranks of its workers.
    clock : callable, optional
        Returns the time in seconds.
    """

    has_groups = True
    dealer: Allotter  # type: ignore[assignment]  # portions for groups instead of batches for workers

    def __init__(
        self, controller: Controller, groups: Mapping[int, Sequence[int]], clock: Clock = time.monotonic
    ) -> None:
        super().__init__(controller, [member for members in groups.values() for member in members], clock)
        self._groups = groups
        self.dealer = Allotter({relay: len(members) for relay, members in groups.items()})
        self.supplies = Supplies(groups)
        controller.add_handler(Kind.PARTS, self._on_parts)
        for relay, members in groups.items():
            self.transport.send(relay, group_frame(len(groups), members))

    def post_now(self, request: Callable[[], object], afterwards: Callable[[], None]) -> bool:
        """Return False: what a group gives back is packed anew, so jobs must own what they pack."""
        return False

    @property
    def busy_workers(self) -> set[int]:
        """As many workers of each group as have something to do: rank 0 does not know which ones; from any thread."""
        busy: set[int] = set()
        for relay, members in self._groups.items():
            busy.update(islice(members, self.dealer.n_busy_in(relay)))
        return busy

    @property
    def n_in_hand(self) -> int:
        """Number of items that groups have; from any thread."""
        return self.dealer.n_in_hand

    # To the groups

    def send_batches(self) -> None:
        """Send what should be under way now."""
        if not self.controller.caller.book.is_settled:  # items must not overtake a call
            self.desk.place(self.clock())
        for portion in self.dealer.deal():
            job = self._jobs[portion.job]
            n_items = portion.stop - portion.start
            size = 1 if job.function is None else self.dealer.piece_size(portion.job)
            packed = run(job.pack_pieces, (portion.start, portion.stop, min(size, n_items)))
            if packed.exception is not None:
                self._on_unpacked(portion, job, packed.exception)
            elif packed.value is None:
                self.dealer.on_void(portion.number, n_items)
            else:
                self._send_portion(portion, job, packed.value)

    def _on_unpacked(self, portion: Batch, job: Job, exc: BaseException) -> None:
        """Have items that cannot be packed together dealt one by one; what cannot be packed alone has failed."""
        start, stop = portion.start, portion.stop
        job.on_returned(start, stop)
        if stop - start > 1:
            self.dealer.on_back(portion.number, start, stop, apart=True)
        else:
            self.dealer.on_void(portion.number, 1)
            job.on_item_failed(start, stop, exc)

    def _send_portion(self, portion: Batch, job: Job, pieces: Pieces) -> None:
        relay, send = portion.worker, self.transport.send
        for missing in self.supplies.missing(relay, job, pieces.needs):
            send(relay, missing)
        frame = portion_frame(portion.number, job.number, self.dealer.n_allowed(portion), pieces)
        self.dealer.on_packed(portion.number, len(frame.body) + sum(map(len, frame.buffers)))
        send(relay, frame)

    # From the groups

    def _on_batch_done(self, source: int, frame: Frame) -> None:
        raise ProtocolError(f"batch {frame.a} of rank {source}: its group's controller has dealt it")

    def _on_parts(self, source: int, frame: Frame) -> None:
        parts, singles = read_parts(frame)
        # Before anything is taken in: a report of which a part is wrong is not taken in at all.
        found = [self._find(source, part.portion, part.offset + part.n_done + part.n_back) for part in parts]
        items = [self._items_of(source, one) for one in singles]
        for one, of_one in zip(singles, items, strict=True):
            n_done, size_bytes = Counter(one.portions), sum(map(len, one.bodies))
            self._on_done(one.job, n_done, one.seconds, size_bytes)
            if (job := self._jobs.get(one.job)) is not None:
                job.on_singles(of_one, one.bodies)
        for portion, part in zip(found, parts, strict=True):
            self._on_part(portion, part)
        if frame.option:
            self.dealer.on_recalled(source)
        asked = self.dealer.recall()
        if asked is not None:
            relay, number, n = asked
            self.transport.send(relay, Frame(Kind.RECALL, number, n))

    def _find(self, source: int, number: int, stop: int = 0) -> Batch:
        """Return a portion that `source` has, of which there is news of items before `stop`."""
        portion = self.dealer.flying.get(number)
        if portion is None or portion.worker != source:
            raise ProtocolError(f"portion {number} is not under way at rank {source}")
        if stop > portion.stop - portion.start:
            raise ProtocolError(f"portion {number} has {portion.stop - portion.start} items, and not {stop}")
        return portion

    def _items_of(self, source: int, singles: Singles) -> list[int]:
        """Return which items of their job these are."""
        spans: dict[int, tuple[int, int]] = {}
        for number in set(singles.portions):
            portion = self._find(source, number)
            if portion.job != singles.job:
                raise ProtocolError(f"portion {number} is of job {portion.job}, and not {singles.job}")
            spans[number] = portion.start, portion.stop
        items: list[int] = []
        for number, offset in zip(singles.portions, singles.offsets, strict=True):
            start, stop = spans[number]
            items.append(start + offset)
            if start + offset >= stop:
                raise ProtocolError(f"portion {number} has {stop - start} items, and none at {offset}")
        return items

    def _on_done(self, job: int, n_done: Mapping[int, int], seconds: float, size_bytes: int) -> None:
        """Note that items of a job were run, so many of each portion."""
        self.n_done += sum(n_done.values())
        self.dealer.on_parts(job, n_done, seconds, size_bytes)

    def _on_part(self, portion: Batch, part: Part) -> None:
        job = self._jobs.get(portion.job)
        start = portion.start + part.offset
        middle, stop = start + part.n_done, start + part.n_done + part.n_back
        if part.option <= ReplyOption.APART:
            self._on_done(portion.job, {portion.number: part.n_done}, part.seconds, part.size_bytes)
            if job is not None and part.n_done:
                job.on_results(start, Results(part.n_done, part.body, part.buffers, part.option))
            self._take_back(portion, job, middle, stop, apart=False)
        elif part.option == BACK or (part.option == ReplyOption.UNREADABLE and part.n_back > 1):
            self._take_back(portion, job, start, stop, apart=part.option != BACK)
        else:
            self._on_failed(portion, part, job, start)

    def _take_back(self, portion: Batch, job: Job | None, start: int, stop: int, *, apart: bool) -> None:
        if start < stop:
            self.dealer.on_back(portion.number, start, stop, apart=apart)
            if job is not None:
                job.on_returned(start, stop)

    def _on_failed(self, portion: Batch, part: Part, job: Job | None, start: int) -> None:
        failure = decode_failure(part.body)
        self.dealer.on_void(portion.number, part.n_back)
        if job is not None and part.option == ReplyOption.UNREADABLE:
            job.on_item_failed(start, start + part.n_back, failure)
        elif job is not None:
            job.on_broken(failure)
