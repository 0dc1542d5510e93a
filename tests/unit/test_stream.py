"""Frames over sockets, between a process and the workers that it started."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from taskfarm.errors import UsageError, WorkerLostError
from taskfarm.transport.stream import StreamTransport
from taskfarm.wire.codec import pack, unpack
from taskfarm.wire.frames import Frame, Kind

LIMIT_S = 10.0


@pytest.fixture
def pair() -> Iterator[tuple[StreamTransport, StreamTransport]]:
    ours, theirs = socket.socketpair()
    both = StreamTransport(0, 2, {1: ours}), StreamTransport(1, 2, {0: theirs})
    yield both
    for transport in both:
        transport.close(time.monotonic(), lambda source, frame: None)


def receive(transport: StreamTransport) -> tuple[int, Frame]:
    item = transport.receive(time.monotonic() + LIMIT_S)
    assert item is not None
    return item


def test_frames_arrive_whole_and_in_order(pair: tuple[StreamTransport, StreamTransport]) -> None:
    """Small frames, long bodies and raw buffers of all sizes, both ways at once."""
    sizes = [0, 1, 1000, 70_000, 1_000_003, 3_000_000]

    def serve() -> None:
        for _ in sizes:
            _, frame = receive(pair[1])
            pair[1].send(0, frame)
        assert pair[1].complete_sends(time.monotonic() + LIMIT_S, lambda source, frame: None)

    thread = threading.Thread(target=serve)
    thread.start()
    arrays = [np.arange(size, dtype=np.uint8) for size in sizes]
    for number, array in enumerate(arrays):
        body, buffers = pack((array, bytes(number * 40_000)))
        pair[0].send(1, Frame(Kind.MESSAGE, number, -number, 3, body, buffers))
    for number, array in enumerate(arrays):
        source, frame = receive(pair[0])
        assert (source, frame.kind, frame.a, frame.b, frame.option) == (1, Kind.MESSAGE, number, -number, 3)
        found, rest = unpack(frame.body, frame.buffers)
        assert np.array_equal(found, array) and found.flags.writeable and len(rest) == number * 40_000
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert pair[0].n_unsent == pair[1].n_unsent == 0


def test_nothing_blocks_on_a_peer_that_does_not_read(pair: tuple[StreamTransport, StreamTransport]) -> None:
    """What the socket does not take is kept, and moves when the peer reads."""
    array = np.full(5_000_000, 7, dtype=np.uint8)
    body, buffers = pack(array)
    for _ in range(3):
        pair[0].send(1, Frame(Kind.MESSAGE, 1, body=body, buffers=buffers))
    assert pair[0].n_unsent
    assert not pair[0].complete_sends(time.monotonic(), lambda source, frame: None)
    found = []
    while len(found) < 3:
        assert pair[0].receive_nowait() is None
        item = pair[1].receive_nowait()
        if item is not None:
            found.append(unpack(item[1].body, item[1].buffers))
    assert all(np.array_equal(one, array) for one in found)
    assert not pair[0].n_unsent


def test_completing_sends_does_not_outlast_them(pair: tuple[StreamTransport, StreamTransport]) -> None:
    """When the peer has taken the last byte, nobody waits for anything more."""
    body, buffers = pack(np.zeros(400_000, dtype=np.uint8))

    def take_in() -> None:
        for _ in range(20):
            receive(pair[1])

    thread = threading.Thread(target=take_in)
    thread.start()
    began = time.monotonic()
    for _ in range(20):
        pair[0].send(1, Frame(Kind.MESSAGE, 1, body=body, buffers=buffers), borrowed=True)
        assert pair[0].complete_sends(math.inf, lambda source, frame: None)
    thread.join(LIMIT_S)
    assert not thread.is_alive() and time.monotonic() - began < 1.0


def test_send_or_copy_lends_nothing(pair: tuple[StreamTransport, StreamTransport]) -> None:
    """Memory may be changed as soon as the call returns, although the peer has read nothing."""
    array = np.zeros(3_000_000, dtype=np.uint8)
    body, buffers = pack(array)
    pair[0].send_or_copy(1, Frame(Kind.MESSAGE, 1, body=body, buffers=buffers))
    array[:] = 1
    item = None
    while item is None:
        pair[0].receive_nowait()
        item = pair[1].receive_nowait()
    assert not unpack(item[1].body, item[1].buffers).any()


def test_a_lost_peer_is_told_once(pair: tuple[StreamTransport, StreamTransport]) -> None:
    """Frames that arrived before are handed out first; sending to it does nothing."""
    pair[1].send(0, Frame(Kind.BYE))
    pair[1].close(time.monotonic(), lambda source, frame: None)
    assert receive(pair[0])[1].kind is Kind.BYE
    source, frame = receive(pair[0])
    assert (source, frame.kind, frame.a) == (1, Kind.LOST, 1)
    assert pair[0].receive(time.monotonic()) is None
    pair[0].send(1, Frame(Kind.QUIT))
    assert pair[0].n_unsent == 0


def test_a_worker_without_its_starter_ends(pair: tuple[StreamTransport, StreamTransport]) -> None:
    """Who was started by a process that is gone has nothing to wait for."""
    pair[0].close(time.monotonic(), lambda source, frame: None)
    with pytest.raises(WorkerLostError, match="rank 0"):
        pair[1].receive(time.monotonic() + LIMIT_S)


def test_waits_end_early(pair: tuple[StreamTransport, StreamTransport]) -> None:
    """`wake` ends `receive` and `doze` of another thread; an earlier one is not lost."""
    for wait in (lambda: pair[0].receive(time.monotonic() + LIMIT_S), lambda: pair[0].doze(LIMIT_S)):
        began = time.monotonic()
        timer = threading.Timer(0.05, pair[0].wake)
        timer.start()
        assert wait() is None
        timer.join()
        assert time.monotonic() - began < LIMIT_S / 2
        pair[0].begin_doze()
    pair[0].wake()
    assert not pair[0].begin_doze()
    assert pair[0].begin_doze()
    pair[0].end_doze()


def test_strangers(pair: tuple[StreamTransport, StreamTransport]) -> None:
    """Only connected ranks can be sent to."""
    with pytest.raises(UsageError, match="dest=5"):
        pair[0].send(5, Frame(Kind.QUIT))
