"""Properties of frames and of packed objects."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from taskfarm.errors import ProtocolError
from taskfarm.scheduling.quiescence import Wait
from taskfarm.wire import codec
from taskfarm.wire.frames import INLINE_BODY_MAX_BYTES, Frame, Head, Kind, encode, parse_head

HEAD_SIZE = 24
INT64 = st.integers(-(2**63), 2**63 - 1)
BODIES = st.binary(max_size=50) | st.builds(
    lambda extra, byte: byte * (INLINE_BODY_MAX_BYTES + extra), st.integers(-2, 2), st.sampled_from([b"a", b"\0"])
)
FRAMES = st.builds(
    Frame,
    st.sampled_from(Kind),
    INT64,
    INT64,
    st.integers(0, 255),
    BODIES,
    st.lists(st.binary(max_size=20), max_size=8),
)
# Heads that look right but announce anything, and the first size behind them.
HEADS = st.builds(
    lambda kind, option, form, n, a, b, size, rest: (
        struct.pack("<BBBBIqqQ", 0xF5, kind, option, form, n, a, b, size) + rest
    ),
    st.integers(0, 20),
    st.integers(0, 255),
    st.integers(0, 3),
    st.integers(0, 4) | st.integers(0, 2**32 - 1),
    INT64,
    INT64,
    st.integers(0, 40) | st.integers(0, 2**64 - 1),
    st.binary(max_size=40),
)


def plain(frame: Frame) -> tuple[Any, ...]:
    return (*frame[:4], bytes(frame.body), [bytes(buffer) for buffer in frame.buffers])


def parse_or_refuse(data: bytes) -> Head | None:
    """Return the head, or None if it was refused; nothing else may happen."""
    try:
        head = parse_head(data)
    except ProtocolError:
        return None
    assert type(head.frame.kind) is Kind
    assert all(size >= 0 for size in head.bulk_sizes)
    assert sum(head.bulk_sizes) < 2**63
    assert not head.body_in_bulk or head.bulk_sizes
    return head


@given(FRAMES)
def test_encoding_and_parsing_are_inverse(frame: Frame) -> None:
    """Whatever is encoded comes back as it was, and the announced sizes are those of the bulk messages."""
    control, bulk = encode(frame)
    head = parse_head(control)
    assert list(head.bulk_sizes) == [len(buffer) for buffer in bulk]
    assert plain(head.complete(bulk) if bulk else head.frame) == plain(frame)
    again, _ = encode(head.complete(bulk) if bulk else head.frame)
    assert again == control


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    """Random bytes raise nothing but `ProtocolError`."""
    parse_or_refuse(data)


@given(HEADS)
@example(struct.pack("<BBBBIqqQ", 0xF5, 4, 0, 1, 0, 0, 0, 2**64 - 1))
@example(struct.pack("<BBBBIqqQ", 0xF5, 4, 0, 2, 0, 0, 0, 2**64 - 1))
def test_random_heads(data: bytes) -> None:
    """A head that announces anything is taken as it says, exactly, or refused."""
    head = parse_or_refuse(data)
    if head is not None:
        inline = 0 if head.body_in_bulk else len(head.frame.body)
        n_buffers = len(head.bulk_sizes) - head.body_in_bulk
        table = 8 * (1 + n_buffers) if data[3] else 0  # a whole frame has none
        assert len(data) == HEAD_SIZE + table + inline


@given(FRAMES, st.data())
def test_truncated_and_extended_frames(frame: Frame, data: st.DataObject) -> None:
    """A control message that lost its end, or got a longer one, is never taken for a whole one."""
    control, _ = encode(frame)
    length = data.draw(st.integers(0, len(control) - 1))
    assert parse_or_refuse(control[:length]) is None
    assert parse_or_refuse(control + data.draw(st.binary(min_size=1, max_size=20))) is None


@given(FRAMES, st.data())
def test_flipped_bits(frame: Frame, data: st.DataObject) -> None:
    """Flipped bits give another frame or `ProtocolError`, nothing else; a changed head is not taken for the same."""
    control, _ = encode(frame)
    flipped = bytearray(control)
    top = min(len(control), HEAD_SIZE + 8 * (1 + len(frame.buffers))) * 8
    bits = data.draw(st.sets(st.integers(0, top - 1), min_size=1, max_size=4))
    for bit in bits:
        flipped[bit // 8] ^= 1 << bit % 8
    head = parse_or_refuse(bytes(flipped))
    if head is not None:
        before = parse_head(control)
        assert (plain(head.frame), *head[1:]) != (plain(before.frame), *before[1:])


# Objects

SCALAR_DTYPES = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes()
    | hnp.unsigned_integer_dtypes()
    | hnp.floating_dtypes()
    | hnp.complex_number_dtypes()
    | hnp.datetime64_dtypes()
    | hnp.timedelta64_dtypes()
    | hnp.byte_string_dtypes(max_len=5)
    | hnp.unicode_string_dtypes(max_len=5)
)
DTYPES = SCALAR_DTYPES | hnp.array_dtypes(SCALAR_DTYPES, max_size=3, allow_subarrays=True)


@st.composite
def arrays(draw: st.DrawFn, min_side: int = 0) -> npt.NDArray[Any]:
    """Arrays of any type, order and strides, writable or not."""
    dtype = draw(DTYPES)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=min_side, max_side=6))
    n_bytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
    memory = np.resize(np.frombuffer(draw(st.binary(min_size=1, max_size=64)), dtype=np.uint8), n_bytes)
    array = np.frombuffer(memory.tobytes(), dtype=dtype).reshape(shape) if n_bytes else np.zeros(shape, dtype)
    array = np.array(array, order=draw(st.sampled_from("CF")))
    if array.ndim:
        array = array.transpose(draw(st.permutations(range(array.ndim))))
        steps = st.sampled_from([slice(None), slice(None, None, -1), slice(None, None, 2), slice(1, None)])
        array = array[tuple(draw(steps) for _ in range(draw(st.integers(0, array.ndim))))]
    if draw(st.booleans()):
        array = np.broadcast_to(array, (2, *array.shape))
    elif draw(st.booleans()):
        array.flags.writeable = False
    return array


def land(packed: codec.Packed) -> tuple[bytes, list[memoryview]]:
    """Return what the receiver holds, in memory of its own."""
    buffers = []
    for buffer in packed.buffers:
        landed = codec.empty_buffer(len(buffer))
        landed[:] = buffer
        buffers.append(landed)
    return packed.body, buffers


def bits(array: npt.NDArray[Any], dtype: np.dtype[Any] | None = None) -> bytes:
    """Return the bytes of an array; in the byte order of `dtype`, since numpy makes copied arrays native."""
    return np.asarray(array, dtype).tobytes()


def same_type(landed: npt.NDArray[Any], array: npt.NDArray[Any]) -> bool:
    return landed.dtype in (array.dtype, array.dtype.newbyteorder("=")) and landed.shape == array.shape


@given(arrays(), st.sampled_from([0, 16, 64, codec.OOB_MIN_BYTES]))
def test_arrays_travel(array: npt.NDArray[Any], threshold: int) -> None:
    """An array arrives equal bit by bit, of its type and shape, writable if it was, and sending does not change it."""
    before = bits(array)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "OOB_MIN_BYTES", threshold)
        packed = codec.pack(("an array", array))
        assert all(len(buffer) >= threshold for buffer in packed.buffers)
        text, landed = codec.unpack(*land(packed))
    assert text == "an array"
    assert same_type(landed, array)
    assert bits(landed, array.dtype) == before
    if array.flags.writeable:
        assert landed.flags.writeable
        landed[...] = np.zeros((), landed.dtype)
        assert bits(array) == before


@given(arrays(min_side=4))
def test_arrays_land_in_the_memory_they_arrived_in(array: npt.NDArray[Any]) -> None:
    """A contiguous array at or above the threshold is not copied, neither by the sender nor by the receiver."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "OOB_MIN_BYTES", 8)
        packed = codec.pack(array)
        body, buffers = land(packed)
        landed = codec.unpack(body, buffers)
    for sent, arrived in zip(packed.buffers, buffers, strict=True):
        assert np.shares_memory(np.frombuffer(sent, np.uint8), array) is array.flags.forc
        assert np.shares_memory(np.frombuffer(arrived, np.uint8), landed)
    if array.flags.forc and array.dtype.kind in "biufc" and array.nbytes >= 8:
        assert len(packed.buffers) == 1


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(OBJECTS, st.lists(arrays(), max_size=4))
def test_nested_objects_travel(obj: Any, some: list[npt.NDArray[Any]]) -> None:
    """Objects with arrays anywhere in them arrive equal; one array in two places stays one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "OOB_MIN_BYTES", 32)
        landed = codec.unpack(*land(codec.pack([obj, some, some[:1], lambda: obj])))
    assert landed[0] == obj
    for arrived, array in zip(landed[1], some, strict=True):
        assert same_type(arrived, array)
        assert bits(arrived, array.dtype) == bits(array)
    assert all(first is again for first, again in zip(landed[1], landed[2], strict=False))
    assert landed[3]() == obj


@given(st.binary(max_size=300), st.lists(st.binary(max_size=8), max_size=2))
def test_random_bytes_as_a_status(data: bytes, _buffers: list[bytes]) -> None:
    """The fixed bodies of the protocol are refused like heads: nothing but `ProtocolError`."""
    from taskfarm.runtime.endpoint import Endpoint

    try:
        Endpoint.read_status(data)
    except ProtocolError:
        assert len(data) != 32 or struct.unpack("<4q", data)[1] not in list(Wait)
