"""What a rank remembers: bounded, and with sums that stay exact."""

from __future__ import annotations

import functools
import itertools
import logging

import pytest

from taskfarm.runtime.recording.recorder import (
    MAX_MARKS,
    SEVERAL,
    MarkHandler,
    Recorder,
    Span,
    Track,
    max_spans,
    name_of,
    untimed,
)


class HandClock:
    """A clock that the test sets."""

    now = 0

    def __call__(self) -> int:
        return self.now


def spans_of(recorder: Recorder, track: Track) -> list[Span]:
    return [Span(*row) for row in recorder.recording().spans if row[0] == track]


def test_a_call_becomes_a_span_and_its_value_is_returned() -> None:
    clock = HandClock()
    recorder = Recorder(3, "host", clock=clock)

    def work(x: int, *, y: int) -> int:
        assert recorder.depth == 1
        clock.now = 70
        return x + y

    clock.now = 20
    assert recorder.call(Track.TASK, work, (1,), {"y": 2}, 5) == 3
    name = work.__qualname__
    assert spans_of(recorder, Track.TASK) == [Span(Track.TASK, name, 20, 70, 1, 50, 0, 5)]
    assert recorder.depth == 0


def test_an_exception_goes_through_and_is_marked() -> None:
    recorder = Recorder(1, "host")

    def fails() -> None:
        raise KeyError("secret")

    for run in (lambda: recorder.call(Track.TASK, fails, (), {}), recorder.timed(fails)):
        with pytest.raises(KeyError):
            run()
    recording = recorder.recording()
    assert [(mark.event, mark.text) for mark in recording.marks] == [("failed", f"{fails.__qualname__}: KeyError")] * 2
    assert [row[0] for row in recording.spans] == [Track.TASK, Track.ITEM]
    assert recorder.depth == 0


def test_a_timed_function_can_be_taken_out_again() -> None:
    """Tiny items of a map are not timed for ever."""
    timed = Recorder(1, "host").timed(max)
    assert timed(3, 2) == 3
    assert untimed(timed) is max
    assert untimed(max) is None


@pytest.mark.parametrize("n_tasks", [500, 100_000])
def test_memory_is_bounded_and_sums_are_exact(n_tasks: int) -> None:
    """Whatever the number of tasks, as many as 10**7 where 100,000 are kept: no time is lost, long spans stay whole."""
    clock = HandClock()
    recorder = Recorder(1, "host", max_spans=1000, clock=clock)
    long = {}
    for number in range(n_tasks):
        start = clock.now
        clock.now += 10_000_000_000 if number % 100 == 50 else 3_000 + number % 7
        if number % 100 == 50:
            long[start] = clock.now
        recorder.add(Track.ITEM, "even" if number % 2 else "odd", start, clock.now)
        recorder.add(Track.IDLE, "idle", clock.now, clock.now + 500)
        clock.now += 500
        assert len(recorder._spans) <= 1000
    recording = recorder.recording()
    items, idle = spans_of(recorder, Track.ITEM), spans_of(recorder, Track.IDLE)
    assert sum(span.n for span in items) == sum(span.n for span in idle) == n_tasks
    assert sum(span.busy for span in idle) == 500 * n_tasks
    assert sum(span.busy for span in items) == clock.now - 500 * n_tasks
    for spans in (items, idle):
        assert all(before.end <= after.start for before, after in itertools.pairwise(spans))
    if recording.resolution < 10_000_000_000:
        kept = {span.start: span.end for span in items if span.n == 1}
        assert long.items() <= kept.items()
    counted = sum(n for n, _, _ in recording.merged.values())
    assert counted + sum(span.n == 1 for span in items) == n_tasks
    total = sum(ns for _, ns, _ in recording.merged.values()) + sum(span.busy for span in items if span.n == 1)
    assert total == sum(span.busy for span in items)
    assert all(span.n == 1 or span.name in ("even", "odd", SEVERAL) for span in items)


def test_the_last_marks_are_kept_and_all_are_counted() -> None:
    recorder = Recorder(1, "host")
    for number in range(MAX_MARKS + 10):
        recorder.mark("retry", f"task {number}")
    recording = recorder.recording()
    assert recording.n_marks == MAX_MARKS + 10
    assert len(recording.marks) == MAX_MARKS
    assert recording.marks[-1].text == f"task {MAX_MARKS + 9}"


def test_warnings_that_are_logged_become_marks() -> None:
    """Who reports a retry or a loss logs it, and names the event; nobody has to know of traces."""
    recorder = Recorder(1, "host")
    logger = logging.getLogger("taskfarm.test_recorder")
    logger.propagate = False
    handler = MarkHandler(recorder)
    logger.addHandler(handler)
    try:
        logger.warning("rank 0: task %d runs again", 7, extra={"event": "retry"})
        logger.error("rank 2 is gone")
        logger.info("nothing")
    finally:
        logger.removeHandler(handler)
    marks = recorder.recording().marks
    assert [(mark.event, mark.text) for mark in marks] == [
        ("retry", "rank 0: task 7 runs again"),
        ("error", "rank 2 is gone"),
    ]


def test_warnings_are_still_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A program that has not set up logging sees them on standard error, as without a trace."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logger = logging.getLogger("taskfarm.test_recorder")
    monkeypatch.setattr(logger, "handlers", [MarkHandler(Recorder(1, "host"))])
    logger.warning("rank 1: one line")
    assert capsys.readouterr().err == "rank 1: one line\n"


def test_the_file_of_many_ranks_stays_readable() -> None:
    assert [max_spans(size) for size in (1, 4, 64, 100_000)] == [100_000, 100_000, 7812, 2000]


class Callable_:
    def __call__(self) -> None: ...


def test_functions_have_names() -> None:
    from taskfarm.objects._helpers import function_call, method_call

    assert name_of(functools.partial(functools.partial(len), [])) == "len"
    assert name_of(Callable_()) == "Callable_"
    assert name_of(function_call, (len, [1])) == "function_call(len)"
    assert name_of(method_call, (3, "solve", 1)) == "method_call(solve)"
    assert name_of(len, (max,)) == "len"
