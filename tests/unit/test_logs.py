"""Log records: one form for all ranks, and all on rank 0 where that is wanted."""

from __future__ import annotations

import logging
import pickle
import sys
import threading
from collections.abc import Iterator

import pytest

from taskfarm.errors import ProtocolError
from taskfarm.runtime.logs import Forwarder, RankFormatter, handle_record, show
from taskfarm.runtime.options import LogOption
from taskfarm.transport.local import LocalHub
from taskfarm.wire.frames import Kind


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was before when the test is over."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def record(message: str, *args: object, name: str = "taskfarm.x", exc_info: object = None) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.WARNING, "file.py", 7, message, args, exc_info)  # type: ignore[arg-type]
    made.created, made.msecs = 0.0, 5.0
    return made


def lines(made: logging.LogRecord) -> list[str]:
    """Return the formatted lines without the time, which depends on the zone."""
    parts = [line.split(" ", 4) for line in RankFormatter(3, "node7").format(made).splitlines()]
    return [" ".join([*part[:3], part[4]]) for part in parts]


def test_rank_and_host_come_first() -> None:
    """Our own messages, which say the rank for other formats, do not say it twice; that of another rank stays."""
    head = "rank 3 node7 WARNING taskfarm.x:"
    parts = RankFormatter(3, "node7").format(record("rank %d: waits", 3)).split(" ", 5)
    assert [*parts[:3], *parts[4:]] == ["rank", "3", "node7", "WARNING", "taskfarm.x: waits"]
    assert parts[3].endswith(".005")
    assert RankFormatter(3, "node7").format(record("rank 30: waits")).endswith("taskfarm.x: rank 30: waits")
    assert RankFormatter(3, "node7").format(record("two\nlines")).count("\n") == 0
    assert head.startswith("rank 3 node7")


def test_every_line_of_a_traceback_tells_its_rank() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        made = record("failed", exc_info=sys.exc_info())
    text = RankFormatter(3, "node7").format(made).splitlines()
    assert text[0].endswith("taskfarm.x: failed")
    assert text[-1].endswith("KeyError: 'x'")
    assert all(line.startswith("rank 3 node7 ") for line in text)


def test_showing_twice_writes_once(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    show("INFO", 2, "node7")
    show("WARNING", 2, "node7")
    logging.getLogger("user").warning("here")
    logging.getLogger("user").info("not here")
    error = capsys.readouterr().err
    assert error.count("here") == 1
    assert error.startswith("rank 2 node7 ")


def test_records_travel_to_rank_0(root: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    """With their logger, level and time, and what cannot be pickled as text."""
    first, second = LocalHub(2).transports()
    forwarder = Forwarder(second, "node7")
    made = record("lost %s", threading.Lock())
    made.event = "retry"
    forwarder.emit(made)
    item = first.receive_nowait()
    assert item is not None
    source, frame = item
    assert (source, frame.kind, frame.option) == (1, Kind.LOG, LogOption.RECORD)
    handle_record(source, frame.body)
    (found,) = caplog.records
    assert (found.name, found.levelname, found.created) == ("taskfarm.x", "WARNING", 0.0)
    assert found.getMessage().startswith("lost <unlocked _thread.lock")
    assert (found.rank, found.host, found.event) == (1, "node7", "retry")  # type: ignore[attr-defined]
    assert RankFormatter(0, "node0").format(found).startswith("rank 1 node7 ")


def test_rank_0_decides_what_is_shown(root: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("quiet").setLevel(logging.ERROR)
    handle_record(1, pickle.dumps({"name": "quiet", "levelno": logging.WARNING, "msg": "x"}))
    assert caplog.records == []


def test_records_of_other_threads_wait_for_the_one_that_talks_to_mpi() -> None:
    """Two threads in MPI at a time would be a crash."""
    first, second = LocalHub(2).transports()
    forwarder = Forwarder(second, "node7")
    thread = threading.Thread(target=forwarder.emit, args=(record("from a thread"),))
    thread.start()
    thread.join()
    assert first.receive_nowait() is None
    forwarder.emit(record("from the main thread"))
    texts = []
    while (item := first.receive_nowait()) is not None:
        texts.append(pickle.loads(item[1].body)["msg"])
    assert texts == ["from a thread", "from the main thread"]


def test_a_record_that_sending_makes_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that logs while it sends does not send inside of its sending."""
    first, second = LocalHub(2).transports()
    forwarder = Forwarder(second, "node7")
    depth = [0]
    send = second.send

    def send_and_log(dest: int, frame: object) -> None:
        depth[0] += 1
        assert depth[0] == 1
        if first.receive_nowait() is None:
            forwarder.emit(record("while sending"))
        send(dest, frame)  # type: ignore[arg-type]
        depth[0] -= 1

    monkeypatch.setattr(second, "send", send_and_log)
    forwarder.emit(record("first"))
    assert first.receive_nowait() is not None


@pytest.mark.parametrize("content", [[], {"name": 3}])
def test_other_content_is_refused(content: object) -> None:
    with pytest.raises(ProtocolError):
        handle_record(1, pickle.dumps(content))
