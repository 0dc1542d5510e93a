"""What a crew runs: jobs, and the parcels that their items leave in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from taskfarm.errors import RankFailure
from taskfarm.runtime.executor.functions import KnownFunction
from taskfarm.runtime.executor.results import Results
from taskfarm.runtime.options import FunctionOption
from taskfarm.wire.codec import Packed
from taskfarm.wire.frames import Buffer, Frame, Kind

__all__ = ["Initializer", "Job", "Parcel", "Pieces", "Supplied", "Supplies"]


class Parcel:
    """The content of a batch.

    Attributes
    ----------
    body, buffers : bytes-like, sequence of bytes-like
        The items, pickled, and their raw buffers.
    option : int
        How they are packed (`BatchOption`).
    needs : iterable of KnownFunction
        Functions that the items name.
    borrows : bool
        Whether the memory of the buffers will change when the request at hand has been handled.
    limits : sequence of float
        Seconds that each item may take, or all of them if there is one number; empty for no limit.
    """

    __slots__ = ("body", "borrows", "buffers", "limits", "needs", "option")

    def __init__(
        self,
        body: Buffer,
        buffers: Sequence[Buffer],
        option: int,
        needs: Iterable[KnownFunction] = (),
        borrows: bool = False,
        limits: Sequence[float] = (),
    ) -> None:
        self.body = body
        self.buffers = buffers
        self.option = option
        self.needs = needs
        self.borrows = borrows
        self.limits = limits

    @property
    def size_bytes(self) -> int:
        """Size of the batch on the wire."""
        return len(self.body) + sum(map(len, self.buffers))


class Pieces(NamedTuple):
    """The content of a portion for a group of workers: pieces that are not opened on the way.

    Attributes
    ----------
    size : int
        Items of a piece; the last one may have fewer.
    n : int
        Items of all.
    option : int
        How they are packed (`BatchOption`). A piece of one item of a map without chunks is that item's pickle.
    bodies, counts, buffers : sequence of bytes, of int, of bytes-like
        A pickle for each piece, how many raw buffers it has (empty if none has any), and these.
    needs : sequence of KnownFunction
        Functions that the items name.
    """

    size: int
    n: int
    option: int
    bodies: Sequence[bytes]
    counts: Sequence[int] = ()
    buffers: Sequence[Buffer] = ()
    needs: Sequence[KnownFunction] = ()


class Supplied(Protocol):
    """Work that needs a function, and an initializer to be run before; see `Job`."""

    @property
    def number(self) -> int:
        """Number of the work."""

    @property
    def function(self) -> Packed | None:
        """Function that a worker must have."""

    @property
    def initializer(self) -> Initializer | None:
        """What a worker must have run before."""


class Job(Protocol):
    """What a crew runs. All methods are called with the crew's lock held, and must not wait or run user code.

    Attributes
    ----------
    number : int
        Its number, from `Crew.new_number`.
    function : Packed or None
        What a worker must have before the first batch; None if the items bring their functions along.
    initializer : Initializer or None
        What a worker must have run before.
    retries : int
        How often an item is tried again whose attempt was lost with its process.
    """

    number: int
    retries: int
    function: Packed | None
    initializer: Initializer | None

    def pack(self, start: int, stop: int) -> Parcel | None:
        """Return items as a batch, None if there is nothing left to do about them. May raise what pickling raises."""

    def pack_pieces(self, start: int, stop: int, size: int) -> Pieces | None:
        """Return items in pieces of `size`, for a group of workers; else as `pack`."""

    def on_singles(self, items: Sequence[int], bodies: Sequence[bytes]) -> None:
        """Take results of items that were run one by one, each pickled."""

    def on_results(self, start: int, results: Results) -> None:
        """Take the results of the items from `start` on; none, if a worker gives all of a batch back."""

    def on_returned(self, start: int, stop: int) -> None:
        """Note that the items of a batch come back to be packed again, one by one."""

    def on_item_failed(self, start: int, stop: int, failure: RankFailure | BaseException) -> None:
        """Note that items could not be packed, or not be unpacked by the worker."""

    def retries_late(self, item: int) -> bool:
        """Tell whether an item that was killed because its time was over may be tried again."""

    def on_broken(self, failure: RankFailure | BaseException) -> None:
        """Note that nothing of this job can be run any more; items that are dealt will not come back."""


class Initializer:
    """A function to be run once per worker, before the first item of any job that names it.

    Parameters
    ----------
    number : int
        Its number.
    packed : Packed
        The call.
    needs : object
        Whatever must not go while a worker may still have to run it: handles of shared data.
    """

    def __init__(self, number: int, packed: Packed, needs: object = None) -> None:
        self.number = number
        self.packed = packed
        self._needs = needs


class Supplies:
    """What each worker has been sent beside batches: functions and initializers, by number.

    Parameters
    ----------
    workers : iterable of int
        Their ranks.
    """

    def __init__(self, workers: Iterable[int]) -> None:
        self._known: dict[int, set[int]] = {worker: set() for worker in workers}

    def missing(self, worker: int, job: Supplied, needs: Iterable[KnownFunction]) -> Iterator[Frame]:
        """Yield what `worker` must be sent before work of `job` that names `needs`; it counts as sent."""
        known = self._known[worker]
        if job.number not in known:
            first = job.initializer
            if first is not None and first.number not in known:
                known.add(first.number)
                yield Frame(Kind.FUNCTION, first.number, 0, FunctionOption.INITIALIZER, *first.packed)
            known.add(job.number)
            function = job.function or Packed(b"", [])
            yield Frame(Kind.FUNCTION, job.number, 0 if first is None else first.number, 0, *function)
        for need in needs:
            if need.number not in known:
                known.add(need.number)
                yield Frame(Kind.FUNCTION, need.number, 0, 0, need.packed.body)

    def note_all(self, number: int) -> None:
        """Note that any worker may have what has this number."""
        for known in self._known.values():
            known.add(number)

    def lose(self, worker: int) -> None:
        """Forget a worker that died."""
        self._known.pop(worker, None)

    def forget(self, number: int) -> Iterator[int]:
        """Yield the workers that have what has this number; it counts as taken back."""
        for worker, known in self._known.items():
            if number in known:
                known.discard(number)
                yield worker
