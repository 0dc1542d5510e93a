"""Frames: what two ranks say to each other, and its form in bytes.

A frame is a fixed head, a pickled body and raw buffers. On the wire it is one *control* message (head, sizes if there
is bulk, and the body if it is small) followed by one *bulk* message per raw buffer. A small frame is thus one MPI
message, and an array leaves from its own memory::

    control: | head | size of the body | size of buffer 0 | ... | body (if inline) |
    bulk:    | body (if not inline) |  | buffer 0 |  | buffer 1 | ...

`encode` and `parse_head` are exact inverses; whatever bytes arrive, `parse_head` returns a `Head` or raises
`ProtocolError`. Transports also send each other signals, control messages that are no frames: one of them says that a
control message which is too long for the receiver's posted memory comes as a bulk message instead.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from taskfarm.errors import ProtocolError
from taskfarm.fast import new_tuple

__all__ = [
    "INLINE_BODY_MAX_BYTES",
    "TREE_KINDS",
    "Buffer",
    "Frame",
    "Head",
    "Kind",
    "encode",
    "encode_signal",
    "parse_head",
    "parse_signal",
    "parse_whole",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

MAGIC = 0xF5
INLINE_BODY_MAX_BYTES = 64 * 1024  # up to here one copy is cheaper than a second MPI message (benchmarks/wire.py)
_MAX_BUFFERS = 1 << 20  # more buffers in one frame than anybody sends; bounds what a bad head can make us allocate
_MAX_BULK_BYTES = 1 << 40  # one buffer: more than any host's memory

# Forms of a control message.
_WHOLE = 0  # head and body
_BODY_INLINE = 1  # head, table of sizes, body; buffers in bulk
_BODY_IN_BULK = 2  # head, table of sizes; body and buffers in bulk
_SIGNAL = 3  # head only; not a frame


class Kind(IntEnum):
    """What a frame means; `a` and `b` of the frame are named in brackets."""

    SPAWN = 1  #: run a task; `option` is how much of the result is wanted [task number, attempt]
    DONE = 2  #: a task ended; `option` says how [task number, attempt]
    MESSAGE = 3  #: from task to task [number of the sender, number of the receiver]
    CALL = 4  #: run a function on every rank; `option` says what rank 0 wants to know [call number, object counter]
    CALL_FAILED = 5  #: a rank's function raised [call number, object counter]
    CALL_VALUE = 6  #: a rank's return value [call number, -]
    CALLS_DONE = 7  #: all calls up to this one ended here [call number, -]
    SYNC = 8  #: answer with CALLS_DONE [-, -]
    REMOVE = 9  #: forget managed objects; the body is an array of int64 [-, -]
    RENEW_COMM = 10  #: replace the user's communicator by a fresh duplicate [-, -]
    QUERY = 11  #: answer with STATUS, also from within a task [round, -]
    STATUS = 12  #: what a rank waits for and how many messages it has sent and received [round, -]
    DEBUG = 13  #: set the debug level of the worker [level, -]
    LOG = 14  #: debug text for rank 0 [-, -]
    QUIT = 15  #: end the session [whether a rank has died, -]
    BYE = 16  #: a worker has left its loop [-, -]
    ARRAY = 17  #: `option` says: an array is offered, or not any more [number of the sender, number of the receiver]
    FUNCTION = 18  #: what the batches of a job run; `option` says if it is an initializer [job number, -]
    BATCH = 19  #: items of a job, to be run one by one; `option` says how they are packed [batch number, job number]
    BATCH_DONE = 20  #: what the items of a batch gave [batch number, number of items that were run]
    FORGET = 21  #: a job has ended, its function is no longer needed [job number, -]
    TEAM_TASK = 22  #: run a task together with other ranks; `option` says whose results are wanted [run number, team]
    TEAM_DONE = 23  #: this rank's part has ended; `option` says how [run number, messages sent less received]
    TEAM_STOP = 24  #: another rank of the task has failed [run number, -]
    TEAM_FORGET = 25  #: `option` says what to do with a team's communicator, or an object [team or object, see there]
    SHARE = 26  #: a block of shared memory, or a part of it; `option` says which [block number, size or offset]
    SHARED = 27  #: a rank has the whole block, or the body says why not [block number, -]
    LOST = 28  #: a rank has died; the body says how. On rank 0 the transport makes it itself [rank, -]
    LIMIT = 29  #: how long items of the batch that comes next may take; the body is float64, seconds [batch number, -]
    CANCEL = 30  #: end the process that runs an item [batch number, position of the item in it]
    TRACE = 31  #: `option` says: what time is it, or hand in what was recorded [question number, ns of the clock]
    GROUP = 32  #: to the controller of a group: the body lists its workers; to these: no body [number of groups, size]
    PORTION = 33  #: items of a job for a group, in pieces; `option` is that of batches [portion number, job number]
    PARTS = 34  #: what has become of parts of portions; `option` says if it answers a RECALL [-, -]
    RECALL = 35  #: give back items that nobody has begun, and answer with PARTS [job number, number of items]
    TEAM_MEET = 36  #: the ranks of a task meet before they make their communicator [run number, what is said]


# Frames that every worker passes on to its children in the tree before it acts on them.
TREE_KINDS = frozenset({Kind.CALL, Kind.SYNC, Kind.REMOVE, Kind.RENEW_COMM})


class Frame(NamedTuple):
    """One message between two ranks.

    A named tuple and not a frozen dataclass, because one is made per message and it is three times cheaper.

    Attributes
    ----------
    kind : Kind
        What the frame means.
    a, b : int
        Two numbers whose meaning depends on `kind`; signed 64 bit.
    option : int
        Flags whose meaning depends on `kind`; 0..255.
    body : bytes-like
        Pickled content.
    buffers : sequence of memoryview
        Raw buffers that the body refers to, each one-dimensional bytes. A sent frame borrows the memory until the
        send is complete; in a received one the receiver owns it and may write to it.
    """

    kind: Kind
    a: int = 0
    b: int = 0
    option: int = 0
    body: Buffer = b""
    buffers: Sequence[Buffer] = ()


class Head(NamedTuple):
    """A control message taken apart: the frame without its bulk, and the sizes of what is to come.

    Attributes
    ----------
    frame : Frame
        Complete if `bulk_sizes` is empty.
    bulk_sizes : tuple of int
        Bytes of each bulk message that follows.
    body_in_bulk : bool
        Whether the first of them is the body.
    """

    frame: Frame
    bulk_sizes: tuple[int, ...]
    body_in_bulk: bool

    def complete(self, bulk: Sequence[Buffer]) -> Frame:
        """Return the whole frame, given its bulk messages in order."""
        if self.body_in_bulk:
            return self.frame._replace(body=bulk[0], buffers=bulk[1:])
        return self.frame._replace(buffers=bulk)


# magic, kind, option, form, size of the body or number of buffers, a, b
_HEAD = struct.Struct("<BBBBIqq")
_HEAD_SIZE = _HEAD.size
_pack_head, _unpack_head = _HEAD.pack, _HEAD.unpack_from
_KINDS = {int(kind): kind for kind in Kind}


def encode(frame: Frame) -> tuple[bytes, Sequence[Buffer]]:
    """Return the control message of `frame` and its bulk messages, which borrow the frame's memory."""
    kind, a, b, option, body, buffers = frame
    size = len(body)
    if size > INLINE_BODY_MAX_BYTES:
        table = _size_table(size, buffers)
        return _pack_head(MAGIC, kind, option, _BODY_IN_BULK, len(buffers), a, b) + table, [body, *buffers]
    if buffers:
        table = _size_table(size, buffers)
        return _pack_head(MAGIC, kind, option, _BODY_INLINE, len(buffers), a, b) + table + body, buffers
    return _pack_head(MAGIC, kind, option, _WHOLE, size, a, b) + body, ()


def _size_table(body_size: int, buffers: Sequence[Buffer]) -> bytes:
    return struct.pack(f"<{1 + len(buffers)}Q", body_size, *[len(buffer) for buffer in buffers])


def parse_whole(data: bytes | bytearray) -> Frame | None:
    """Return the frame that a control message is, or None if it is not a whole one: then `parse_head` says more."""
    if len(data) < _HEAD_SIZE:
        return None
    magic, number, option, form, size, a, b = _unpack_head(data)
    if form or magic != MAGIC or len(data) != _HEAD_SIZE + size or number not in _KINDS:
        return None
    return new_tuple(Frame, (_KINDS[number], a, b, option, data[_HEAD_SIZE:], ()))


def parse_head(data: Buffer) -> Head:
    """Take a control message apart.

    Raises
    ------
    ProtocolError
        If `data` is not exactly one control message of this protocol.
    """
    if len(data) < _HEAD_SIZE:
        raise ProtocolError(f"a control message of {len(data)} bytes is shorter than a head ({_HEAD_SIZE} bytes)")
    magic, kind_number, option, form, size, a, b = _unpack_head(data)
    kind = _KINDS.get(kind_number)
    if magic != MAGIC or kind is None or form not in (_WHOLE, _BODY_INLINE, _BODY_IN_BULK):
        raise ProtocolError(f"not a taskfarm frame: magic {magic:#x}, kind {kind_number}, form {form}")
    if form != _WHOLE:
        return _parse_bulk_head(data, Frame(kind, a, b, option), form == _BODY_IN_BULK, size)
    if len(data) != _HEAD_SIZE + size:
        raise ProtocolError(f"{kind.name} frame of {len(data)} bytes announces {_HEAD_SIZE + size}")
    return Head(Frame(kind, a, b, option, memoryview(data)[_HEAD_SIZE:]), (), False)


def _parse_bulk_head(data: Buffer, frame: Frame, body_in_bulk: bool, n_buffers: int) -> Head:
    if n_buffers > _MAX_BUFFERS:
        raise ProtocolError(f"{frame.kind.name} frame announces {n_buffers} buffers")
    table_end = _HEAD_SIZE + 8 * (1 + n_buffers)
    if len(data) < table_end:
        raise ProtocolError(f"{frame.kind.name} frame of {len(data)} bytes announces {table_end} and more")
    body_size, *sizes = struct.unpack_from(f"<{1 + n_buffers}Q", data, _HEAD_SIZE)
    if max(body_size, *sizes, 0) > _MAX_BULK_BYTES:
        raise ProtocolError(f"{frame.kind.name} frame announces buffers of {max(body_size, *sizes, 0)} bytes")
    announced = table_end + (0 if body_in_bulk else body_size)
    if len(data) != announced:
        raise ProtocolError(f"{frame.kind.name} frame of {len(data)} bytes announces {announced}")
    if body_in_bulk:
        return Head(frame, (body_size, *sizes), True)
    return Head(frame._replace(body=memoryview(data)[table_end:]), tuple(sizes), False)


def encode_signal(signal: int, number: int) -> bytes:
    """Return a control message that is no frame: what two transports say to each other (signal 1..255)."""
    return _pack_head(MAGIC, 0, signal, _SIGNAL, 0, number, 0)


def parse_signal(data: Buffer) -> tuple[int, int] | None:
    """Return the signal and its number, or None if `data` is not a signal."""
    if len(data) != _HEAD_SIZE:
        return None
    magic, kind, signal, form, size, number, b = _unpack_head(data)
    return (signal, number) if (magic, kind, form, size, b) == (MAGIC, 0, _SIGNAL, 0, 0) else None
