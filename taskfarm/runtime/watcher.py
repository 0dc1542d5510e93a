"""The watch channel: noticing ranks that are stuck in a failed collective call.

A rank that is blocked inside MPI cannot answer there. So every rank has a thread that sleeps in `select` on a socket
which is not MPI's; the one on rank 0 asks the others where they are once a call has failed, and ends the job when
`taskfarm.scheduling.stuck` says so. A peer begins with a line that holds the job's secret, or is dropped; what follows
are lines of JSON. The threads start with the first collective call and cost nothing while no call fails, and none is
longer in coming back than it may be (`taskfarm.runtime.call_limits`).
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from taskfarm.config import Config
from taskfarm.runtime.call_limits import CallLimits, main_thread_stack
from taskfarm.runtime.interrupts import wakeup_socket
from taskfarm.runtime.lines import Lines
from taskfarm.runtime.runner import is_own_file
from taskfarm.scheduling.stuck import EndJob, StuckJudge, Whereabouts

if TYPE_CHECKING:
    from taskfarm.runtime.controller import Controller
    from taskfarm.runtime.worker import Worker
    from taskfarm.transport.world import Opened

__all__ = ["WatchClient", "WatchServer", "main_thread_place", "start_watch", "whereabouts_of"]

logger = logging.getLogger(__name__)

ASK_EVERY_S = 0.25
_WHERE, _STACK = b"?", b"!"  # questions
ENDING_S = 3.0  # a short program may be over before a loaded machine has run this thread
CONNECT_TIMEOUT_S = 5.0
INTERRUPT_PATIENCE_S = 1.0  # how long an interrupted `comm` method of rank 0 may take to return by itself
# Whatever a peer can make go wrong; the thread must outlive it.
_BAD_PEER = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError)


def main_thread_place() -> str:
    """Return ``file:line in function`` of the innermost frame of user code in the main thread."""
    ident = threading.main_thread().ident
    frame: FrameType | None = sys._current_frames().get(ident) if ident is not None else None
    while frame is not None and is_own_file(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame is not None else ""


def whereabouts_of(endpoint: Controller | Worker | None, comm: Any) -> Whereabouts:
    """Say where the main thread of this rank is, given its side of the session and the user's communicator."""
    if endpoint is None:
        return Whereabouts(0, 0)
    place = comm.tracker.place if comm is not None else None
    method, entry, peer = place if place is not None else ("", 0, -1)
    return Whereabouts(endpoint.current_call, endpoint.done_call, method, entry, peer, main_thread_place())


def _answer(where: Callable[[], Whereabouts], question: bytes) -> Whereabouts:
    return replace(where(), stack=main_thread_stack()) if question == _STACK else where()


class WatchClient:
    """The channel's end on a rank above 0; connects in the background when it is made.

    Parameters
    ----------
    address : tuple of str and int
        Where rank 0 listens.
    secret : str
        The job's secret.
    rank : int
        This rank.
    where : callable
        Returns this rank's `Whereabouts`.
    """

    def __init__(self, address: tuple[str, int], secret: str, rank: int, where: Callable[[], Whereabouts]) -> None:
        self._address = address
        self._hello = f"{secret} {rank}\n".encode()
        self._rank = rank
        self._where = where
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._backlog: list[bytes] = []
        threading.Thread(target=self._run, name="taskfarm-watch", daemon=True).start()

    def report_failure(self, call: int, text: str) -> None:
        """Tell rank 0 that this rank left a call by an exception."""
        self._send({"failed": [call, text]})

    def _send(self, message: object) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            if self._socket is None:
                self._backlog.append(line)
                return
            with contextlib.suppress(OSError):  # rank 0 has left: nobody needs to know
                self._socket.sendall(line)

    def _run(self) -> None:
        try:
            connection = socket.create_connection(self._address, timeout=CONNECT_TIMEOUT_S)
            connection.settimeout(None)
            with self._lock:
                connection.sendall(self._hello + b"".join(self._backlog))
                self._socket = connection
            lines = Lines()
            while data := connection.recv(4096):
                for question in lines.feed(data):
                    self._send({"where": astuple(_answer(self._where, question))})
        except (OSError, ValueError) as exc:
            if self._socket is None:
                time.sleep(ENDING_S)  # if rank 0 has left, so does this process meanwhile
                logger.warning(
                    "rank %d cannot reach rank 0 at %s:%d (%s): a stuck collective call would not be noticed here",
                    self._rank, *self._address, exc,
                )  # fmt: skip


class WatchServer:
    """The channel's end on rank 0.

    Parameters
    ----------
    listener : socket
        Listening socket; owned.
    secret : str
        The job's secret.
    judge : StuckJudge
        Decides.
    where : callable
        Returns rank 0's own `Whereabouts`.
    end_job : callable
        Called with the message when the job has to end; does not return.
    known_done : callable
        Returns, per other rank, the last call that rank 0 knows it to have left.
    signals : socket or None
        Gets the number of every signal as a byte. An interrupt that rank 0 cannot react to, because it is blocked in a
        `comm` method, ends the job.
    limits : CallLimits, optional
        Which calls may take how long.
    """

    def __init__(
        self,
        listener: socket.socket,
        secret: str,
        judge: StuckJudge,
        where: Callable[[], Whereabouts],
        end_job: Callable[[str], None],
        known_done: Callable[[], Mapping[int, int]],
        signals: socket.socket | None = None,
        limits: CallLimits | None = None,
    ) -> None:
        self._limits = limits if limits is not None else CallLimits()
        self._limits.wake = self._wake
        self._listener = listener
        self._secret = secret.encode()
        self._judge = judge
        self._where = where
        self._end_job = end_job
        self._known_done = known_done
        self._signals = signals
        self._interrupted: tuple[int, float] | None = None  # entry of the `comm` method, and when
        self._stopped = False
        self._lock = threading.Lock()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._ranks: dict[socket.socket, int | None] = {}
        self._lines: dict[socket.socket, Lines] = {}
        listener.setblocking(False)
        self._wake_reader.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        if signals is not None:
            self._selector.register(signals, selectors.EVENT_READ)
        threading.Thread(target=self._run, name="taskfarm-watch", daemon=True).start()

    def report_failure(self, call: int, text: str) -> None:
        """Note that rank 0 left a call by an exception."""
        with self._lock:
            self._judge.on_failure(0, call, text, time.monotonic())
        self._wake()

    def report_end(self, call: int) -> None:
        """Note that rank 0's program has ended while workers may be inside calls up to `call`."""
        with self._lock:
            self._judge.on_end(call, time.monotonic())
        self._wake()

    def stop(self) -> None:
        """End the watch: the session has ended, and nothing may be done to the job any more."""
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"!")

    def _run(self) -> None:
        asked_at = 0.0
        while not self._stopped:
            is_busy = self._judge.has_case or self._interrupted
            timeout = ASK_EVERY_S if is_busy else self._limits.seconds_left(time.monotonic())
            for key, _ in self._selector.select(timeout):
                self._on_readable(key.fileobj)
            now = time.monotonic()
            self._look_at_limits(now)
            if self._judge.has_case and now - asked_at >= ASK_EVERY_S * 0.9:
                asked_at = now
                self._ask_everybody(now)
            if self._interrupted is not None:
                self._judge_interrupt(*self._interrupted, now)

    def _judge_interrupt(self, entry: int, since: float, now: float) -> None:
        where = self._where()
        if not where.method or where.entry != entry:
            self._interrupted = None
        elif now - since >= INTERRUPT_PATIENCE_S:
            self._end_job(f"interrupted while rank 0 is inside comm.{where.method} at {where.place}; ending the job")

    def _look_at_limits(self, now: float) -> None:
        done = dict(self._known_done())
        for call, text in self._limits.take_due(done, now):
            left = [rank for rank, last in done.items() if last >= call]
            with self._lock:
                self._judge.on_late(call, text, [0, *left] if self._limits.has_left(call) else left, now)

    def _ask_everybody(self, now: float) -> None:
        question = _STACK if self._judge.wants_stacks else _WHERE
        for connection, rank in list(self._ranks.items()):
            if rank is not None:
                with contextlib.suppress(OSError):
                    connection.send(question + b"\n")
        if self._stopped:
            return
        with self._lock:
            self._judge.on_answer(0, _answer(self._where, question), now)
            for rank, done in dict(self._known_done()).items():
                self._judge.on_done(rank, done)
            verdicts = self._judge.judge(now)
        for verdict in verdicts:
            if self._stopped:
                return
            if isinstance(verdict, EndJob):
                self._end_job(verdict.text)
            else:
                logger.warning("rank 0: %s", verdict.text)

    def _on_readable(self, source: object) -> None:
        if source is self._listener:
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._ranks[connection] = None
                self._lines[connection] = Lines()
                self._selector.register(connection, selectors.EVENT_READ)
        elif source is self._signals and self._signals is not None:
            with contextlib.suppress(OSError):
                if signal.SIGINT in self._signals.recv(4096):
                    self._interrupted = (self._where().entry, time.monotonic())
        elif source is self._wake_reader:
            with contextlib.suppress(OSError):
                self._wake_reader.recv(4096)
        elif isinstance(source, socket.socket):
            self._on_data(source)

    def _on_data(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(65536)
            if not data:
                raise OSError("closed")
            for line in self._lines[connection].feed(data):
                self._on_line(connection, line)
        except BlockingIOError:
            return
        except _BAD_PEER:  # a stranger, or a rank that has left
            self._selector.unregister(connection)
            connection.close()
            del self._ranks[connection], self._lines[connection]

    def _on_line(self, connection: socket.socket, line: bytes) -> None:
        rank = self._ranks[connection]
        if rank is None:
            secret, _, number = line.partition(b" ")
            if not hmac.compare_digest(secret, self._secret):
                raise ValueError("a stranger")
            self._ranks[connection] = int(number)
            return
        message = json.loads(line)
        with self._lock:
            if "failed" in message:
                call, text = message["failed"]
                self._judge.on_failure(rank, int(call), str(text), time.monotonic())
            else:
                self._judge.on_answer(rank, Whereabouts(*message["where"]), time.monotonic())


def start_watch(
    opened: Opened,
    rank: int,
    config: Config,
    where: Callable[[], Whereabouts],
    known_done: Callable[[], Mapping[int, int]],
    end_job: Callable[[str], None],
    limits: CallLimits | None = None,
) -> WatchClient | WatchServer:
    """Start this rank's end of the channel."""
    if opened.watch_listener is None:
        return WatchClient(opened.watch_address, opened.secret, rank, where)
    judge = StuckJudge(range(len(opened.peers)), config.stuck_comm_s, config.stuck_s)
    return WatchServer(opened.watch_listener, opened.secret, judge, where, end_job, known_done, wakeup_socket(), limits)
