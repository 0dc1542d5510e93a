"""Log records of all ranks in one form, and on request all on rank 0.

A line begins with rank and host, so that lines of a job can be sorted and searched::

    rank 3 node007 14:03:12.345 WARNING taskfarm.runtime.session: waits for rank 0

`show` gives the root logger of this process a handler that writes such lines to standard error. `Forwarder` is the
handler of a worker that sends its records to rank 0 instead, whose handlers treat them as their own.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import socket
import threading
from collections import deque

from taskfarm.config import Config
from taskfarm.errors import ProtocolError
from taskfarm.runtime.launching.surroundings import promised_rank
from taskfarm.runtime.options import LogOption
from taskfarm.runtime.worker import Worker
from taskfarm.transport.base import Transport
from taskfarm.wire.frames import Buffer, Frame, Kind

__all__ = ["Forwarder", "RankFormatter", "configure", "handle_record", "show", "show_as_asked"]

_OWN_RANK = re.compile(r"rank (\d+): ")  # how messages of taskfarm begin, which say it for other formats


class RankFormatter(logging.Formatter):
    """Puts rank and host first; a message is one line, and each line of a traceback begins like it."""

    def __init__(self, rank: int, host: str) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: ", "%H:%M:%S")
        self._rank = rank
        self._host = host

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        rank, host = getattr(record, "rank", self._rank), getattr(record, "host", self._host)
        message = record.getMessage()
        own = _OWN_RANK.match(message)
        if own is not None and int(own[1]) == rank:
            message = message[own.end() :]
        record.asctime = self.formatTime(record, self.datefmt)
        head = f"rank {rank} {host} " + self.formatMessage(record)
        trace = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        lines = [" | ".join(message.splitlines()), *trace.splitlines()]
        return "\n".join(head + line for line in lines)


def show(level: str, rank: int, host: str) -> None:
    """Write what is logged from `level` on to standard error; repeating it only sets the level."""
    root = logging.getLogger()
    if not any(isinstance(handler.formatter, RankFormatter) for handler in root.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(RankFormatter(rank, host))
        root.addHandler(handler)
    root.setLevel(level)


class Forwarder(logging.Handler):
    """Sends the records of a worker to rank 0.

    Only one thread talks to MPI: records of others wait for its next one, or for the end of the session. So do those
    that are made while one is being sent.

    Parameters
    ----------
    transport : Transport
        Moves them.
    host : str
        Name of this rank's host.
    """

    def __init__(self, transport: Transport, host: str) -> None:
        super().__init__()
        self._transport = transport
        self._host = host
        self._thread = threading.get_ident()
        self._waiting: deque[bytes] = deque()
        self._sends = False

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, or keep it."""
        trace = record.exc_text
        if record.exc_info and not trace:
            trace = logging.Formatter().formatException(record.exc_info)
        fields = {
            "name": record.name, "levelno": record.levelno, "levelname": record.levelname, "msg": record.getMessage(),
            "created": record.created, "msecs": record.msecs, "exc_text": trace, "host": self._host,
            "pathname": record.pathname, "lineno": record.lineno, "event": getattr(record, "event", None),
        }  # fmt: skip
        self._waiting.append(pickle.dumps(fields))
        if threading.get_ident() == self._thread and not self._sends:
            self.send_waiting()

    def send_waiting(self) -> None:
        """Send all records that wait; in the thread that talks to MPI."""
        self._sends = True
        try:
            while self._waiting:
                self._transport.send(0, Frame(Kind.LOG, option=LogOption.RECORD, body=self._waiting.popleft()))
        finally:
            self._sends = False


def handle_record(rank: int, body: Buffer) -> None:
    """Hand a record of another rank to the handlers of this one."""
    fields = pickle.loads(body)
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise ProtocolError("a LOG frame that holds no record")
    record = logging.makeLogRecord({**fields, "rank": rank})
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def configure(config: Config, transport: Transport, host: str, worker: Worker | None) -> None:
    """Do what `config` wants of the log records of this rank, whose session opens."""
    if config.log:
        show(config.log, transport.rank, host)
    if config.forward_logs and worker is not None:
        _forward(worker, host, config.log or "INFO")


def _forward(worker: Worker, host: str, level: str) -> None:
    root = logging.getLogger()
    forwarder = Forwarder(worker.transport, host)
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler.formatter, RankFormatter)]
    root.addHandler(forwarder)
    root.setLevel(level)

    def on_quit(source: int, frame: Frame) -> None:
        root.removeHandler(forwarder)
        forwarder.send_waiting()
        worker.on_quit(source, frame)

    worker.add_handler(Kind.QUIT, on_quit)


def show_as_asked() -> None:
    """Do what ``TASKFARM_LOG`` says before MPI is started, so that the program's first lines have the form, too."""
    level = os.environ.get("TASKFARM_LOG")
    if level and os.environ.get("TASKFARM_FORWARD_LOGS") != "1":
        show(Config.from_environment({"TASKFARM_LOG": level}).log, promised_rank(os.environ), socket.gethostname())
