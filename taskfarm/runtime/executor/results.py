"""Results of a batch on their way to rank 0: pickled together where that is safe, else each by itself.

Together is three times faster. But what does not unpickle on rank 0 (a class that cannot be imported there, a
``__setstate__`` that raises) must fail its own task only, and in a common pickle nothing behind it could be read. So
results whose pickles name anything that is not numpy's or built in travel apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from taskfarm.runtime.runner import decode_failure, exception_of, run
from taskfarm.wire.codec import PLAIN_TYPES, Packed, pack, unpack
from taskfarm.wire.frames import Buffer

__all__ = ["ReplyOption", "Results", "Singles", "pack_results"]

_NAMES_SOMETHING = b"\x93"  # STACK_GLOBAL: a pickle without it holds nothing but built-in containers and values
_SAFE_TYPES = PLAIN_TYPES | {np.ndarray, np.float64, np.float32, np.int64, np.int32, np.bool_}
_CONTAINERS = frozenset({tuple, list})
_MAX_DEPTH = 3


class ReplyOption:
    """What a BATCH_DONE frame carries; plain integers."""

    VALUE = 0  #: the result of a single item
    RESULTS = 1  #: (results, failures by position)
    APART = 2  #: the same, but each result in a pickle of its own, with the number of its buffers
    UNREADABLE = 3  #: the failure that unpacking the batch, or its function, raised
    BROKEN = 4  #: the failure of the initializer
    LOST = 5  #: the task child died: position of the item that was being run, cause (`LossCause`), what happened
    LATE = 8  #: added to one of the first three: the worker gives back all batches until a fresh one


def pack_results(
    results: list[Any], failures: dict[int, bytes], encode: Callable[[BaseException], bytes]
) -> tuple[int, Packed]:
    """Return how the results travel (`ReplyOption`), and what travels.

    Parameters
    ----------
    results : list
        One for each item; None in the place of a failure.
    failures : dict of int to bytes
        By position; a result that does not pickle becomes one of them.
    encode : callable
        Turns an exception into a failure.
    """
    is_one = len(results) == 1 and not failures
    together = run(pack, (results[0] if is_one else (results, failures),)).value  # None: any __reduce__ may raise
    if is_one and together is not None:
        return ReplyOption.VALUE, together
    if together is not None and not _may_fail_there(results, together.body):
        return ReplyOption.RESULTS, together
    parts: list[tuple[bytes, int]] = []
    buffers: list[Buffer] = []
    for index, value in enumerate(results):
        alone = run(pack, (value,))
        if alone.exception is not None:
            failures[index] = encode(alone.exception)
            alone = run(pack, (None,))
        parts.append((alone.value.body, len(alone.value.buffers)))
        buffers += alone.value.buffers
    return ReplyOption.APART, Packed(pack((parts, failures)).body, buffers)  # type: ignore[arg-type]


def _may_fail_there(results: Sequence[Any], body: bytes) -> bool:
    """Tell whether a pickle may hold anything that rank 0 cannot read; two levels of tuples and lists are looked at."""
    if body.find(_NAMES_SOMETHING) < 0:
        return False
    values: Sequence[Any] = results
    for _ in range(_MAX_DEPTH):
        kinds = set(map(type, values))
        if not kinds <= _SAFE_TYPES | _CONTAINERS:
            return True
        if np.ndarray in kinds and any(type(value) is np.ndarray and value.dtype.hasobject for value in values):
            return True
        if not kinds & _CONTAINERS:
            return False
        values = list(chain.from_iterable(value for value in values if type(value) in _CONTAINERS))
    return True


class Results:
    """Results of consecutive items, as they came; or the exception of one item.

    Parameters
    ----------
    n : int
        How many items.
    body, buffers : bytes-like, sequence of bytes-like
        What `pack_results` made.
    form : int
        How they were packed (`ReplyOption`).
    error : BaseException, optional
        Of an item that could not be run; there are no results then.
    """

    __slots__ = ("body", "buffers", "error", "form", "n")

    def __init__(
        self,
        n: int,
        body: Buffer,
        buffers: Sequence[Buffer] = (),
        form: int = ReplyOption.RESULTS,
        error: BaseException | None = None,
    ) -> None:
        self.n = n
        self.body = body
        self.buffers = buffers
        self.form = form
        self.error = error

    @property
    def size_bytes(self) -> int:
        """Size of the results on the wire."""
        return len(self.body) + sum(map(len, self.buffers))

    def read(self, what: str) -> tuple[list[Any], dict[int, BaseException]]:
        """Return the results, and the exceptions among them by position.

        Parameters
        ----------
        what : str
            What was run, for messages.
        """
        if self.error is not None:
            return [None] * self.n, dict.fromkeys(range(self.n), self.error)
        loaded = run(unpack, (self.body, self.buffers))
        if loaded.exception is not None:  # one result: `pack_results` keeps others apart if they may not be readable
            return [None] * self.n, dict.fromkeys(range(self.n), loaded.exception)
        if self.form == ReplyOption.VALUE:
            return [loaded.value], {}
        results, encoded = loaded.value
        failures: dict[int, BaseException] = {}
        if self.form == ReplyOption.APART:
            results = self._read_apart(results, failures)
        for index, failure in encoded.items():
            failures[index] = exception_of(decode_failure(failure), what)
        return results, failures

    def _read_apart(self, parts: Iterable[tuple[bytes, int]], failures: dict[int, BaseException]) -> list[Any]:
        results: list[Any] = []
        first = 0
        for body, n_buffers in parts:
            loaded = run(unpack, (body, self.buffers[first : first + n_buffers]))
            first += n_buffers
            if loaded.exception is not None:
                failures[len(results)] = loaded.exception
            results.append(loaded.value)
        return results


class Singles(Results):
    """Results of consecutive items, each in a pickle of its own.

    Parameters
    ----------
    bodies : sequence of bytes
        What `pack_results` made of each of them (`ReplyOption.VALUE`).
    """

    __slots__ = ("_bodies",)

    def __init__(self, bodies: Sequence[bytes]) -> None:
        super().__init__(len(bodies), b"")
        self._bodies = bodies

    @property
    def size_bytes(self) -> int:
        """Size of the results on the wire."""
        return sum(map(len, self._bodies))

    def read(self, what: str) -> tuple[list[Any], dict[int, BaseException]]:
        """Return the results, and the exceptions of those that are not readable here, by position."""
        loaded = run(list, (map(unpack, self._bodies),))
        if loaded.exception is None:
            return loaded.value, {}
        one_by_one = [run(unpack, (body,)) for body in self._bodies]
        failures = {at: one.exception for at, one in enumerate(one_by_one) if one.exception is not None}
        return [one.value for one in one_by_one], failures
