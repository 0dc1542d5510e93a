"""The table of all rows: what is measured, on how many ranks, in which unit, and what should be reached."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from taskfarm.bench import works
from taskfarm.bench.common import KB, MB
from taskfarm.bench.functions import busy, noop
from taskfarm.bench.measure import MS, N_ROUNDS, RATE, US, WITHOUT, Row, Target, Unit
from taskfarm.bench.rows import (
    arrays,
    buffers,
    calls,
    executor,
    launching,
    memory,
    messages,
    shared,
    survival,
    tasks,
    waiting,
)

__all__ = ["RANKS", "all_rows"]

RANKS = (2, 3, 4)  # of the jobs that measure most rows
SCALING_MIN_CORES = 4

_SECONDS = Unit("s", 1.0)
_FIRST = Unit("us")  # of the first round trip: it cannot be repeated
_PERCENT = Unit("% CPU")
_PERCENT_OF_OURS = Unit("%", more_is_better=True)
_TIMES_ARRAY = Unit("x array")
_MEGABYTES = Unit("MB")
_CROWD_RATE = Unit("tasks/s", more_is_better=True)

_FEW = 7  # rounds, where a sample lasts seconds
_LEAST = 5
_VERY_FEW = 3  # where a peer takes 20 s for a sample
_LEAST_TASKS = 200  # of a sample, for peers that take milliseconds for one
_NO_GROWTH = Target(4.0, "")  # MB; a pointer kept for each of 10^6 tasks would be 8
_JOURNALED = 10_000  # items of a map
_TASK_S = 1e-3  # tasks of the scaling rows that compute

_SIZES = (("1MB", MB), ("8MB", 8 * MB), ("64MB", 64 * MB), ("512MB", 512 * MB))
_ECHO = "array of 1 MB as argument and result of a task"


def all_rows(n_cores: int) -> tuple[Row, ...]:
    """Return the rows for a machine with so many usable cores; those about scaling need four."""
    return (
        *_tasks(),
        *_executor(),
        *_calls_and_messages(),
        *_arrays(),
        *_buffers(),
        *_shared(),
        *_resources(),
        *_launching(),
        *_surviving(),
        *_scaling(n_cores),
    )


def _tasks() -> Iterator[Row]:
    about = "empty tasks, one in flight per worker"
    for n_ranks, limit in ((2, 0.5), (3, 1.0)):
        target = Target(limit, "schwimmbad", at_least=True)
        yield Row("noop_tasks", about, [n_ranks], RATE, tasks.noop_rate, target, least=_LEAST_TASKS)
    yield Row("task", "an empty task, there and back", [2], US, tasks.there_and_back, Target(6.0))
    yield Row("echo_1MB", _ECHO, [2], MS, partial(tasks.echo, MB))


def _executor() -> Iterator[Row]:
    yield Row(
        "journal",
        "a map of empty tasks that keeps a journal",
        [3],
        US,
        executor.journaled,
        Target(1.0, WITHOUT, plus=20.0),
        _LEAST,
        least=_JOURNALED,
    )
    about = "a map of 100,000 items, of which its journal has all but one, from opening the file to the end"
    yield Row("resume", about, [3], _SECONDS, partial(executor.resumed, 100_000), Target(1.0, ""), _LEAST)
    in_messages = "map of empty tasks, chunksize=1: a message each, but ours puts short chunks together"
    for name, about, make, limit, peer in (
        ("submit", "empty tasks, submitted, then gathered", executor.submitted, 15.0, "mpi4py.futures"),
        ("map_1", in_messages, executor.one_by_one_map, 1.0, "schwimmbad"),
        ("map", "map of empty tasks, best batches", executor.mapped, 1.0, "mp.Pool"),
    ):
        target = Target(limit, peer, at_least=True)
        yield Row(f"executor_{name}", about, [2], RATE, make, target, least=_LEAST_TASKS)
    target = Target(0.1, "mpi4py.futures")
    yield Row("executor_task", "submit(...).result() of an empty task", [2], US, executor.there_and_back, target)
    target = Target(0.2, "mpi4py.futures")
    yield Row("executor_echo_1MB", _ECHO, [2], MS, partial(executor.echo, MB, works.ECHO), target)
    large = partial(executor.echo, 64 * MB, works.ECHO_LARGE)
    yield Row("executor_echo_64MB", _ECHO.replace("1 MB", "64 MB"), [2], MS, large, target, _VERY_FEW)
    about = "an empty task of two ranks, against two of one rank and Create_group"
    yield Row("executor_two_ranks", about, [3], US, executor.two_ranks, Target(1.5))
    about = "map over log-normal times (mean 1 ms, sigma 2): ideal in % of ours"
    yield Row("executor_uneven", about, [3], _PERCENT_OF_OURS, executor.uneven, Target(95.0, "", at_least=True), _LEAST)


def _calls_and_messages() -> Iterator[Row]:
    yield Row("call_noop", "an empty collective call", [2, 4], US, calls.noop, Target(1.5))
    for name, size, limit in (("0B", 0, 3.0), ("1kB", KB, 3.0), ("64kB", 64 * KB, 2.0)):
        about = f"message of {name} to a task, there and back"
        yield Row(f"message_{name}", about, [2], US, partial(messages.pickled, size), Target(limit))


def _arrays() -> Iterator[Row]:
    ways = (
        ("result", "as argument and result of a task", arrays.through_result),
        ("message", "in a message to a task, there and back", arrays.through_messages),
        ("call", "as argument of a collective call, one way", arrays.as_call_argument),
    )
    for name, size in _SIZES:
        rounds = _FEW if size > 64 * MB else N_ROUNDS
        for way, about, make in ways:
            yield Row(f"array_{name}_{way}", f"array {about}", [2], MS, partial(make, size), Target(1.3), rounds)


def _buffers() -> Iterator[Row]:
    for name, size in _SIZES:
        about = "sendArray and receiveArray, against Send and Recv, in warm memory"
        rounds = _FEW if size > 64 * MB else N_ROUNDS
        contenders = partial(buffers.there_and_back, size)
        yield Row(f"buffer_{name}_array", about, [2], MS, contenders, Target(1.1), rounds)
    ways = (
        ("broadcast", "broadcast_array, against Bcast", buffers.broadcast),
        ("scatter", "scatter_rows, against Scatterv", buffers.scatter),
        ("gather", "gather_rows, against Gatherv", buffers.gather),
    )
    for name, size in _SIZES[:3]:
        for way, about, make in ways:
            yield Row(f"buffer_{name}_{way}", f"{about}, in warm memory", [2], MS, partial(make, size), Target(1.1))


def _shared() -> Iterator[Row]:
    size = 1000 * MB
    about = "share 1 GB until a worker has it, against one copy into fresh memory"
    yield Row("share_1GB", about, [4], MS, partial(shared.sharing, size), Target(1.5), _LEAST)
    about = "what sharing 1 GB adds to the memory of all ranks together"
    yield Row("share_memory", about, [4], _TIMES_ARRAY, partial(shared.added_memory, size), Target(1.1, ""), _LEAST)
    about = "read 256 MB of shared data in a task, against an array of its own"
    yield Row("share_read", about, [2], MS, partial(shared.reading, 256 * MB), Target(1.1), _FEW)


def _resources() -> Iterator[Row]:
    cpu, memory_0, memory_1 = Target(0.5, ""), Target(0.1, ""), Target(1.1, "")
    first = "task there and back after 2 s of rest"
    yield Row("idle_cpu_worker", "CPU of a worker that waits", [2], _PERCENT, waiting.idle_worker_cpu, cpu, _LEAST)
    yield Row("idle_cpu_rank0", "CPU of rank 0 that waits", [2], _PERCENT, waiting.idle_controller_cpu, cpu, _LEAST)
    yield Row("first_after_idle", first, [2], _FIRST, waiting.first_round_trip, Target(200.0, ""), _FEW)
    for way, make in (("call", memory.peak_by_call), ("task", memory.peak_by_task)):
        about = f"peak memory by 512 MB as argument of a {way}, on "
        for place, rank, target in (("rank0", 0, memory_0), ("worker", 1, memory_1)):
            contenders = partial(make, 512 * MB, rank)
            yield Row(f"peak_{way}_{place}", about + place, [2], _TIMES_ARRAY, contenders, target, _LEAST)
    for name, about, grow in (
        ("growth_tasks", "memory growth of the worst process over 10^6 tasks", memory.growth_by_tasks),
        ("growth_submits", "memory growth of the worst process over 10^6 calls of submit", memory.growth_by_submits),
        ("growth_calls", "memory growth of the worst process over 10^5 calls", memory.growth_by_calls),
    ):
        yield Row(name, about, [2], _MEGABYTES, grow, _NO_GROWTH, rounds=1)


def _launching() -> Iterator[Row]:
    first_line = "`taskfarm run` to the script's first line, against bare mpiexec to `from mpi4py import MPI`"
    first_call = "`taskfarm run` to the first collective call, against bare mpiexec to a barrier"
    crowd = "empty tasks with 8 ranks on 2 cores, against 3 ranks"
    target = Target(1.3, plus=0.1)
    yield Row("startup", first_line, [4], _SECONDS, launching.first_line, target, _FEW, launches=True)
    yield Row("startup_call", first_call, [4], _SECONDS, launching.first_session, None, _FEW, launches=True)
    one = "an empty task in a process of its own, there and back, against one in the rank"
    target = Target(1.0, launching.IN_THE_RANK, plus=30.0)
    yield Row("isolated", one, [2], US, partial(launching.isolated, 0), target, _FEW, launches=True)
    one = "the same with an array of 64 MB as argument and result"
    target = Target(1.5, launching.IN_THE_RANK)
    yield Row("isolated_64MB", one, [2], MS, partial(launching.isolated, 64 * MB), target, _LEAST, launches=True)
    one, target = "an item of a map with a trace, against one without: a span", Target(1.0, WITHOUT, plus=1.0)
    yield Row("trace_item", one, [2], US, launching.traced_items, target, _FEW, launches=True)
    one = "an empty task, there and back, with a trace, against one without: four spans, and four messages counted"
    yield Row("trace_task", one, [2], US, launching.traced_task, None, _FEW, launches=True)
    target = Target(0.7, "3 ranks", at_least=True)
    yield Row("crowd", crowd, [8], _CROWD_RATE, launching.crowded_rate, target, _FEW, launches=True)


def _surviving() -> Iterator[Row]:
    least, few, with_supervisors = _LEAST, _FEW, ", with supervisors, against the same without"
    target = Target(1.0, WITHOUT, plus=0.02)
    job = "a job with one task" + with_supervisors
    yield Row("survive_startup", job, [4], _SECONDS, survival.startup, target, few, launches=True)
    target = Target(1.05, WITHOUT)
    one = "an empty task, there and back" + with_supervisors
    yield Row("survive_task", one, [2], US, survival.task, target, few, launches=True)
    target = Target(0.5, "")
    death = "from a worker's death until its task runs elsewhere, the longer of two"
    yield Row("survive_death", death, [4], _SECONDS, survival.until_elsewhere, target, least, launches=True)
    stop = f"the same for a stopped worker, beyond its heartbeat of {survival.HEARTBEAT_S:g} s"
    yield Row("survive_hang", stop, [4], _SECONDS, survival.hang, target, least, launches=True)


def _scaling(n_cores: int) -> Iterator[Row]:
    if n_cores < SCALING_MIN_CORES:
        return
    ranks = [1 + n_workers for n_workers in worker_numbers(n_cores - 1)]
    yield Row("scaling_noop", "empty tasks", ranks, RATE, partial(tasks.rate_of, noop, 0))
    yield Row("scaling_1ms", "tasks that compute for 1 ms", ranks, RATE, partial(tasks.rate_of, busy, _TASK_S))
    yield Row("scaling_1MB", "tasks that return 1 MB that they got", ranks, RATE, partial(tasks.rate_of_echoes, MB))


def worker_numbers(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to `most`, and `most` itself."""
    powers = [1 << exponent for exponent in range(most.bit_length()) if 1 << exponent < most]
    return [*powers, most]
