"""What the controller does per task, and keeps per rank, does not grow with the number of ranks."""

from __future__ import annotations

import cProfile
import pstats
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from taskfarm.config import Config
from taskfarm.futures import Executor
from taskfarm.futures._comm import _CommExecutor
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.endpoint import Surroundings
from taskfarm.runtime.executor.batches import BatchRunner
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.crews import Hall
from taskfarm.runtime.executor.relay_crew import RelayCrew
from taskfarm.runtime.registry import Registry
from taskfarm.runtime.runner import run
from taskfarm.runtime.session import Session
from taskfarm.transport.local import LocalHub, LocalTransport
from taskfarm.wire.frames import Kind

N_TASKS = 2000
SURROUNDINGS = Surroundings(
    "here", Registry(), Config(blas_threads=0), lambda: None, lambda: 0, lambda: lambda call, text: None
)


class Workers:
    """Workers without threads: they run what has come when they are told to."""

    def __init__(self, transports: list[LocalTransport]) -> None:
        self._transports = transports
        self._runners = [
            BatchRunner(transport, "here", Registry(), lambda fn, *args: run(fn, args), lambda limit_s: None)
            for transport in transports
        ]

    def work(self) -> None:
        """Run everything that has come."""
        for transport, runner in zip(self._transports, self._runners, strict=True):
            while (item := transport.receive_nowait()) is not None:
                source, frame = item
                handlers = {Kind.FUNCTION: runner.on_function, Kind.BATCH: runner.on_batch}
                handlers.get(frame.kind, runner.on_forget)(source, frame)


def new_crew(n_workers: int) -> tuple[Crew, list[LocalTransport]]:
    """Return a crew, whose pump never starts, and the workers' ends."""
    first, *others = LocalHub(n_workers + 1).transports()
    ranks = range(1, n_workers + 1)
    return Crew(Controller(first, dict.fromkeys(ranks, "here"), SURROUNDINGS), ranks), others


@contextmanager
def executor_of(n_workers: int) -> Iterator[tuple[Executor, Crew, Workers]]:
    """An executor over workers without threads."""
    crew, transports = new_crew(n_workers)
    hall = Hall(Session(Config(blas_threads=0)), crew, lambda deadline: None)
    crew.wake_pump = lambda: None
    executor = _CommExecutor(hall)
    workers = Workers(transports)
    yield executor, crew, workers
    workers.work()
    crew.serve()
    executor.shutdown(wait=False)
    hall.close()


def calls_per_task(n_workers: int) -> float:
    """Return how many functions the controller calls for an empty task, until its future is done."""
    with executor_of(n_workers) as (executor, crew, workers):
        for n in (4 * n_workers, N_TASKS):  # the first ones make the workers known
            profile = cProfile.Profile()
            futures = []
            for item in range(n):
                futures.append(profile.runcall(executor.submit, abs, -item))
                if item % 64 == 63:
                    workers.work()
                    profile.runcall(crew.serve)
            while not all(future.done() for future in futures):
                workers.work()
                profile.runcall(crew.serve)
            assert [future.result() for future in futures] == list(range(n))
    total: int = pstats.Stats(profile).total_calls  # type: ignore[attr-defined]
    return total / N_TASKS


def test_a_task_costs_the_same_among_many_ranks() -> None:
    """With 1024 workers the controller calls no more functions for a task, alone in its batch, than with 128."""
    few, many = calls_per_task(128), calls_per_task(1024)
    assert many <= 1.05 * few


def test_memory_per_rank() -> None:
    """Controller, crew and dealer keep less than 4 kB for each rank, tasks for all of them included."""
    n = 2000
    first, *_ = transports = LocalHub(n + 1).transports()
    ranks = range(1, n + 1)
    tracemalloc.start()
    crew = Crew(Controller(first, dict.fromkeys(ranks, "here"), SURROUNDINGS), ranks)
    crew.dealer.on_job(1, n)
    crew.dealer.on_items(1, 2 * n)
    batches = list(crew.dealer.deal())
    size_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(batches) == n
    assert size_bytes / n < 4096
    assert len(transports) == n + 1


def test_groups_cost_rank_0_less_memory_and_few_messages() -> None:
    """With groups it keeps far less for each rank, and tasks for all workers leave in one message per group."""
    n_groups, size = 40, 50
    first, *_ = transports = LocalHub(n_groups * size + 1).transports()
    ranks = range(1, n_groups * size + 1)
    groups = {relay: range(relay + 1, relay + size) for relay in ranks[::size]}
    controller = Controller(first, dict.fromkeys(ranks, "here"), SURROUNDINGS)
    tracemalloc.start()
    crew = RelayCrew(controller, groups)
    crew.dealer.on_job(1, len(crew.workers))
    crew.dealer.on_items(1, 2 * len(crew.workers))
    portions = list(crew.dealer.deal())
    size_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(portion.stop - portion.start for portion in portions) == len(crew.workers) == n_groups * (size - 1)
    assert len(portions) == n_groups
    assert size_bytes / len(crew.workers) < 1024
    for relay in groups:
        assert [frame.kind for _, frame in iter(transports[relay].receive_nowait, None)] == [Kind.GROUP]


@pytest.mark.parametrize("n_ranks", [3, 1000])
def test_quit_and_forget_reach_every_rank_once(n_ranks: int) -> None:
    """One message per rank, at the end and for what ranks may have kept, and none for what they have not."""
    crew, transports = new_crew(n_ranks - 1)
    crew.supplies.note_all(7)
    crew.forget(7)
    crew.forget(7)
    crew.controller._byes.update(range(1, n_ranks))
    crew.controller.quit_workers(0.0)
    kinds = [[frame.kind for _, frame in iter(transport.receive_nowait, None)] for transport in transports]
    assert kinds == [[Kind.FORGET, Kind.QUIT]] * (n_ranks - 1)
