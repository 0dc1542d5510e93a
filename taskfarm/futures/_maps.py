"""`map`: one function for many items, which are read ahead of the workers, but not far, and leave in batches.

Whoever takes the results also supplies the items: between two batches of results it reads as many items as the dealer
asks for. So an iterable is only read in the caller's own thread, and never held as a whole.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FuturesTimeoutError
from functools import partial
from itertools import islice
from typing import Any

from taskfarm.errors import RankFailure, TaskTimeoutError
from taskfarm.futures._future import broken
from taskfarm.futures._held import Held
from taskfarm.futures._journaled import JournaledMap
from taskfarm.futures._options import TaskOptions
from taskfarm.futures._stock import Stock, StockByItem
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.jobs import Initializer, Parcel, Pieces
from taskfarm.runtime.executor.results import ReplyOption, Results
from taskfarm.runtime.options import BatchOption
from taskfarm.runtime.runner import exception_of, run
from taskfarm.wire.codec import Packed, pack, pack_each

__all__ = ["MapJob"]

READ_S = 1e-3  # reading is interrupted after so long if there are results to hand out
ROOM_PART = 16  # of what should be ahead is read at once, at least: each time takes some 10 us
FEW = 16  # items that are read and sent one by one, before the source is believed to be fast
MAX_HELD_ITEMS = 1 << 20  # results that wait for an earlier one; pointers to small integers: 8 MB
MAX_HELD_BYTES = 1 << 27  # the same in bytes on the wire; as much again may be on its way
MANY = 64  # results of one batch that are not let go one by one, as large ones are: that would take twice as long


class MapJob:
    """One `map`; see `taskfarm.runtime.executor.crew.Job` for the methods that are not described here.

    Parameters
    ----------
    crew : Crew
        Runs it.
    number : int
        The job's number.
    function : Packed
        Applied to the items.
    items : iterable
        Items; a `range` is sent as ranges.
    star : bool
        Whether an item is the function's positional arguments.
    initializer : Initializer or None
        What a worker must have run before.
    unit : int
        Items that stay together.
    buffersize : int or None
        How many items may be read ahead of the results that were taken, None to have it adapted.
    on_broken : callable
        Is told of the error when the executor has become useless.
    options, journal : TaskOptions, JournaledMap or None
        How long an item may take, and how often it is tried; where results are kept.
    """

    def __init__(
        self,
        crew: Crew,
        number: int,
        function: Packed,
        items: Iterable[Any],
        *,
        star: bool,
        initializer: Initializer | None,
        unit: int,
        buffersize: int | None,
        on_broken: Callable[[BaseException], None],
        options: TaskOptions,
        journal: JournaledMap | None = None,
    ) -> None:
        self.number = number
        self.function: Packed | None = function
        self.initializer = initializer
        self.unit = unit
        self._crew = crew
        self._option = (BatchOption.STAR if star else 0) | (BatchOption.CHUNKS if unit > 1 else 0)
        self._range = items if type(items) is range else None
        self._iterator: Iterator[Any] | None = None if self._range is not None else iter(items)
        self._buffersize = buffersize
        self._tell_broken = on_broken
        self._options, self._journal, self.retries = options, journal, options.retries
        self._reading = threading.Lock()
        self._read_all = False
        self._step = 1  # items to be read at once: more if reading has proved to be fast
        self._n_read = 0
        self._n_added = 0  # the crew knows of them: it may take a while
        self._n_taken = 0
        self._n_consumed = 0
        self._stock = (StockByItem if crew.has_groups else Stock)(self._range)
        self._held = Held()
        self._error: BaseException | None = None  # of the executor
        self._failure: BaseException | None = None  # of the item whose turn it is
        self._source_error: Exception | None = None
        self.on_arrival: Callable[[], None] | None = None
        self._consumer: weakref.ref[Any] | None = None
        self.shared: Sequence[object] = ()  # handles of shared data that the function holds
        self.is_over = False

    # Reading ahead, in the thread that takes the results

    def read_ahead(self, *, all_of_it: bool = False) -> None:
        """Read as many items as the dealer would like to have, less if results are there and reading takes time."""
        if not self._reading.acquire(False):
            return
        try:
            reading_s = 0.0  # without what the crew does meanwhile
            while not self._read_all and not self.is_over:
                room = self._room(all_of_it)
                if room <= 0 or (reading_s > READ_S and self._held.n and self._buffersize is None):
                    return
                began = self._crew.clock()
                part = self._read(self._piece(room))
                seconds = self._crew.clock() - began
                reading_s += seconds
                if self._n_read >= FEW:
                    self._adapt_step(seconds, room)
                if len(part):
                    self._crew.post(partial(self._add, part))
        finally:
            self._reading.release()

    def _adapt_step(self, seconds: float, room: int) -> None:
        """Have more or fewer items read at once; one long time may be that of another thread."""
        self._step = min(4 * self._step, room) if seconds < READ_S / 2 else max(self._step // 4, 1)

    def _piece(self, room: int) -> int:
        """Return how many items to read at once: whole chunks, as far as that is allowed."""
        n = max(min(self._step, room) // self.unit, 1) * self.unit
        return n if self._buffersize is None else min(n, room)

    def _room(self, all_of_it: bool) -> int:
        if self._buffersize is not None:
            return self._buffersize - (self._n_read - self._n_consumed)
        if not all_of_it and (self._held.n > MAX_HELD_ITEMS or self._held.size_bytes > MAX_HELD_BYTES):
            return 0
        if self.is_over:
            return 0
        dealer = self._crew.dealer
        ahead = dealer.look_ahead(self.number)
        room = ahead - dealer.n_waiting(self.number) - (self._n_read - self._n_added)
        return room if room * ROOM_PART > ahead else 0

    def _read(self, n: int) -> Sequence[Any]:
        if self._range is not None:
            part: Sequence[Any] = self._range[self._n_read : self._n_read + n]
        else:
            part = self._read_items(n)
        self._n_read += len(part)
        if len(part) < n:
            self._read_all = True
            self._iterator = None
        return part

    def _read_items(self, n: int) -> list[Any]:
        """Return up to `n` items; those before an error are not lost, and the error has its turn behind them."""
        items: list[Any] = []
        error = run(items.extend, (islice(self._iterator or (), n),)).exception
        if error is not None and not isinstance(error, Exception):
            raise error
        self._source_error = error
        return items

    def _add(self, part: Sequence[Any]) -> None:
        self._n_added += len(part)
        self._stock.add(part)
        self._crew.add_items(self, len(part))

    # Handing out

    def results(self, deadline: float) -> Iterator[Any]:
        """Yield the results in the order of the items."""
        return self._watched(self._results(deadline, self.in_order))

    def results_as_they_come(self, deadline: float) -> Iterator[Any]:
        """Yield the results in the order in which they arrive."""
        return self._watched(self._results(deadline, self.as_they_come))

    def _watched(self, results: Iterator[Any]) -> Iterator[Any]:
        self._consumer = weakref.ref(results)
        return results

    def _results(self, deadline: float, next_start: Callable[[], int]) -> Iterator[Any]:
        try:
            while True:
                results = self.take_results(next_start)
                if results is None:
                    if self.has_ended():
                        return
                    self._await(deadline, next_start)
                    continue
                n = len(results)
                if n > MANY:
                    yield from results
                else:
                    results.reverse()
                    while results:
                        yield results.pop()
                del results
                self.on_consumed(n)
        finally:
            self.end()

    def take_results(self, next_start: Callable[[], int]) -> list[Any] | None:
        """Return the next results that are here, None if there are none; raise the failure whose turn it is."""
        if self._failure is not None:
            raise self._failure
        held = self._take(next_start())
        if held is None:
            if self._error is not None:
                raise self._error
            self.read_ahead()
            return None
        results, failures = held.read("map")
        if failures:
            first = min(failures)
            self._failure = failures[first]
            del results[first:]
        return results

    def on_consumed(self, n: int) -> None:
        """Note that `n` results were handed out."""
        self._n_consumed += n
        self.read_ahead()

    def has_ended(self) -> bool:
        """Tell whether all items were read, and all results taken; raise what ended the reading if it was an error."""
        if not self._is_exhausted:
            return False
        if self._source_error is not None:
            raise self._source_error
        return True

    @property
    def _is_exhausted(self) -> bool:
        return self._read_all and self._n_taken == self._n_read

    def in_order(self) -> int:
        """Return where the next results in the order of the items start."""
        return self._n_taken

    def as_they_come(self) -> int:
        """Return where results that are here start, -1 if there are none."""
        return self._held.first

    def _take(self, start: int) -> Results | None:
        held = self._held.take(start)
        if held is not None:
            self._n_taken += held.n
        return held

    def _await(self, deadline: float, next_start: Callable[[], int]) -> None:
        """Wait until results are there, the job has ended, or items should be read."""

        def is_time() -> bool:
            if self._error is not None or next_start() in self._held:
                return True
            if self._read_all:
                return self._is_exhausted
            return self._room(False) > 0

        if not self._crew.wait(is_time, deadline):
            if self._crew.closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            raise FuturesTimeoutError

    def drain(self, deadline: float) -> None:
        """Have all items run that may be read; keep the results for whoever takes them later."""

        def is_time() -> bool:
            return self.has_all_results or (not self._read_all and self._room(True) > 0)

        while not self.has_all_results:
            self.read_ahead(all_of_it=True)
            if not self._crew.wait(is_time, deadline):
                return

    @property
    def has_all_results(self) -> bool:
        """Whether nothing is left to be run, as far as items may be read."""
        if self.is_over or self._error is not None:
            return True
        full = self._buffersize is not None and self._room(True) <= 0
        return (self._read_all or full) and self._n_read == self._n_taken + self._held.n

    def end(self) -> None:
        """Drop what was not run; nobody wants the results any more. May be repeated."""
        if not (self.is_over or self._crew.home.is_left):
            self.is_over = True
            self._iterator = None
            self._crew.post(self._end)

    def cancel(self) -> None:
        """Drop what was not run; whoever takes the results gets those that are here, then `CancelledError`."""
        self._crew.post(self._cancel)

    def _cancel(self) -> None:
        if not self.has_all_results:
            self.is_over = True
            self._iterator = None
            self._error = CancelledError()
            self._crew.end_job(self)
            self._stock.clear()
            self._tell_arrival()

    def _end(self) -> None:
        self._crew.end_job(self)
        self._stock.clear()
        self._held.clear()

    # What the crew calls

    def pack(self, start: int, stop: int) -> Parcel:
        items = self._stock.deal(start, stop)
        packed = pack((items, self.unit) if self.unit > 1 else items)
        return Parcel(packed.body, packed.buffers, self._option, limits=self._options.limits)

    def pack_pieces(self, start: int, stop: int, size: int) -> Pieces:
        items, n = self._stock.deal(start, stop), stop - start
        parts: Sequence[Any] = items
        if self.unit > 1:
            parts = [(items[at : at + size], self.unit) for at in range(0, n, size)]
        elif size > 1:
            parts = [items[at : at + size] if n - at > 1 else items[at] for at in range(0, n, size)]
        return Pieces(size, n, self._option, *pack_each(parts))

    def on_results(self, start: int, results: Results) -> None:
        self._stock.on_done(start, results.n)
        if not results.n:
            return
        if (journal := self._journal) is not None:
            self._crew.deliver_later(lambda: journal.on_results(start, results))
        self._hold(start, results)

    def on_singles(self, items: Sequence[int], bodies: Sequence[bytes]) -> None:
        if self._journal is not None or self._is_dropped():
            for item, body in zip(items, bodies, strict=True):
                self.on_results(item, Results(1, body, (), ReplyOption.VALUE))
            return
        self._stock.on_all_done(items)
        self._held.add_singles(items, bodies)
        self._tell_arrival()

    def on_returned(self, start: int, stop: int) -> None:
        self._stock.on_returned(start, stop)

    def on_item_failed(self, start: int, stop: int, failure: RankFailure | BaseException) -> None:
        self._stock.on_failed(start)
        self._hold(start, Results(stop - start, b"", error=exception_of(failure, "map")))

    def retries_late(self, item: int) -> bool:
        return TaskTimeoutError in self._options.retry_on

    def on_broken(self, failure: RankFailure | BaseException) -> None:
        error = broken(
            failure, "the initializer failed" if isinstance(failure, RankFailure) else "the workers are gone"
        )
        self._error = error
        self._tell_arrival()
        self._crew.end_job(self)
        self._crew.deliver_later(lambda: self._tell_broken(error))

    def _hold(self, start: int, held: Results) -> None:
        if self.is_over:
            return
        if self._is_dropped():
            self._n_taken += held.n
            if self._read_all and self._n_taken == self._n_read:
                self._crew.end_job(self)
                self.is_over = True
            return
        self._held.add(start, held)
        self._tell_arrival()

    def _is_dropped(self) -> bool:
        """Tell whether nobody wants the results: their iterator went before its first value, or the job has ended."""
        return self.is_over or (self._consumer is not None and self._consumer() is None)

    def _tell_arrival(self) -> None:
        if self.on_arrival is not None:
            self._crew.deliver_later(self.on_arrival)
