"""Ways to wait: how much CPU a waiting rank uses, and how soon it answers.

    python benchmarks/idle.py [--quick]

Two ranks. Rank 1 waits for a frame in each of several ways, in turn: by the doorbell, by sleeping between polls for
several times, by spinning. Rank 0 leaves it alone, reads its CPU time before and after, then sends a frame and spins
until the answer is here. The last line, a datagram there and back between two ranks that sleep in the kernel, is what
the machine can do. The constants of ``taskfarm/transport/waiting.py`` and ``doorbell.py`` rest on this table.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

from mpi4py import MPI
from pair import on_two_ranks, open_transport, receive, send

from taskfarm.bench.proc import cpu_seconds
from taskfarm.config import Config
from taskfarm.transport import waiting
from taskfarm.transport.mpi import MpiTransport
from taskfarm.wire.frames import Frame, Kind

__all__: list[str] = []

SETTLE_S = 0.05  # of rest before the CPU time is read, so that the spinning at the start of a wait does not count


@dataclass(frozen=True)
class Way:
    """A way to wait: what rank 1 sets before the transport is opened and while it waits."""

    name: str
    config: Config
    spin_s: float = waiting.SPIN_S
    poll_sleep_s: float = waiting.POLL_SLEEP_S


def _ways() -> list[Way]:
    here = Config()
    polls = replace(here, doorbell=False)
    return [
        Way("doorbell", here),
        *(Way(f"sleeping up to {ms:g} ms", polls, poll_sleep_s=ms * 1e-3) for ms in (0.2, 1, 2, 5)),
        Way("spinning", replace(polls, spin=True), spin_s=math.inf),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter rests, fewer rounds")
    rest_s, rounds = (0.5, 3) if parser.parse_args().quick else (2.0, 5)
    ways = _ways()
    transports = [_open(way) for way in ways]
    other = MPI.COMM_WORLD.sendrecv(os.getpid(), 1 - MPI.COMM_WORLD.rank)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for way, transport in zip(ways, transports, strict=True):
            waiting.POLL_SLEEP_S = waiting.LONG_POLL_SLEEP_S = way.poll_sleep_s
            found.setdefault(way.name, []).append(_measure(transport, rest_s, other))
        found.setdefault("datagram", []).append(_measure_datagram(rest_s, other))
    if MPI.COMM_WORLD.rank == 0:
        _print(found)


def _open(way: Way) -> MpiTransport:
    waiting.SPIN_S = way.spin_s
    transport = open_transport(way.config)
    waiting.SPIN_S = Way.spin_s
    return transport


def _measure(transport: MpiTransport, rest_s: float, other: int) -> tuple[float, float]:
    """Return rank 1's CPU while it waits, as a fraction, and the seconds until it answers; on rank 1, zeros."""
    if transport.rank == 1:
        send(transport, receive(transport))
        return 0.0, 0.0
    return _rest_and_call(lambda: (send(transport, Frame(Kind.SYNC)), _spin(transport)), rest_s, other)


def _spin(transport: MpiTransport) -> None:
    while transport.receive_nowait() is None:
        pass


def _rest_and_call(call: Callable[[], object], rest_s: float, other: int) -> tuple[float, float]:
    time.sleep(SETTLE_S)
    start, before = time.perf_counter(), cpu_seconds(other)
    time.sleep(rest_s)
    cpu = (cpu_seconds(other) - before) / (time.perf_counter() - start)
    start = time.perf_counter()
    call()
    return cpu, time.perf_counter() - start


def _measure_datagram(rest_s: float, other: int) -> tuple[float, float]:
    world = MPI.COMM_WORLD
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as bell:
        bell.bind("")  # the kernel chooses a name
        address = world.sendrecv(bell.getsockname(), 1 - world.rank)
        if world.rank == 1:
            bell.sendto(bell.recv(1), address)
            return 0.0, 0.0
        return _rest_and_call(lambda: (bell.sendto(b"!", address), bell.recv(1)), rest_s, other)


def _print(found: dict[str, list[tuple[float, float]]]) -> None:
    print(f"{'way to wait':<22} {'CPU, %':>10} {'first answer, us':>18} {'(min..max)':>18}")
    for name, samples in found.items():
        cpu, answer = (statistics.median(values) for values in zip(*samples, strict=True))
        low, high = (choose(seconds for _, seconds in samples) * 1e6 for choose in (min, max))
        print(f"{name:<22} {cpu * 100:>10.2f} {answer * 1e6:>18.0f} {f'({low:.0f}..{high:.0f})':>18}")


if __name__ == "__main__":
    sys.exit(on_two_ranks(__file__, main))
