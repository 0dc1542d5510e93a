"""The watch channel over loopback sockets: who may speak, what is passed on, when the job is ended."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from taskfarm.runtime import watcher
from taskfarm.runtime.watcher import WatchClient, WatchServer, main_thread_place
from taskfarm.scheduling.stuck import EndJob, StuckJudge, Warn, Whereabouts

SECRET = "0123456789abcdef" * 2
LIMIT_S = 5.0
HERE = Whereabouts(4, 3, "Barrier", 9, -1, "a.py:1 in f")
IDLE = Whereabouts(0, 99)


class RecordingJudge(StuckJudge):
    """A judge that writes down what it is told; `stop` makes it end the watching thread."""

    def __init__(self, n_ranks: int, comm_s: float) -> None:
        super().__init__(range(n_ranks), comm_s, 60.0)
        self.failures: list[tuple[int, int, str]] = []
        self.answers: list[tuple[int, Whereabouts]] = []
        self.stop = False

    @property
    def has_case(self) -> bool:
        return self.stop or super().has_case

    def on_failure(self, rank: int, call: int, text: str, now: float) -> None:
        self.failures.append((rank, call, text))
        super().on_failure(rank, call, text, now)

    def on_answer(self, rank: int, where: Whereabouts, now: float) -> None:
        super().on_answer(rank, where, now)
        self.answers.append((rank, where))

    def judge(self, now: float) -> list[Warn | EndJob]:
        return [EndJob("stop")] if self.stop else super().judge(now)


@dataclass
class Channel:
    """A server on rank 0 with its judge, and what became of it."""

    server: WatchServer
    judge: RecordingJudge
    address: tuple[str, int]
    ends: list[str]
    here: list[Whereabouts]
    known_done: dict[int, int]
    signals: socket.socket
    clients: list[WatchClient] = field(default_factory=list)

    def client(self, rank: int, where: Whereabouts = HERE) -> WatchClient:
        self.clients.append(WatchClient(self.address, SECRET, rank, lambda: where))
        return self.clients[-1]

    def stranger(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=LIMIT_S)


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def open_channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Channel]]:
    """Opens channels whose threads and sockets end with the test."""
    monkeypatch.setattr(watcher, "ASK_EVERY_S", 0.002)
    report = threading.excepthook
    monkeypatch.setattr(threading, "excepthook", lambda args: None if args.exc_type is SystemExit else report(args))
    channels: list[Channel] = []
    sockets: list[socket.socket] = []

    def open_one(n_ranks: int = 3, comm_s: float = 1000.0) -> Channel:
        listener = socket.create_server(("127.0.0.1", 0))
        judge = RecordingJudge(n_ranks, comm_s)
        ends: list[str] = []
        here = [IDLE]
        known_done: dict[int, int] = {}
        reader, writer = socket.socketpair()
        sockets.extend([listener, reader, writer])

        def end_job(text: str) -> None:
            ends.append(text)
            raise SystemExit  # ends the watching thread, as the end of the process would

        server = WatchServer(listener, SECRET, judge, lambda: here[0], end_job, lambda: known_done, reader)
        channels.append(Channel(server, judge, listener.getsockname(), ends, here, known_done, writer))
        return channels[-1]

    yield open_one
    for channel in channels:
        channel.judge.stop = True
        channel.server.report_failure(1, "the end of the test")
        eventually(lambda channel=channel: channel.ends)
        server = channel.server
        for connection in [*server._ranks, server._wake_reader, server._wake_writer]:
            connection.close()
        server._selector.close()
        for client in channel.clients:
            if client._socket is not None:
                client._socket.close()
    for opened in sockets:
        opened.close()


OpenChannel = Callable[..., Channel]


def read_until_closed(connection: socket.socket) -> bytes:
    """Return what the server sends until it hangs up."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(4096):
            received += data
    return received


# What is passed on


def test_a_failure_is_told_and_everybody_is_asked(open_channel: OpenChannel) -> None:
    """A worker's failure reaches the judge, and then every rank is asked where it is, rank 0 included."""
    channel = open_channel()
    first = channel.client(1)
    channel.client(2, IDLE)
    first.report_failure(4, "ValueError: bad")
    eventually(lambda: {rank for rank, _ in channel.judge.answers} == {0, 1, 2})
    assert channel.judge.failures == [(1, 4, "ValueError: bad")]
    assert dict(channel.judge.answers) == {0: IDLE, 1: HERE, 2: IDLE}
    assert channel.ends == []


def test_rank_0s_own_failure_is_told_at_once(open_channel: OpenChannel) -> None:
    """Rank 0 reports in the same process; the sleeping thread wakes."""
    channel = open_channel()
    channel.client(1)
    channel.server.report_failure(4, "rank 0 failed")
    eventually(lambda: (1, HERE) in channel.judge.answers)
    assert channel.judge.failures == [(0, 4, "rank 0 failed")]


def test_nobody_is_asked_while_no_call_fails(open_channel: OpenChannel) -> None:
    """Without a failure the channel is silent."""
    channel = open_channel()
    channel.client(1)
    eventually(lambda: 1 in channel.server._ranks.values())
    time.sleep(0.01)
    assert channel.judge.answers == []


def test_asking_ends_with_the_case(open_channel: OpenChannel) -> None:
    """When all ranks have left the failed call, nobody is asked any more."""
    channel = open_channel(2)
    channel.client(1, IDLE).report_failure(4, "bad")
    eventually(lambda: channel.judge.answers and not channel.judge.has_case)
    n_answers = len(channel.judge.answers)
    time.sleep(0.01)
    assert len(channel.judge.answers) <= n_answers + 2  # one question may have been under way


def test_what_rank_0_knows_closes_the_case(open_channel: OpenChannel) -> None:
    """A rank that does not answer but is known to have left the call is not waited for."""
    channel = open_channel(2)
    channel.server.report_failure(4, "rank 0 failed")
    eventually(lambda: channel.judge.answers)
    assert channel.judge.has_case
    channel.known_done[1] = 4
    eventually(lambda: not channel.judge.has_case)


def test_the_end_of_the_program_is_watched(open_channel: OpenChannel) -> None:
    """When rank 0's program has ended while workers are inside a call, they are asked until they have left it."""
    channel = open_channel(2)
    channel.client(1, HERE)
    eventually(lambda: 1 in channel.server._ranks.values())
    channel.server.report_end(4)
    eventually(lambda: (1, HERE) in channel.judge.answers)
    channel.known_done[1] = 4
    eventually(lambda: not channel.judge.has_case)
    assert channel.ends == []


def test_failures_keep_their_order(open_channel: OpenChannel) -> None:
    """Also what is reported before the connection stands arrives, in order, with any text."""
    channel = open_channel()
    client = channel.client(1)
    texts = [f'failure {number}: \n"quoted" \u00fc \u2028 \\' for number in range(50)]
    for number, text in enumerate(texts):
        client.report_failure(number + 1, text)
    eventually(lambda: len(channel.judge.failures) == 50)
    assert channel.judge.failures == [(1, number + 1, text) for number, text in enumerate(texts)]


def test_a_stuck_rank_ends_the_job(open_channel: OpenChannel) -> None:
    """A rank that stays inside a `comm` method after a failure ends the job with a text that names both."""
    channel = open_channel(2, comm_s=0.01)
    channel.here[0] = Whereabouts(4, 3, "bcast", 1, -1, "main.py:7 in solve")
    channel.client(1, Whereabouts(0, 4)).report_failure(4, "rank 1 (host h): ValueError: bad")
    eventually(lambda: channel.ends)
    assert "rank 1 (host h): ValueError: bad" in channel.ends[0]
    assert "rank 0 is inside comm.bcast at main.py:7 in solve" in channel.ends[0]


def test_warnings_are_logged(open_channel: OpenChannel, caplog: pytest.LogCaptureFixture) -> None:
    """What the judge only warns of is logged by rank 0."""
    channel = open_channel()
    warned = threading.Event()

    def judge_once(now: float) -> list[Warn | EndJob]:
        if channel.judge.stop:
            return [EndJob("stop")]
        warned.set()
        return [Warn("ranks are still at work")]

    channel.judge.judge = judge_once  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, logger="taskfarm"):
        channel.server.report_failure(1, "bad")
        assert warned.wait(LIMIT_S)
        eventually(lambda: caplog.messages)
    assert caplog.messages[0] == "rank 0: ranks are still at work"


# Interrupts


def test_an_interrupt_that_cannot_be_delivered_ends_the_job(
    open_channel: OpenChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If rank 0 stays inside one `comm` method after ^C, the job ends."""
    monkeypatch.setattr(watcher, "INTERRUPT_PATIENCE_S", 0.01)
    channel = open_channel()
    channel.here[0] = HERE
    channel.signals.send(bytes([signal.SIGINT]))
    eventually(lambda: channel.ends)
    assert "interrupted while rank 0 is inside comm.Barrier at a.py:1 in f" in channel.ends[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGCHLD])
def test_other_signals_and_interrupts_outside_comm_do_nothing(
    open_channel: OpenChannel, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """An interrupt that rank 0 can react to itself, and any other signal, ends nothing here."""
    monkeypatch.setattr(watcher, "INTERRUPT_PATIENCE_S", 0.001)
    channel = open_channel()
    channel.here[0] = HERE if number != signal.SIGINT else IDLE
    channel.signals.send(bytes([number]))
    time.sleep(0.02)
    assert channel.ends == []


# Strangers

LIES = b'{"failed": [1, "a lie"]}\n{"where": [1, 0, "Barrier", 1, -1, ""]}\n'
STRANGE = {
    "nothing": b"",
    "a wrong secret": b"f" * 32 + b" 1\n",
    "a part of the secret": SECRET[:-1].encode() + b" 1\n",
    "more than the secret": SECRET.encode() + b"0 1\n",
    "no secret": b" 1\n",
    "an empty line": b"\n",
    "json": b'{"secret": null, "rank": 1}\n',
    "deeply nested json": b"[" * 100_000 + b"\n",
    "a web browser": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes": bytes(range(256)) + b"\n",
    "a line without end": b"x" * (3 << 20),
    "a failure without a secret": b'{"failed": [1, "x"]}\n',
    "the secret without a rank": SECRET.encode() + b"\n",
    "the secret and no number": SECRET.encode() + b" one\n",
}


@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE.keys())
def test_strangers_are_dropped_and_change_nothing(open_channel: OpenChannel, data: bytes) -> None:
    """A peer that does not begin with the job's secret is hung up on; the channel lives on and nothing was believed."""
    channel = open_channel()
    with channel.stranger() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data + LIES)
            if not data:
                connection.shutdown(socket.SHUT_WR)
        assert read_until_closed(connection) == b""
    channel.client(2).report_failure(7, "the truth")
    eventually(lambda: (2, HERE) in channel.judge.answers)
    assert channel.judge.failures == [(2, 7, "the truth")]
    assert {rank for rank, _ in channel.judge.answers} <= {0, 2}


def test_a_silent_stranger_is_never_asked(open_channel: OpenChannel) -> None:
    """Who has not shown the secret hears nothing, not even a question."""
    channel = open_channel()
    with channel.stranger() as connection:
        channel.client(1).report_failure(4, "bad")
        eventually(lambda: (1, HERE) in channel.judge.answers)
        connection.settimeout(0.005)
        with pytest.raises(TimeoutError):
            connection.recv(1)


NONSENSE = {
    "not json": b"nonsense\n",
    "a number": b"5\n",
    "null": b"null\n",
    "nested": b"[" * 100_000 + b"\n",
    "no such thing": b'{"other": 1}\n',
    "a short failure": b'{"failed": [1]}\n',
    "an infinite call": b'{"failed": [Infinity, "x"]}\n',
    "too many facts": b'{"where": [1, 2, 3, 4, 5, 6, 7, 8]}\n',
    "facts that are none": b'{"where": 3}\n',
}


@pytest.mark.parametrize("line", NONSENSE.values(), ids=NONSENSE.keys())
def test_a_broken_peer_does_not_end_the_watch(open_channel: OpenChannel, line: bytes) -> None:
    """A rank that sends nonsense is dropped; the others are heard as before."""
    channel = open_channel()
    with channel.stranger() as connection:
        connection.sendall(SECRET.encode() + b" 1\n" + line)
        assert read_until_closed(connection).strip(b"?\n") == b""
    channel.client(2).report_failure(7, "bad")
    eventually(lambda: (2, HERE) in channel.judge.answers)
    assert channel.judge.failures == [(2, 7, "bad")]


def test_lines_may_come_in_pieces(open_channel: OpenChannel) -> None:
    """Where a line is torn by the network does not matter."""
    channel = open_channel()
    with channel.stranger() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in SECRET.encode() + b' 2\n{"failed": [3, "slow"]}\n':
            connection.send(bytes([byte]))
        eventually(lambda: channel.judge.failures)
    assert channel.judge.failures == [(2, 3, "slow")]


# The client's side


def test_a_client_that_reaches_nobody_warns(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """If rank 0 cannot be reached, one warning says what that means; reporting does not raise."""
    monkeypatch.setattr("taskfarm.runtime.watcher.ENDING_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with caplog.at_level(logging.WARNING, logger="taskfarm"):
        client = WatchClient(address, SECRET, 3, lambda: HERE)
        client.report_failure(1, "x")
        eventually(lambda: caplog.messages)
    assert f"rank 3 cannot reach rank 0 at 127.0.0.1:{address[1]}" in caplog.messages[0]
    assert "would not be noticed" in caplog.messages[0]


def test_reports_after_rank_0_has_left_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """When rank 0 is gone nobody needs to know any more: no exception, no warning."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = WatchClient(listener.getsockname(), SECRET, 3, lambda: HERE)
        connection, _ = listener.accept()
        assert connection.recv(100) == f"{SECRET} 3\n".encode()
        connection.close()
    for _ in range(10):
        client.report_failure(1, "x")
        time.sleep(0.001)
    assert caplog.messages == []
    assert client._socket is not None
    client._socket.close()


def test_the_place_of_the_main_thread() -> None:
    """The place is the innermost frame outside the library, seen from another thread."""
    places: list[str] = []
    thread = threading.Thread(target=lambda: places.append(main_thread_place()))
    thread.start()
    thread.join()
    assert ":" in places[0]
    assert " in " in places[0]
    assert "taskfarm/runtime" not in places[0]
