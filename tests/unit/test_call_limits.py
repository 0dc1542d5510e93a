"""Which collective calls have a time limit, and when it is over."""

from __future__ import annotations

import faulthandler
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from taskfarm.errors import UsageError
from taskfarm.objects import time_limit
from taskfarm.runtime import call_limits
from taskfarm.runtime.call_limits import MAX_KEPT, CallLimits, run_alone, run_within
from taskfarm.runtime.session import current


def test_the_earliest_limit_wakes() -> None:
    """The watching thread is woken for a limit that ends before all others, and sleeps until the first is over."""
    limits = CallLimits()
    woken: list[float | None] = []
    limits.wake = lambda: woken.append(limits.seconds_left(0.0))
    assert limits.seconds_left(0.0) is None
    limits.begin(1, 10.0, "f", 0, 0.0)
    limits.begin(2, 20.0, "f", 0, 0.0)
    limits.begin(3, 5.0, "f", 0, 0.0)
    assert woken == [10.0, 5.0]
    assert limits.take_due({1: 0}, 4.9) == []
    assert [call for call, _ in limits.take_due({1: 0}, 5.0)] == [3]
    assert limits.seconds_left(6.0) == 4.0
    assert [call for call, _ in limits.take_due({1: 0}, 99.0)] == [1, 2] and limits.seconds_left(99.0) is None


def test_calls_that_are_known_to_be_over_are_not_due() -> None:
    """A call that rank 0 and all workers have left is forgotten; one that any of them may be in is due."""
    limits = CallLimits()
    for number in (1, 2, 3):
        limits.begin(number, 1.0, "module.f", 0, 0.0)
    limits.left(1)
    limits.left(3)
    assert limits.has_left(1) and not limits.has_left(2)
    due = limits.take_due({1: 2, 2: 5}, 2.0)
    assert due == [
        (2, "call 2 (module.f) has not ended on all ranks after its 1 s"),
        (3, "call 3 (module.f) has not ended on all ranks after its 1 s"),
    ]


def test_memory_is_bounded() -> None:
    """However many short calls a long limit is given to, those that have ended are not kept."""
    limits = CallLimits()
    for number in range(1, 5 * MAX_KEPT):
        limits.begin(number, 1e6, "f", number - 1, 0.0)
        limits.left(number)
    assert len(limits._limits) <= MAX_KEPT


def test_the_timer_runs_during_the_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's timer is set before its part begins and taken back behind it; a call inside leaves it alone."""
    told: list[Any] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda after, **kw: told.append((after, kw["exit"])))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: told.append("cancelled"))
    assert run_within(2.0, True, run_within, 1.0, True, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        run_within(2.0, False, divmod, 1, 0)
    end, show = 2.0 + call_limits.END_AFTER_S, 2.0 + call_limits.SHOW_AFTER_S
    assert told == [(end, True), "cancelled", (show, False), "cancelled"]


def test_a_rank_that_is_alone() -> None:
    """A call of the one rank that there is ends the program when its time is over, with its stack, and not before."""
    ended = threading.Event()
    texts: list[str] = []

    def end(text: str) -> None:
        texts.append(text)
        ended.set()

    assert run_alone(30.0, "call (f)", end, abs, -1) == 1
    run_alone(0.01, "call (f)", end, ended.wait, 30.0)
    assert "call (f) has not ended after its 0.01 s:" in texts[0] and Path(threading.__file__).name in texts[0]
    assert len(texts) == 1


def test_the_block_sets_the_limit_and_takes_it_back() -> None:
    """Blocks can be nested; what is no number of seconds is refused."""
    limits = current().call_limits
    with time_limit(5.0):
        with time_limit(None):
            assert limits.limit_s is None
        assert limits.limit_s == 5.0
    assert limits.limit_s is None
    for wrong in (0, -1.0, float("nan"), float("inf"), "soon"):
        with pytest.raises(UsageError, match="number of seconds above 0"), time_limit(wrong):  # type: ignore[arg-type]
            time.sleep(0)
