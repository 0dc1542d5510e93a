"""What controller and workers have in common: taking in frames, and messages between tasks."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from struct import Struct
from typing import Any

from taskfarm.config import Config
from taskfarm.errors import ProtocolError
from taskfarm.fast import new_tuple
from taskfarm.runtime.arrays import ArrayExchange
from taskfarm.runtime.call_limits import CallLimits
from taskfarm.runtime.registry import Registry
from taskfarm.runtime.survival.vitals import no_marks
from taskfarm.scheduling.mailbox import Letter, Mailbox
from taskfarm.scheduling.quiescence import RankStatus, Wait
from taskfarm.transport.base import Transport, raise_if_interrupted
from taskfarm.wire.codec import empty_buffer, pack
from taskfarm.wire.frames import Buffer, Frame, Kind

__all__ = ["TASK_ENDED", "CutOff", "Endpoint", "Surroundings", "TaskEnded"]

logger = logging.getLogger(__name__)

_STATUS = Struct("<qqqq")
_MESSAGE = Kind.MESSAGE  # hot path: see `taskfarm.fast`
_NOT, _FOR_EVER, _FOR_A_TIME = Wait.NOT, Wait.FOR_EVER, Wait.FOR_A_TIME
LOOK_EVERY_S = 50e-6  # calls in quick succession go out without a look for failures each, which takes 1 us
_MISSES = 2  # a first MPI probe may only make progress and let the second one see the message (MPICH 5)


class TaskEnded(Enum):
    """Content of the letter that a task's end makes; that of a message or a result is the frame."""

    TASK_ENDED = "task ended"


TASK_ENDED = TaskEnded.TASK_ENDED


ReportFailure = Callable[[int, str], None]


@dataclass(frozen=True)
class Surroundings:
    """What an endpoint needs of the rest of its rank.

    Attributes
    ----------
    host : str
        Name of this rank's host.
    registry : Registry
        Its managed objects.
    config : Config
        Its options.
    renew_comm : callable
        Replaces the user's communicator; collective.
    n_comm_entries : callable
        Returns how often this rank has used the user's communicator.
    start_watch : callable
        Starts the watch channel; returns a function to be told of (call number, text) when this rank raises in a call.
    call_limits : CallLimits
        How long calls may take.
    """

    host: str
    registry: Registry
    config: Config
    renew_comm: Callable[[], None]
    n_comm_entries: Callable[[], int]
    start_watch: Callable[[], ReportFailure]
    call_limits: CallLimits = field(default_factory=CallLimits)

    @classmethod
    def without_calls(cls, registry: Registry, config: Config) -> Surroundings:
        """Return those of a process that takes part in no collective calls: an executor's, outside of the session."""
        return cls(socket.gethostname(), registry, config, lambda: None, lambda: 0, lambda: lambda call, text: None)


class Endpoint:
    """One rank's side of the session.

    Parameters
    ----------
    transport : Transport
        Moves the frames.
    surroundings : Surroundings
        The rest of the rank.
    number : int or None
        Number of the task that runs here from the start: 0 on rank 0, whose task is the main program.

    Attributes
    ----------
    current_call : int
        Number of the collective call that this rank is inside of; 0 if it is in none.
    mailbox : Mailbox
        Messages for the task that runs here.
    arrays : ArrayExchange
        Arrays from and into its memory.
    debug : int
        How much to tell of tasks.
    may_lose : bool
        Whether the job goes on when a rank dies.
    marks : memoryview of int64
        What the supervisor is to know of this rank, by `taskfarm.runtime.survival.vitals.Mark`.
    """

    def __init__(self, transport: Transport, surroundings: Surroundings, number: int | None) -> None:
        self.transport = transport
        self._surroundings = surroundings
        self.registry = self._registry = surroundings.registry
        self._report: ReportFailure | None = None
        self.mailbox: Mailbox = Mailbox(number)
        self.arrays = ArrayExchange(self)
        self.current_call = 0
        self.debug = 0
        self.may_lose = False
        self.marks = no_marks()
        self._n_sent = 0
        self._n_received = 0
        self._waits = Wait.NOT
        self._served_at = -math.inf
        self._handlers: dict[Kind, Callable[[int, Frame], None]] = {
            Kind.MESSAGE: self.on_message,
            Kind.ARRAY: self.arrays.on_frame,
            Kind.QUERY: self.on_query,
        }

    def watch(self) -> ReportFailure:
        """Return where failures in calls are reported; the first call starts the watch channel."""
        if self._report is None:
            self._report = self._surroundings.start_watch()
        return self._report

    # Taking in

    def add_handler(self, kind: Kind, handler: Callable[[int, Frame], None]) -> None:
        """Have frames of `kind` handled by `handler` from now on."""
        self._handlers[kind] = handler

    def handle(self, source: int, frame: Frame) -> None:
        """React to one frame; a frame that does not fit is logged and changes nothing."""
        handler = self._handlers.get(frame.kind)
        if handler is None:
            logger.error("rank %d: dropped a %s frame from rank %d", self.transport.rank, frame.kind.name, source)
            return
        try:
            handler(source, frame)
        except ProtocolError as exc:
            logger.error(
                "rank %d: dropped a %s frame from rank %d: %s", self.transport.rank, frame.kind.name, source, exc
            )

    def serve_now_and_then(self) -> None:
        """React to every frame that is here, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._served_at >= LOOK_EVERY_S:
            self._served_at = now
            self.serve_nowait()

    def serve_nowait(self) -> None:
        """React to every frame that is here."""
        receive_nowait = self.transport.receive_nowait
        misses = 0
        while misses < _MISSES:
            item = receive_nowait()
            if item is None:
                misses += 1
            else:
                misses = 0
                self.handle(*item)
        if self.transport.interrupted:
            raise_if_interrupted(self.transport)

    def serve_until(self, condition: Callable[[], bool], deadline: float = math.inf) -> bool:
        """React to frames until `condition` holds (True) or `deadline` has passed (False)."""
        while not condition():
            item = self.transport.receive(deadline)
            if item is not None:
                self.handle(*item)
            elif time.monotonic() >= deadline:
                return condition()
        return True

    def on_message(self, source: int, frame: Frame) -> None:
        """Put a message into the mailbox."""
        self._n_received += 1
        self.mailbox.put(new_tuple(Letter, (source, frame.a, frame.b, frame)))

    def on_query(self, source: int, frame: Frame) -> None:
        """Answer what this rank waits for."""
        self.transport.send(source, Frame(Kind.STATUS, frame.a, body=self.write_status(self.status())))

    def status(self) -> RankStatus:
        """Return this rank's answer to a query."""
        arrays = self.arrays
        arrays.drop_late_answers()
        return RankStatus(
            self.mailbox.number or 0,
            self._waits or arrays.waits,
            self._n_sent + arrays.n_sent,
            self._n_received + arrays.n_received,
        )

    @staticmethod
    def write_status(status: RankStatus) -> bytes:
        """Return the body of a STATUS frame."""
        return _STATUS.pack(status.task, status.waits, status.n_sent, status.n_received)

    @staticmethod
    def read_status(body: Buffer) -> RankStatus:
        """Return the status in the body of a STATUS frame."""
        if len(body) != _STATUS.size:
            raise ProtocolError(f"a STATUS body has {len(body)} bytes")
        task, waits, n_sent, n_received = _STATUS.unpack(body)
        if waits not in (Wait.NOT, Wait.FOR_EVER, Wait.FOR_A_TIME):
            raise ProtocolError(f"a STATUS body says that a task waits in way {waits}")
        return RankStatus(task, Wait(waits), n_sent, n_received)

    # Messages between tasks

    def is_reachable(self, rank: int, number: int) -> bool:
        """Tell whether there may be a task `number` on `rank`; False if it is known to have ended."""
        raise NotImplementedError

    def send_message(self, dest: int, number: int, obj: Any) -> bool:
        """Send `obj` to task `number` on rank `dest`; what cannot be sent at once is copied.

        Returns
        -------
        bool
            False, and nothing was sent, if there is no such task.

        Raises
        ------
        Exception
            What pickling raises; nothing was sent then.
        """
        if not self.is_reachable(dest, number):
            return False
        body, buffers = pack(obj)
        frame = new_tuple(Frame, (_MESSAGE, self.mailbox.number or 0, number, 0, body, buffers))
        if dest == self.transport.rank:
            copy = frame._replace(buffers=[_copy(buffer) for buffer in buffers])
            self.mailbox.put(Letter(dest, frame.a, number, copy))
            return True
        self._n_sent += 1
        if buffers:  # the receiver may be busy for long, and the caller may change its arrays
            self.transport.send_or_copy(dest, frame)
        else:
            self.transport.send(dest, frame)
        if self.transport.n_unsent:
            self.serve_nowait()
        return True

    def take_letter(self, deadline: float, rank: int | None = None) -> Letter | None:
        """Hand out the next letter for the task that runs here, of `rank` if given, until `deadline`; None then."""
        raise NotImplementedError

    def receive_letter(self, deadline: float, rank: int | None = None) -> Letter | None:
        """Wait for a letter, of `rank` if given, until `deadline`; None then."""
        mailbox = self.mailbox
        for_ever = deadline == math.inf
        while (letter := mailbox.take(rank)) is None:
            if not for_ever and time.monotonic() >= deadline:  # whatever else arrives, one deadline bounds the wait
                self.serve_nowait()
                return mailbox.take(rank)
            self._waits = _FOR_EVER if for_ever else _FOR_A_TIME
            try:
                item = self.transport.receive(deadline)
                if item is not None:
                    self.handle(*item)
            finally:
                self._waits = _NOT
        return letter

    def check_waiting(self) -> None:
        """Raise if the running task must not wait for others any more."""

    def may_send(self, rank: int | None, number: int | None) -> bool:
        """Tell whether a task (number `number`, on `rank`; None: any) may still send; True where that is not known."""
        return True

    def check_letter(self, rank: int | None = None) -> bool:
        """Tell whether a letter, of `rank` if given, is here."""
        self.serve_nowait()
        return self.mailbox.holds(rank)


def _copy(buffer: Buffer) -> memoryview:
    copy = empty_buffer(len(buffer))
    copy[:] = buffer
    return copy


class CutOff(BaseException):
    """Ends a task that waits for another one when the session ends; not an `Exception`, so that it gets through."""
