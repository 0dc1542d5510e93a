"""Ranks with nothing to do: the CPU that they use, and how soon they answer."""

from __future__ import annotations

import os
import socket
import time

from taskfarm import objects
from taskfarm.bench.common import comm, machine, meet, on_all_ranks
from taskfarm.bench.functions import timed
from taskfarm.bench.measure import OURS, Contenders, Setting
from taskfarm.bench.proc import cpu_seconds

__all__ = ["first_round_trip", "idle_controller_cpu", "idle_worker_cpu"]

_SETTLE_S = 0.1  # of rest before a measurement, so that the end of what was before does not count
_REST_S = 2.0
_REST_QUICK_S = 1.0


def _rest_s(setting: Setting) -> float:
    return _REST_QUICK_S if setting.quick else _REST_S


def idle_worker_cpu(setting: Setting) -> Contenders:
    """Return the row for a worker that waits for work while rank 0 does not communicate."""
    return {OURS: lambda _: _cpu_of_worker(_rest_s(setting))}


def _cpu_of_worker(rest_s: float) -> float:
    pid = objects.call_all(os.getpid)[-1]
    time.sleep(_SETTLE_S)
    start, before = time.perf_counter(), cpu_seconds(pid)
    time.sleep(rest_s)
    return 100.0 * (cpu_seconds(pid) - before) / (time.perf_counter() - start)


def idle_controller_cpu(setting: Setting) -> Contenders:
    """Return the row for rank 0 waiting for a task that takes long."""
    return {OURS: lambda _: _cpu_of_rank_0(_rest_s(setting))}


def _cpu_of_rank_0(rest_s: float) -> float:
    farm = machine()
    farm.spawnFunction(time.sleep, (rest_s,), count=1, sendBack=False)
    start, before = time.perf_counter(), cpu_seconds(os.getpid())
    farm.receiveMessage()
    return 100.0 * (cpu_seconds(os.getpid()) - before) / (time.perf_counter() - start)


def first_round_trip(setting: Setting) -> Contenders:
    """Return the row for a task there and back after all ranks have rested.

    The peer is the least that can be done: a pickled message, and a datagram that wakes a rank which sleeps in the
    kernel. Like ours it starts with cold caches.
    """
    rest_s = _rest_s(setting)
    return {
        OURS: lambda _: _first_round_trip(rest_s),
        "datagram": on_all_ranks(_woken_by_datagram, rest_s),
    }


def _first_round_trip(rest_s: float) -> float:
    time.sleep(rest_s)
    return timed(_one_task) * 1e6


def _one_task() -> None:
    farm = machine()
    farm.spawnFunction(os.getpid, count=1)
    farm.receiveMessage()  # the result
    farm.receiveMessage()  # the exit


def _woken_by_datagram(rest_s: float, _: int) -> float | None:
    world = comm()
    if world.rank > 1:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.bind("")  # the kernel chooses a name
        other = world.sendrecv(bell.getsockname(), 1 - world.rank)
        meet()
        if world.rank == 1:
            bell.recv(1)
            fn, args, kwargs = world.recv(source=0)
            world.send(fn(*args, **kwargs), 0)
            return None
        time.sleep(rest_s)
        start = time.perf_counter()
        request = world.isend((os.getpid, (), {}), 1)
        bell.sendto(b"!", other)
        world.recv(source=1)
        seconds = time.perf_counter() - start
        request.wait()
        return seconds * 1e6
