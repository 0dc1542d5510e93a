"""An executor over a farm within this process: workers are threads, frames go through the local transport."""

from __future__ import annotations

import concurrent.futures as std
import itertools
import pickle
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from runtime_support import LIMIT_S, LocalFarm, local_farm

from taskfarm.config import Config
from taskfarm.errors import RemoteError, UsageError
from taskfarm.futures import Executor, ExecutorBrokenError
from taskfarm.futures._comm import _CommExecutor
from taskfarm.futures._ending import note_broken
from taskfarm.futures._future import broken
from taskfarm.futures._tasks import TaskJob
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.crews import Hall
from taskfarm.runtime.executor.portions import Part, Singles, parts_frame
from taskfarm.runtime.executor.relay_crew import RelayCrew
from taskfarm.runtime.session import Session
from taskfarm.wire.frames import Frame, Kind

# By number of ranks: with 2 and 4 of them rank 0 feeds all workers, with 3 and 6 it feeds groups.
GROUPS = {3: {1: (2,)}, 6: {1: (2, 3), 4: (5,)}}


@pytest.fixture(params=[2, 4, *GROUPS])
def farm(request: pytest.FixtureRequest) -> Iterator[LocalFarm]:
    with local_farm(request.param) as farm:
        yield farm


def new_crew(farm: LocalFarm) -> Crew:
    """Return a crew of all workers."""
    groups = GROUPS.get(farm.hub.size)
    return RelayCrew(farm.controller, groups) if groups else Crew(farm.controller, range(1, farm.hub.size))


@pytest.fixture
def executor(farm: LocalFarm) -> Iterator[Executor]:
    crew = new_crew(farm)
    hall = Hall(Session(Config(blas_threads=0)), crew, lambda deadline: None)
    executor = _CommExecutor(hall)
    yield executor
    executor.shutdown()
    hall.close()
    crew.dealer.check_invariants()
    assert not crew.is_busy


class Oops(Exception):
    pass


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("not this one")


def fail_at(x: int, bad: int) -> int:
    if x == bad:
        raise Oops(x)
    return x


def test_tasks(executor: Executor) -> None:
    """Results and failures of many tasks belong to their futures."""
    futures = [executor.submit(fail_at, i, 70) for i in range(200)]
    assert [future.exception(LIMIT_S) is None for future in futures] == [i != 70 for i in range(200)]
    assert [future.result() for i, future in enumerate(futures) if i != 70] == [i for i in range(200) if i != 70]
    error = futures[70].exception()
    assert type(error) is Oops and type(error.__cause__) is RemoteError


def test_maps(executor: Executor) -> None:
    """Maps of all shapes give what the built-in one gives."""
    assert list(executor.map(abs, range(-5000, 0))) == list(range(5000, 0, -1))
    assert list(executor.map(pow, [1, 2, 3], iter([1, 2, 3]))) == [1, 4, 27]
    assert list(executor.starmap(pow, [(2, 3)] * 100, chunksize=7)) == [8] * 100
    assert sorted(executor.map_unordered(abs, iter(range(500)))) == list(range(500))
    results = executor.map(fail_at, range(100), [50] * 100)
    assert [next(results) for _ in range(50)] == list(range(50))
    with pytest.raises(Oops):
        next(results)


def test_no_more_is_read_than_is_wanted(executor: Executor) -> None:
    """While another thread is at it, and the crew learns of nothing, a map reads no more than it was to have ahead."""
    n_read = 0

    def items() -> Iterator[int]:
        nonlocal n_read
        while n_read < 100_000:
            n_read += 1
            yield n_read

    executor.submit(abs, 1).result(LIMIT_S)
    crew = executor._crew
    with crew._lock:
        results = executor.map(abs, items())
    assert 0 < n_read < 1000
    results.close()


def test_placed_tasks_are_not_for_groups(farm: LocalFarm, executor: Executor) -> None:
    """Where groups have controllers of their own, a task for particular workers is refused with the way out."""
    if farm.hub.size in GROUPS:
        with pytest.raises(UsageError, match="TASKFARM_GROUP_SIZE=0"):
            executor.with_options(ranks_in=[2]).submit(abs, -1)
    else:
        assert executor.with_options(ranks_in=[1]).submit(abs, -1).result(LIMIT_S) == 1


def test_busy_workers_of_groups(farm: LocalFarm, executor: Executor) -> None:
    """What the live view shows: who works, and how much is under way; nobody and nothing at the end."""
    gate = threading.Event()
    gates.append(gate)
    executor.submit(abs, 1).result(LIMIT_S)
    crew = executor._crew
    futures = [executor.submit(wait_at_gate, len(gates) - 1) for _ in range(executor.num_workers)]
    assert len(crew.busy_workers) == executor.num_workers and crew.busy_workers <= set(crew.workers)
    assert crew.n_in_hand == executor.num_workers
    gate.set()
    std.wait(futures, LIMIT_S)
    assert not crew.busy_workers and crew.n_in_hand == 0


def test_one_item_fails_alone(executor: Executor) -> None:
    """An item that does not pickle fails in its place, whatever batch it was to go in."""
    for bad in (0, 3, 17):
        items: list[Any] = list(range(20))
        items[bad] = Unpicklable()
        results = executor.map(type, items, chunksize=5)
        assert [next(results) for _ in range(bad)] == [int] * bad
        with pytest.raises(ValueError, match="not this one"):
            next(results)


def test_arrays_are_the_receivers_own(executor: Executor) -> None:
    """What a task gets and what it returns is nobody else's memory, also for tasks that had to wait."""
    array = np.zeros(50_000)
    futures = []
    for value in range(10):
        array[:] = value
        futures.append(executor.submit(np.add, array, 0.5))
    assert [float(future.result(LIMIT_S)[-1]) for future in futures] == [value + 0.5 for value in range(10)]


def test_cancelled_tasks_are_not_run(executor: Executor) -> None:
    """What is cancelled while it waits is never run, and those around it are."""
    gate = threading.Event()
    ran: list[int] = []
    gates.append(gate)
    logs.append(ran)
    blocking = [executor.submit(wait_at_gate, len(gates) - 1) for _ in range(executor.num_workers)]
    futures = [executor.submit(note, len(logs) - 1, i) for i in range(30)]
    cancelled = {i for i, future in enumerate(futures) if i % 3 == 0 and future.cancel()}
    gate.set()
    _, not_done = std.wait([*futures, *blocking], LIMIT_S)
    assert not not_done
    assert len(cancelled) >= 8
    assert sorted(ran) == [i for i in range(30) if i not in cancelled]


def test_cancelling_ends_a_wait(executor: Executor) -> None:
    """A thread that waits for a task which is cancelled is told at once, not when the next result comes."""
    gate = threading.Event()
    gates.append(gate)
    blocking = [executor.submit(wait_at_gate, len(gates) - 1) for _ in range(2 * executor.num_workers)]
    future = executor.submit(abs, -1)
    found: list[BaseException] = []

    def wait_for_it() -> None:
        try:
            future.result()
        except std.CancelledError as exc:
            found.append(exc)

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    try:
        while not executor._crew.is_led:
            time.sleep(0.001)
        assert future.cancel()
        thread.join(LIMIT_S)
        assert len(found) == 1
    finally:
        gate.set()
    std.wait(blocking, LIMIT_S)


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False


def raise_falsy() -> None:
    raise Falsy


def test_an_exception_that_is_false(executor: Executor) -> None:
    """It is raised like any other."""
    with pytest.raises(Falsy):
        executor.submit(raise_falsy).result(LIMIT_S)


def test_broken_as_the_process_pool_of_the_standard_library(executor: Executor) -> None:
    """Programs that catch `BrokenProcessPool` go on catching; the error still travels as what it is."""
    from concurrent.futures.process import BrokenProcessPool

    assert executor.submit(abs, -1).result(LIMIT_S) == 1
    note_broken(weakref.ref(executor), broken(OSError("gone"), "the executor is broken"))
    with pytest.raises(BrokenProcessPool, match="gone") as caught:
        executor.submit(abs, 1)
    assert isinstance(caught.value, ExecutorBrokenError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is ExecutorBrokenError and str(again) == str(caught.value)


def test_a_submit_that_comes_too_late(executor: Executor, monkeypatch: Any) -> None:
    """A task whose executor is shut down, or breaks, while it is submitted, fails; nobody waits for it for ever."""
    executor.bootup()
    crew, hall = executor._crew, executor._hall
    hall.enter()  # the workers stay
    executor.shutdown()
    monkeypatch.setattr(executor, "_check_open", lambda: None)  # another thread was faster than the next line
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, -1).result(LIMIT_S)
    broken_one = _CommExecutor(hall, initializer=fail_at, initargs=(1, 1))
    assert type(broken_one.submit(abs, 1).exception(LIMIT_S).__cause__) is Oops
    monkeypatch.setattr(broken_one, "_check_open", lambda: None)
    with pytest.raises(ExecutorBrokenError, match="Oops"):
        broken_one.submit(abs, 1).result(LIMIT_S)
    broken_one.shutdown()
    another = _CommExecutor(hall)
    another.bootup(wait=False)
    monkeypatch.setattr(another, "_check_open", lambda: None)
    crew.broken = OSError("gone")
    with pytest.raises(ExecutorBrokenError, match="gone"):
        list(another.map(abs, range(10)))
    another.shutdown()


def test_maps_are_cancelled_too(executor: Executor) -> None:
    """After ``shutdown(cancel_futures=True)`` a thread in a map does not wait for results that never come."""
    gate = threading.Event()
    gates.append(gate)
    results = executor.map(wait_at_gate, itertools.repeat(len(gates) - 1))
    raised: list[BaseException] = []

    def take_all() -> None:
        try:
            list(results)
        except std.CancelledError as exc:
            raised.append(exc)

    thread = threading.Thread(target=take_all)
    thread.start()
    try:
        while not executor._crew.is_led:
            time.sleep(0.001)
        executor.shutdown(wait=False, cancel_futures=True)
        thread.join(LIMIT_S)
        assert len(raised) == 1
    finally:
        gate.set()


@pytest.mark.parametrize("cancels_all", [False, True])
def test_a_cancelled_task_that_a_worker_gives_back(executor: Executor, cancels_all: bool) -> None:
    """A worker may give back a batch in which there is a cancelled task: it stays cancelled, and the others run."""
    gate = threading.Event()
    gates.append(gate)
    blocking = [executor.submit(wait_at_gate, len(gates) - 1) for _ in range(executor.num_workers)]
    cancelled, other = executor.submit(abs, -1), executor.submit(abs, -2)
    assert cancelled.cancel()
    job = executor._tasks
    with executor._crew._lock:
        assert job.pack(job._n_added - 2, job._n_added) is not None  # as if it was sent, and came back unread
    if cancels_all:
        executor.shutdown(wait=False, cancel_futures=True)
    gate.set()
    std.wait([cancelled, other, *blocking], LIMIT_S)
    assert cancelled.cancelled() and other.result(0) == 2
    executor.shutdown()


def test_workers_end_when_somebody_has_waited(farm: LocalFarm) -> None:
    """Workers of executors alone leave after a `shutdown` that waits, also behind one that did not."""
    sent_away: list[float] = []
    crew = new_crew(farm)
    executor = _CommExecutor(Hall(Session(Config(blas_threads=0)), crew, sent_away.append))
    future = executor.submit(abs, -1)
    executor.shutdown(wait=False)
    assert not sent_away
    executor.shutdown()
    assert future.done() and len(sent_away) == 1
    executor.shutdown()
    assert len(sent_away) == 1


gates: list[threading.Event] = []
logs: list[list[int]] = []


def wait_at_gate(number: int) -> None:
    assert gates[number].wait(LIMIT_S)


def note(number: int, i: int) -> None:
    logs[number].append(i)


def test_functions_are_sent_once_per_worker(farm: LocalFarm, executor: Executor, monkeypatch: Any) -> None:
    """A map sends its function once to each worker that gets items, and takes it back."""
    sent: list[tuple[int, Kind]] = []
    transport = farm.transports[0]
    send = transport.send
    monkeypatch.setattr(
        transport, "send", lambda dest, frame, **options: (sent.append((dest, frame.kind)), send(dest, frame))
    )
    table = list(range(3000))
    assert list(executor.map(lambda i: table[i], range(3000), chunksize=50)) == table
    executor.submit(abs, 1).result(LIMIT_S)
    batches = [dest for dest, kind in sent if kind in (Kind.BATCH, Kind.PORTION)]
    assert len(batches) > (1 if farm.hub.size in GROUPS else 5)
    for worker in set(batches):
        kinds = [kind for dest, kind in sent if dest == worker]
        assert kinds.count(Kind.FUNCTION) <= 3  # the initializer, the map's, that of submitted tasks
        assert kinds.count(Kind.FORGET) == 1


def test_strange_reports_change_nothing(farm: LocalFarm, executor: Executor) -> None:
    """Reports of batches that were not dealt, or that make no sense, are dropped; work goes on."""
    for body in (b"", b"x" * 16, b"\0" * 16, bytes(100)):
        for number in (0, 1, 10**6, -1):
            farm.controller.handle(1, Frame(Kind.BATCH_DONE, number, 3, 0, body))
            farm.controller.handle(1, Frame(Kind.PARTS, body=body))
            farm.controller.handle(1, parts_frame([Part(number, 0, 1, 0, 0, 0.0)], [], False))
            farm.controller.handle(1, parts_frame([], [Singles(1, 0.0, [number], [0], [b""])], False))
    assert executor.submit(abs, -3).result(LIMIT_S) == 3
    assert list(executor.map(abs, range(100))) == list(range(100))


def test_callbacks_run_by_the_pump(executor: Executor) -> None:
    """Nobody waits for the future, and still its callback runs; it may wait for other tasks."""
    told = threading.Event()
    found: list[int] = []

    def again(future: std.Future[int]) -> None:
        found.append(executor.submit(abs, -future.result()).result(LIMIT_S))
        told.set()

    executor.submit(abs, -7).add_done_callback(again)
    assert told.wait(LIMIT_S)
    assert found == [7]


def test_a_result_that_another_thread_delivers(executor: Executor, monkeypatch: Any) -> None:
    """Who waits for a future sees its result, also if another thread is just about to deliver it."""
    begun = threading.Event()
    settle = TaskJob._settle

    def settle_slowly(job: TaskJob, *args: Any) -> None:
        begun.set()
        time.sleep(0.1)
        settle(job, *args)

    monkeypatch.setattr(TaskJob, "_settle", settle_slowly)
    future = executor.submit(abs, -3)
    assert begun.wait(LIMIT_S)  # the pump has it
    assert future.result() == 3


def test_threads_take_turns(executor: Executor) -> None:
    """Threads that submit, wait and map at once get their own results."""
    found: dict[int, int] = {}

    def work(k: int) -> None:
        total = sum(executor.submit(abs, -k * i).result(LIMIT_S) for i in range(50))
        found[k] = total + sum(executor.map(abs, range(k * 100)))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert found == {k: k * 1225 + sum(range(k * 100)) for k in range(5)}


def test_initializer(farm: LocalFarm) -> None:
    """It is run once per worker; if it fails, futures and later submits say so."""
    crew = new_crew(farm)
    hall = Hall(Session(Config(blas_threads=0)), crew, lambda deadline: None)
    hall.enter()
    logs.append([])
    with _CommExecutor(hall, initializer=note, initargs=(len(logs) - 1, 5)) as executor:
        assert sum(executor.map(abs, range(1000), chunksize=1)) == 499_500
    assert 1 <= len(logs[-1]) <= executor._n_workers
    with _CommExecutor(hall, initializer=fail_at, initargs=(1, 1)) as executor:
        future = executor.submit(abs, 1)
        with pytest.raises(ExecutorBrokenError, match="Oops"):
            future.result(LIMIT_S)
        limit = time.monotonic() + LIMIT_S
        while executor._broken is None and time.monotonic() < limit:
            time.sleep(0.001)
        with pytest.raises(std.BrokenExecutor):
            executor.submit(abs, 1)
        with pytest.raises(std.BrokenExecutor):
            executor.map(abs, [1])
    hall.close()


def test_shutdown_waits_for_what_another_thread_is_to_do(executor: Executor) -> None:
    """A task that was submitted while another thread moved frames is run, although nobody has looked at it yet."""
    executor.submit(abs, 0).result(LIMIT_S)
    with executor._crew._lock:
        futures = [executor.submit(abs, -i) for i in range(3)]
    executor.shutdown()
    assert [future.result(0) for future in futures] == [0, 1, 2]
