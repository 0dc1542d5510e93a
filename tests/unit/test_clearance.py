"""Questions and promises about large messages, without bytes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from taskfarm.transport.clearance import Clearance, Signal, patience_s
from taskfarm.wire.frames import parse_signal

FOR_EVER = float("inf")


@dataclass
class Arrival:
    """A frame that is coming in."""

    is_posted: bool = True
    is_complete: bool = False
    bulk_bytes: int = 1_000_000


class Side:
    """One rank's clearance, and what it posts."""

    def __init__(self) -> None:
        self.posted: list[tuple[int, int, int]] = []
        self.clearance = Clearance(self._post)

    def _post(self, dest: int, data: bytes) -> None:
        signal = parse_signal(data)
        assert signal is not None
        self.posted.append((dest, *signal))

    def hear(self, source: int, signal: Signal, number: int, arrival: Arrival | None = None, left: float = 0.0) -> None:
        self.clearance.on_signal(source, signal, number, arrival, left)


@pytest.fixture
def side() -> Side:
    return Side()


def test_a_waiting_receiver_promises(side: Side) -> None:
    """A receiver that has posted everything and stays says yes, and must not leave before the frame is complete."""
    arrival = Arrival()
    side.hear(3, Signal.ASK, 17, arrival, FOR_EVER)
    assert side.posted == [(3, Signal.CLEAR, 17)]
    assert side.clearance.has_open_promises()
    arrival.is_complete = True
    assert not side.clearance.has_open_promises()


@pytest.mark.parametrize(
    ("arrival", "left"),
    [
        (None, FOR_EVER),  # the head has made no sense
        (Arrival(is_posted=False), FOR_EVER),  # other messages come first
        (Arrival(), -FOR_EVER),  # it is in no wait
        (Arrival(), 0.0),
        (Arrival(bulk_bytes=1 << 40), 10.0),  # it will leave before all is here
    ],
)
def test_others_promise_nothing(side: Side, arrival: Arrival | None, left: float) -> None:
    """Who cannot keep a promise gives none; the sender then copies."""
    side.hear(3, Signal.ASK, 17, arrival, left)
    assert side.posted == []
    assert not side.clearance.has_open_promises()


def test_a_withdrawn_question_frees_the_receiver(side: Side) -> None:
    """A sender that copies after all may be away for long: nobody waits for it. An older withdrawal means nothing."""
    side.hear(3, Signal.ASK, 17, Arrival(), FOR_EVER)
    side.hear(3, Signal.WITHDRAW, 16)
    side.hear(2, Signal.WITHDRAW, 17)
    assert side.clearance.has_open_promises()
    side.hear(3, Signal.WITHDRAW, 17)
    assert not side.clearance.has_open_promises()


def test_promises_to_several_senders(side: Side) -> None:
    """Each is kept by itself."""
    first, second = Arrival(), Arrival()
    side.hear(1, Signal.ASK, 5, first, FOR_EVER)
    side.hear(2, Signal.ASK, 5, second, FOR_EVER)
    second.is_complete = True
    assert side.clearance.has_open_promises()
    assert list(side.clearance.promised) == [1]
    first.is_complete = True
    assert not side.clearance.has_open_promises()


def test_only_the_last_question_is_answered(side: Side) -> None:
    """A clearance that comes too late is none for the next message."""
    side.clearance.ask(1)
    (_, _, first), *_ = side.posted
    side.clearance.withdraw(1)
    side.clearance.ask(1)
    (_, _, second) = side.posted[-1]
    assert side.posted == [(1, Signal.ASK, first), (1, Signal.WITHDRAW, first), (1, Signal.ASK, second)]
    side.hear(1, Signal.CLEAR, first)
    assert not side.clearance.is_clear
    side.hear(1, Signal.CLEAR, second)
    assert side.clearance.is_clear
    side.clearance.ask(2)
    assert not side.clearance.is_clear


def test_unknown_signals_change_nothing(side: Side) -> None:
    """A stray signal is no clearance."""
    side.clearance.ask(1)
    for signal in (0, 1, 5, 255):
        side.clearance.on_signal(1, signal, 1, Arrival(), FOR_EVER)
    assert not side.clearance.is_clear
    assert len(side.posted) == 1


def test_patience_grows_with_the_copy() -> None:
    """Who asks waits about as long as copying takes, so that it costs at most twice that."""
    assert 0.0 < patience_s(0) < 1e-3
    assert 0.1 < patience_s(1 << 30) < 1.0
