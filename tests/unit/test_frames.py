"""Frames and their form in bytes."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from taskfarm.errors import ProtocolError
from taskfarm.wire.frames import (
    INLINE_BODY_MAX_BYTES,
    TREE_KINDS,
    Frame,
    Head,
    Kind,
    encode,
    encode_signal,
    parse_head,
    parse_signal,
    parse_whole,
)

# magic, kind, option, form, size of the body or number of buffers, a, b; then the sizes of body and buffers
HEAD = "<BBBBIqq"
HEAD_SIZE = 24
WHOLE, BODY_INLINE, BODY_IN_BULK, SIGNAL = range(4)


def head_bytes(
    kind: int = Kind.CALL,
    *sizes: int,
    magic: int = 0xF5,
    option: int = 0,
    form: int = WHOLE,
    size: int | None = None,
    a: int = 0,
    b: int = 0,
) -> bytes:
    """A head, and behind it the table of `sizes`, of which there is none in a whole frame."""
    announced = max(len(sizes) - 1, 0) if size is None else size
    return struct.pack(HEAD, magic, kind, option, form, announced, a, b) + struct.pack(f"<{len(sizes)}Q", *sizes)


def equal_frames(seen: Frame, expected: Frame) -> bool:
    same_buffers = [bytes(buffer) for buffer in seen.buffers] == [bytes(buffer) for buffer in expected.buffers]
    return seen[:4] == expected[:4] and bytes(seen.body) == bytes(expected.body) and same_buffers


def there_and_back(frame: Frame) -> Frame:
    control, bulk = encode(frame)
    head = parse_head(control)
    assert head.bulk_sizes == tuple(len(buffer) for buffer in bulk)
    return head.complete(bulk) if bulk else head.frame


def test_a_small_frame_is_one_message() -> None:
    """A frame without buffers and with a small body is one control message: head, then body."""
    control, bulk = encode(Frame(Kind.MESSAGE, 3, -4, 5, b"body"))
    assert control == head_bytes(Kind.MESSAGE, option=5, a=3, b=-4, size=4) + b"body"
    assert list(bulk) == []


def test_buffers_follow_as_bulk() -> None:
    """Each raw buffer is a bulk message of its own, announced by its size; the small body stays in the head."""
    buffers = [memoryview(bytearray(b"abc")), memoryview(bytearray()), memoryview(bytearray(b"defgh"))]
    control, bulk = encode(Frame(Kind.SPAWN, 1, 2, 3, b"xy", buffers))
    expected = head_bytes(Kind.SPAWN, 2, 3, 0, 5, option=3, form=BODY_INLINE, a=1, b=2) + b"xy"
    assert control == expected
    assert list(bulk) == buffers
    assert parse_head(control).bulk_sizes == (3, 0, 5)


@pytest.mark.parametrize("n_buffers", [0, 2])
def test_a_large_body_travels_in_bulk_before_the_buffers(n_buffers: int) -> None:
    """One byte above the limit, the body is the first bulk message and no part of the head."""
    body = bytes(INLINE_BODY_MAX_BYTES + 1)
    buffers = [memoryview(bytearray(index + 1)) for index in range(n_buffers)]
    control, bulk = encode(Frame(Kind.DONE, body=body, buffers=buffers))
    assert len(control) == HEAD_SIZE + 8 * (1 + n_buffers)
    assert bulk[0] is body
    head = parse_head(control)
    assert head.body_in_bulk
    assert head.bulk_sizes == (len(body), *range(1, n_buffers + 1))


def test_a_body_of_the_limit_stays_in_the_head() -> None:
    """Up to the limit one copy is cheaper than a second message."""
    control, bulk = encode(Frame(Kind.DONE, body=bytes(INLINE_BODY_MAX_BYTES)))
    assert len(control) == HEAD_SIZE + INLINE_BODY_MAX_BYTES
    assert not bulk


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_travels(kind: Kind) -> None:
    """Every kind of frame arrives as itself, with its numbers and its option."""
    frame = Frame(kind, 2**63 - 1, -(2**63), 255, b"content")
    assert there_and_back(frame) == frame


def test_bulk_borrows_the_memory_of_the_frame() -> None:
    """Encoding copies no buffer: an array leaves from its own memory."""
    array = np.zeros(1000)
    _, bulk = encode(Frame(Kind.CALL, buffers=[memoryview(array).cast("B")]))
    array[0] = 1.0
    assert np.frombuffer(bulk[0])[0] == 1.0


def test_a_received_body_is_a_view() -> None:
    """Taking a head apart copies nothing; the receiver may write to what it received."""
    data = bytearray(encode(Frame(Kind.CALL, body=b"12345"))[0])
    body = parse_head(data).frame.body
    assert isinstance(body, memoryview)
    assert not body.readonly
    data[-1] = ord("!")
    assert bytes(body) == b"1234!"


def test_a_head_completes_to_the_frame() -> None:
    """`Head.complete` puts the bulk messages into their places, in order."""
    first, second = memoryview(b"first"), memoryview(b"second")
    frame = Frame(Kind.CALL, 7)
    assert Head(frame._replace(body=b"b"), (5, 6), False).complete([first, second]) == Frame(
        Kind.CALL, 7, body=b"b", buffers=[first, second]
    )
    assert Head(frame, (5, 6), True).complete([first, second]) == Frame(Kind.CALL, 7, body=first, buffers=[second])


@pytest.mark.parametrize("body_size", [0, 1, INLINE_BODY_MAX_BYTES, INLINE_BODY_MAX_BYTES + 1])
@pytest.mark.parametrize("sizes", [(), (0,), (1,), (5, 0, 7), (0,) * 1000])
def test_encoding_and_parsing_are_inverse(body_size: int, sizes: tuple[int, ...]) -> None:
    """What is encoded comes back as it was, whatever the sizes of body and buffers."""
    buffers = [memoryview(bytes([size % 251]) * size) for size in sizes]
    frame = Frame(Kind.CALL_VALUE, 1, 2, 3, b"x" * body_size, buffers)
    assert equal_frames(there_and_back(frame), frame)


BAD = {
    "nothing": b"",
    "a part of a head": head_bytes()[:-1],
    "another magic": head_bytes(magic=0xF4),
    "kind 0": head_bytes(0),
    "a kind after the last": head_bytes(max(Kind) + 1),
    "an unknown form": head_bytes(form=4),
    "a signal": encode_signal(1, 5000),
    "less body than announced": head_bytes(size=5) + b"1234",
    "more body than announced": head_bytes(size=5) + b"123456",
    "a body that is not announced": head_bytes() + b"1",
    "a table that breaks off": head_bytes(Kind.CALL, 0, 1, 1, form=BODY_INLINE)[:-1],
    "no table": head_bytes(form=BODY_INLINE, size=1),
    "a table and less body than announced": head_bytes(Kind.CALL, 2, 1, form=BODY_INLINE) + b"1",
    "body in bulk, and more": head_bytes(Kind.CALL, 9, form=BODY_IN_BULK) + b"1",
    "more buffers than anybody sends": head_bytes(form=BODY_INLINE, size=2**32 - 1),
    "a body of 2**64 - 1 bytes": head_bytes(Kind.CALL, 2**64 - 1, form=BODY_INLINE),
    "a body in bulk that no memory holds": head_bytes(Kind.CALL, 2**63, form=BODY_IN_BULK),
    "a buffer that no memory holds": head_bytes(Kind.CALL, 0, 2**63, form=BODY_INLINE),
    "buffers that no memory holds together": head_bytes(Kind.CALL, 0, *[2**62] * 4, form=BODY_INLINE),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_bad_control_messages_are_refused(data: bytes) -> None:
    """Whatever bytes arrive, a message that is not exactly one of this protocol raises `ProtocolError`."""
    with pytest.raises(ProtocolError):
        parse_head(data)


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_only_whole_frames_take_the_short_way(data: bytes) -> None:
    """What `parse_head` refuses, `parse_whole` does not take for a frame either."""
    assert parse_whole(data) is None


def test_the_short_way_gives_the_same_frame() -> None:
    """For a frame without bulk `parse_whole` and `parse_head` agree; one with bulk is not whole."""
    control, _ = encode(Frame(Kind.MESSAGE, 3, -4, 5, b"body"))
    assert parse_whole(bytearray(control)) == parse_head(control).frame
    assert parse_whole(encode(Frame(Kind.MESSAGE, buffers=[b"1"]))[0]) is None


def test_signals_travel() -> None:
    """A signal and its number come back as they were; nothing else is taken for a signal."""
    assert parse_signal(encode_signal(1, 70_000)) == (1, 70_000)
    assert parse_signal(encode_signal(255, -(2**63))) == (255, -(2**63))
    assert parse_signal(head_bytes(0, option=7, form=SIGNAL, a=3)) == (7, 3)
    others = [data for name, data in BAD.items() if name != "a signal"]
    others += [encode(Frame(Kind.MESSAGE))[0], head_bytes(form=SIGNAL), head_bytes(0, form=SIGNAL, b=1)]
    assert all(parse_signal(data) is None for data in others)


def test_every_truncation_is_refused() -> None:
    """No beginning of a control message is taken for a whole one."""
    control, _ = encode(Frame(Kind.SPAWN, 1, 2, 3, b"body", [memoryview(b"123"), memoryview(b"4")]))
    for length in range(len(control)):
        with pytest.raises(ProtocolError):
            parse_head(control[:length])


def test_kinds_fit_the_head() -> None:
    """Numbers of kinds are a byte, never 0, and never change: ranks of different age would misunderstand each other."""
    assert {kind.name: int(kind) for kind in Kind} == {
        "SPAWN": 1,
        "DONE": 2,
        "MESSAGE": 3,
        "CALL": 4,
        "CALL_FAILED": 5,
        "CALL_VALUE": 6,
        "CALLS_DONE": 7,
        "SYNC": 8,
        "REMOVE": 9,
        "RENEW_COMM": 10,
        "QUERY": 11,
        "STATUS": 12,
        "DEBUG": 13,
        "LOG": 14,
        "QUIT": 15,
        "BYE": 16,
        "ARRAY": 17,
        "FUNCTION": 18,
        "BATCH": 19,
        "BATCH_DONE": 20,
        "FORGET": 21,
        "TEAM_TASK": 22,
        "TEAM_DONE": 23,
        "TEAM_STOP": 24,
        "TEAM_FORGET": 25,
        "SHARE": 26,
        "SHARED": 27,
        "LOST": 28,
        "LIMIT": 29,
        "CANCEL": 30,
        "TRACE": 31,
        "GROUP": 32,
        "PORTION": 33,
        "PARTS": 34,
        "RECALL": 35,
        "TEAM_MEET": 36,
    }


def test_collective_work_goes_through_the_tree() -> None:
    """What every rank does in one order travels one way; nothing that a single rank is told is passed on."""
    assert {Kind.CALL, Kind.SYNC, Kind.REMOVE, Kind.RENEW_COMM} <= TREE_KINDS
    assert TREE_KINDS.isdisjoint({Kind.SPAWN, Kind.DONE, Kind.MESSAGE, Kind.QUERY, Kind.STATUS, Kind.BYE, Kind.LOG})
