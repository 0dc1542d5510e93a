"""The file: what Perfetto accepts, clocks on one scale, and what the summary and the picture make of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskfarm.errors import UsageError
from taskfarm.runtime.recording.recorder import Recorder, Track
from taskfarm.runtime.recording.trace_file import Clock, TraceFile
from taskfarm.trace.coverage import BATCH, OTHER, WAITING, coverage, rank_coverage
from taskfarm.trace.plot import Picture, save_plot
from taskfarm.trace.reading import Line, read_trace
from taskfarm.trace.summary import functions_of, summarise
from taskfarm.units import format_bytes, format_seconds

SECOND = 1_000_000_000
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def recorder_of(rank: int, host: str, started: int = 0) -> Recorder:
    now = [started]
    recorder = Recorder(rank, host, clock=lambda: now[0])
    recorder.now = now  # type: ignore[attr-defined]
    return recorder


def write(path: Path, n_workers: int = 3) -> None:
    """Rank r works for r of ten seconds in one task; rank 1 fails, rank 2 waits inside of its task for a second."""
    first = recorder_of(0, "alpha")
    first.add(Track.TASK, "call", 0, SECOND)
    first.add(Track.IDLE, "idle", SECOND, 10 * SECOND)
    first.sent[:] = 3, 1000
    with TraceFile(str(path), n_workers + 1) as file:
        file.add(first.recording(), [])
        for rank in range(1, n_workers + 1):
            shift = 100 * SECOND if rank == 3 else 0
            recorder = recorder_of(rank, "alpha" if rank < 3 else "beta", shift)
            recorder.add(Track.TASK, "work", shift, shift + rank * SECOND, number=rank)
            recorder.add(Track.IDLE, "idle", shift + rank * SECOND, shift + 10 * SECOND)
            if rank == 1:
                recorder.now[0] = SECOND  # type: ignore[attr-defined]
                recorder.mark("failed", "work: ValueError")
            if rank == 2:
                recorder.add(Track.WAIT, "wait", 0, SECOND)
            file.add(recorder.recording(), [Clock(shift, shift, 2_000), Clock(shift + 10 * SECOND, shift, 3_000)])
        file.finish([7])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "run.json")
    return tmp_path / "run.json"


def check_chrome_format(content: dict[str, Any]) -> None:
    """Fail unless `content` keeps the rules of the trace event format that viewers insist on."""
    assert isinstance(content["traceEvents"], list)
    named = {event["pid"] for event in content["traceEvents"] if event["ph"] == "M" and event["name"] == "process_name"}
    stacks: dict[tuple[int, int], list[float]] = {}
    spans = [event for event in content["traceEvents"] if event["ph"] == "X"]
    for event in content["traceEvents"]:
        assert event["ph"] in ("X", "M", "i")
        assert type(event["pid"]) is type(event["tid"]) is int
        assert type(event["name"]) is str
        assert event["pid"] in named
        for key in {"ts", "dur"} & set(event):
            assert math.isfinite(event[key])
            assert event[key] >= 0
        if event["ph"] == "i":
            assert event["s"] in ("g", "p", "t")
    for event in sorted(spans, key=lambda event: (event["ts"], -event["dur"])):
        stack = stacks.setdefault((event["pid"], event["tid"]), [])
        while stack and stack[-1] <= event["ts"] + 1e-3:
            stack.pop()
        assert not stack or event["ts"] + event["dur"] <= stack[-1] + 1e-3, (
            "spans of a line overlap, but are not nested"
        )
        stack.append(event["ts"] + event["dur"])


def test_the_file_keeps_the_rules_of_the_format(path: Path) -> None:
    content = json.loads(path.read_text())
    check_chrome_format(content)
    assert not path.with_name("run.json.part").exists()
    names = [event["args"]["name"] for event in content["traceEvents"] if event["name"] == "process_name"]
    assert names == ["rank 0 on alpha", "rank 1 on alpha", "rank 2 on alpha", "rank 3 on beta"]


def test_the_check_of_the_format_can_fail() -> None:
    """Two spans of a line that cross are what viewers drop without a word."""
    head = {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "rank 1"}}
    spans = [{"ph": "X", "name": "a", "pid": 1, "tid": 1, "ts": ts, "dur": 2.0} for ts in (0.0, 1.0)]
    with pytest.raises(AssertionError, match="overlap"):
        check_chrome_format({"traceEvents": [head, *spans]})


def test_clocks_of_ranks_are_put_on_that_of_rank_0(path: Path) -> None:
    """A rank whose clock is 100 s ahead works at the same time as the others."""
    trace = read_trace(path)
    assert [rank.lines[Track.TASK]["work"].start[0] for rank in trace.workers] == [0.0, 0.0, 0.0]
    assert [rank.clock.offset_s for rank in trace.ranks] == [0.0, 0.0, 0.0, 100.0]
    assert trace.ranks[3].clock.error_s == 3e-6


def test_waiting_to_be_asked_is_no_part_of_the_program(tmp_path: Path) -> None:
    """With hundreds of ranks, the last one waits long before it hands in what it did."""
    worker = recorder_of(1, "alpha")
    worker.add(Track.TASK, "work", 0, 4 * SECOND)
    worker.add(Track.IDLE, "idle", 4 * SECOND, 60 * SECOND)
    worker.add(Track.IDLE, "idle", 60 * SECOND, 61 * SECOND)
    with TraceFile(str(tmp_path / "run.json"), 2, ended=5 * SECOND) as file:
        file.add(recorder_of(0, "alpha").recording(), [])
        file.add(worker.recording(), [Clock(0, 0, 100)])
        file.finish([])
    trace = read_trace(tmp_path / "run.json")
    assert trace.length_s == 5.0
    idle = trace.ranks[1].lines[Track.IDLE]["idle"]
    assert (idle.end.tolist(), idle.seconds) == ([5.0], 1.0)


def test_drift_between_two_readings_is_taken_out(tmp_path: Path) -> None:
    """A clock that gains 1 ms in 10 s shows the end of a span 1 ms late; the trace does not."""
    ahead = 10 * SECOND + SECOND // 1000
    worker = recorder_of(1, "beta")
    worker.add(Track.TASK, "work", ahead // 2, ahead)
    with TraceFile(str(tmp_path / "run.json"), 2) as file:
        file.add(recorder_of(0, "alpha").recording(), [])
        file.add(worker.recording(), [Clock(0, 0, 100), Clock(ahead, SECOND // 1000, 100)])
        file.finish([])
    line = read_trace(tmp_path / "run.json").ranks[1].lines[Track.TASK]["work"]
    assert line.start[0] == pytest.approx(5.0, abs=1e-6)
    assert line.end[0] == pytest.approx(10.0, abs=1e-6)


@pytest.mark.parametrize(
    ("answer", "offset", "error"),
    [((1000, 1500, 2000), 0, 500), ((1000, 1900, 2000), 0, 500), ((1000, 5500, 2000), 4000, 500)],
)
def test_a_difference_within_the_uncertainty_is_none(answer: tuple[int, int, int], offset: int, error: int) -> None:
    """Ranks of one host have one clock; noise must not be written into it."""
    assert Clock.from_answer(*answer) == Clock(answer[1], offset, error)


def test_a_write_that_fails_leaves_the_old_file(path: Path) -> None:
    before = path.read_text()
    with pytest.raises(RuntimeError), TraceFile(str(path), 2):
        raise RuntimeError
    assert path.read_text() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"traceEvents": [], "taskfarm": {"format": 0}}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UsageError, match=r"x\.json is not a trace"):
        read_trace(tmp_path / "x.json")


def test_the_summary_counts_right(path: Path) -> None:
    """Busy: 1, 2 - 1 and 3 of ten seconds; the busiest has 3 / (5 / 3) of the mean."""
    trace = read_trace(path)
    assert [rank.busy_s for rank in trace.workers] == pytest.approx([1.0, 1.0, 3.0])
    sums = functions_of(trace.ranks)["work"]
    assert (sums.n, sums.seconds, sums.longest_s) == (3, 6.0, 3.0)
    text = summarise(trace)
    for part in (
        "run.json: 4 ranks on 2 hosts, 10 s",
        "Workers were busy 17% of the time; the busiest 80% longer than the mean.",
        "1 x failed: work: ValueError (first on rank 1, at 1 s)",
        "Ranks [7] handed in nothing",
        "Clocks are aligned to within 3 us; differences of up to 100 s were corrected.",
        "3 s  work, rank 3, at 0 s",
        "Transfers: 3 messages, 1 kB",
    ):
        assert part in text
    assert "drawn as one" not in text


def test_the_summary_says_what_was_merged(tmp_path: Path) -> None:
    recorder = Recorder(0, "alpha", max_spans=10, clock=lambda: 0)
    for start in range(0, 40_000, 1000):
        recorder.add(Track.TASK, "tiny", start, start + 500)
    with TraceFile(str(tmp_path / "run.json"), 1) as file:
        file.add(recorder.recording(), [])
        file.finish([])
    trace = read_trace(tmp_path / "run.json")
    sums = functions_of(trace.ranks)["tiny"]
    assert (sums.n, sums.seconds) == (40, pytest.approx(20e-6))
    assert "are drawn as one. Sums are exact." in summarise(trace)


@pytest.mark.parametrize("max_spans", [100, 5])
def test_items_that_are_timed_together_are_counted_once(tmp_path: Path, max_spans: int) -> None:
    """Whether or not there is place for all spans."""
    recorder = Recorder(0, "alpha", max_spans=max_spans, clock=lambda: 0)
    recorder.add(Track.ITEM, "tiny", 0, 900)
    for start in range(1000, 20_000, 2000):
        recorder.add_together("tiny", start, start + 1000, 50)
        recorder.add(Track.ITEM, "tiny", start + 1000, start + 1500)
    recorder.add_together("tiny", 30_000, 30_100, 1)
    recorder.add_together("tiny", 30_100, 30_100, 0)
    with TraceFile(str(tmp_path / "run.json"), 1) as file:
        file.add(recorder.recording(), [])
        file.finish([])
    trace = read_trace(tmp_path / "run.json")
    sums = functions_of(trace.ranks)["tiny"]
    assert (sums.n, sums.seconds, sums.longest_s) == (512, pytest.approx(16e-6), pytest.approx(0.9e-6))
    assert sum(line.n.sum() for line in trace.ranks[0].lines[Track.ITEM].values()) == 512
    assert ("timed together" in summarise(trace)) == (max_spans == 100)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (2.5e-6, "2.5 us"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (600.0, "10 min"), (7200.0, "2 h")],
)
def test_times_have_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (999, "999 B"), (2048, "2.05 kB"), (5e15, "5,000 TB")])
def test_sizes_have_units(n: float, text: str) -> None:
    assert format_bytes(n) == text


def test_coverage_is_exact() -> None:
    """A span, a merged one that was busy for half of its length, and nothing behind them."""
    line = Line.of([(0.0, 1.5, 1.5, 1, 0), (2.0, 4.0, 1.0, 7, 0)])
    np.testing.assert_allclose(coverage([line], np.arange(7.0)), [1.0, 0.5, 0.5, 0.5, 0.0, 0.0])
    assert coverage([], np.arange(3.0)).tolist() == [0.0, 0.0]


def test_waiting_takes_its_share_of_a_task(path: Path) -> None:
    trace = read_trace(path)
    shares = rank_coverage(trace.ranks[2], ["work"], np.array([0.0, 1.0, 2.0, 3.0]))
    np.testing.assert_allclose(shares["work"], [0.0, 1.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(shares[WAITING], [1.0, 0.0, 0.0], atol=1e-9)
    assert not shares[OTHER].any()
    assert not shares[BATCH].any()


def test_the_picture_shows_who_worked_when(path: Path) -> None:
    picture = Picture.of(read_trace(path), n_bins=100)
    np.testing.assert_allclose(picture.working.mean(axis=1), [0.1, 0.1, 0.1, 0.3], atol=1e-6)
    image = picture.image()
    assert image.shape == (4, 100, 3)
    assert len({tuple(image[row, column].round(3)) for row, column in [(3, 10), (3, 90), (2, 5)]}) == 3


@pytest.mark.parametrize("n_workers", [0, 3, 60])
def test_the_picture_is_drawn(tmp_path: Path, n_workers: int) -> None:
    pytest.importorskip("matplotlib")
    write(tmp_path / "run.json", n_workers)
    save_plot(read_trace(tmp_path / "run.json"), tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(PNG_SIGNATURE)
