"""What rank 0 and the controllers of groups say to each other: portions of jobs, and what has become of their parts.

In the middle items and results stay pickled: of a portion it is only known where its pieces begin and end. What there
is much of travels in columns, which rank 0 writes and reads at the speed of C: the pieces of a portion, and results of
single items.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from taskfarm.errors import ProtocolError
from taskfarm.runtime.executor.jobs import Pieces
from taskfarm.runtime.executor.results import ReplyOption
from taskfarm.wire.frames import Buffer, Frame, Kind

__all__ = ["BACK", "Part", "Piece", "Singles", "group_frame", "parts_frame", "portion_frame", "read_group",
           "read_parts", "read_portion"]  # fmt: skip

BACK = 255  # in the place of a `ReplyOption`: nothing was run


class Piece(NamedTuple):
    """Consecutive items that a group does not look into.

    Attributes
    ----------
    offset : int
        Of the first of them in the portion.
    n : int
        How many.
    body, buffers : bytes-like, sequence of bytes-like
        As the job has packed them.
    """

    offset: int
    n: int
    body: Buffer
    buffers: Sequence[Buffer] = ()


class Part(NamedTuple):
    """Consecutive items of a portion, of which there is news.

    Attributes
    ----------
    portion : int
        The portion's number.
    offset : int
        Of the first of them.
    n_done : int
        How many were run.
    n_back : int
        How many behind these were not, and are not in the group's hands any more.
    option : int
        What the body is (`ReplyOption`, or `BACK`).
    seconds : float
        How long those that were run took.
    body, buffers : bytes-like, sequence of bytes-like
        As the worker has packed them.
    """

    portion: int
    offset: int
    n_done: int
    n_back: int
    option: int
    seconds: float
    body: Buffer = b""
    buffers: Sequence[Buffer] = ()

    @property
    def size_bytes(self) -> int:
        """Size of the results."""
        return len(self.body) + sum(map(len, self.buffers))


class Singles(NamedTuple):
    """Results of items of one job that were run one by one, without failures and without raw buffers.

    Attributes
    ----------
    job : int
        The job's number.
    seconds : float
        How long they took.
    portions, offsets : list of int
        The portion of each, and where it is in that.
    bodies : list of bytes
        Their results, each pickled (`ReplyOption.VALUE`).
    """

    job: int
    seconds: float
    portions: list[int]
    offsets: list[int]
    bodies: list[bytes]


def group_frame(n_groups: int, members: Sequence[int]) -> Frame:
    """Return the frame that makes a rank the controller of a group of `members`, one of `n_groups`."""
    return Frame(Kind.GROUP, n_groups, len(members), body=np.array(members, np.int64).tobytes())


def read_group(frame: Frame, rank: int, size: int) -> list[int]:
    """Return the workers that a GROUP frame names to `rank`, none for one of them itself; `ProtocolError` if not so."""
    if len(frame.body) % 8 or frame.a < 1 or frame.b < 1:
        raise ProtocolError(f"a GROUP frame of {frame.b} workers in {len(frame.body)} bytes")
    members: list[int] = np.frombuffer(frame.body, np.int64).tolist()
    if members and (len(set(members)) != frame.b or rank in members or not all(0 < one < size for one in members)):
        raise ProtocolError(f"a group of the ranks {members} for rank {rank}")
    return members


def portion_frame(number: int, job: int, limit: int, pieces: Pieces) -> Frame:
    """Return the frame of a portion, of which up to `limit` workers may run items at the same time."""
    body = pickle.dumps((limit, pieces.size, pieces.n, pieces.bodies, pieces.counts), 5)
    return Frame(Kind.PORTION, number, job, pieces.option, body, pieces.buffers)


def read_portion(frame: Frame) -> tuple[int, list[Piece]]:
    """Return the number of workers that may run a portion, and its pieces; `ProtocolError` if that is none."""
    try:
        limit, size, n, bodies, counts = pickle.loads(frame.body)
        starts = range(0, n, size)
        counted = zip(starts, bodies, counts or [0] * len(bodies), strict=True)
        pieces = [
            Piece(start, min(size, n - start), body, buffers)
            for start, body, buffers in _with_buffers(counted, frame.buffers)
        ]
    except ProtocolError:
        raise
    except Exception as exc:
        raise ProtocolError(f"a portion that cannot be read: {type(exc).__name__}: {exc}") from exc
    if type(limit) is not int or limit < 1 or size < 1 or not pieces or {type(body) for body in bodies} != {bytes}:
        raise ProtocolError("a portion for no workers, or with pieces that are none")
    return limit, pieces


def parts_frame(parts: Sequence[Part], singles: Sequence[Singles], answers: bool) -> Frame:
    """Return the frame that tells of `parts` and `singles`; `answers` if it follows a RECALL."""
    bodies = [(*part[:6], bytes(part.body), len(part.buffers)) for part in parts]
    buffers = [buffer for part in parts for buffer in part.buffers]
    body = pickle.dumps((bodies, [tuple(one) for one in singles]), 5)
    return Frame(Kind.PARTS, option=int(answers), body=body, buffers=buffers)


def read_parts(frame: Frame) -> tuple[list[Part], list[Singles]]:
    """Return what a PARTS frame tells; `ProtocolError` if it is none."""
    try:
        bodies, columns = pickle.loads(frame.body)
        parts = [Part(*fields) for fields in _with_buffers(bodies, frame.buffers)]
        singles = [Singles(*fields) for fields in columns]
        for one in singles:
            _check_singles(one)
    except ProtocolError:
        raise
    except Exception as exc:
        raise ProtocolError(f"a report of a group that cannot be read: {type(exc).__name__}: {exc}") from exc
    for part in parts:
        if list(map(type, part[:-1])) != [int, int, int, int, int, float, bytes] or min(part[:6]) < 0:
            raise ProtocolError("a report of a group with things in it that are none")
        if not part.seconds < math.inf or (part.option > ReplyOption.BROKEN and part.option != BACK):
            raise ProtocolError("a report of a group with numbers that cannot be")
    return parts, singles


def _check_singles(singles: Singles) -> None:
    number, seconds, portions, offsets, bodies = singles
    if type(number) is not int or type(seconds) is not float or not 0.0 <= seconds < math.inf:
        raise ProtocolError("results of a group with numbers that cannot be")
    if set(map(type, portions)) != {int} or set(map(type, offsets)) != {int} or min(offsets) < 0:
        raise ProtocolError("results of a group for no items")
    if set(map(type, bodies)) != {bytes} or not len(bodies) == len(offsets) == len(portions):
        raise ProtocolError("results of a group that are none")


def _with_buffers(parts: Iterable[tuple[Any, ...]], buffers: Sequence[Buffer]) -> Iterator[tuple[Any, ...]]:
    """Yield each of `parts` with its buffers in the place of their number, its last field."""
    first = 0
    for *fields, n in parts:
        if type(n) is not int or not 0 <= n <= len(buffers) - first:
            raise ProtocolError(f"a part with {n} of {len(buffers) - first} buffers")
        yield *fields, buffers[first : first + n]
        first += n
