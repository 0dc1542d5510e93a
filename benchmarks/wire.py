"""Where the limits lie between the ways on which bytes travel: the constants of ``taskfarm/wire``.

    python benchmarks/wire.py [--quick]

Three tables of times by size, the first two of one frame there and back between two ranks. The best of many short
rounds: the question is which way is shorter, not what the machine does besides.

* an array within the pickle (copied) against out of band (from its own memory, one more MPI message):
  ``OOB_MIN_BYTES`` of ``taskfarm/wire/codec.py`` belongs where the second gets faster;
* a pickle within the control message (copied) against one in a message of its own: ``INLINE_BODY_MAX_BYTES`` of
  ``taskfarm/wire/frames.py``, likewise;
* packing alone, without MPI, of bytes: what the search for ``__main__`` costs.

It reaches below the faces: it sets those constants on both ranks, and uses the transport without a session.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from pair import on_two_ranks, open_transport, receive, send

from taskfarm.config import Config
from taskfarm.transport.mpi import MpiTransport
from taskfarm.wire import codec, frames
from taskfarm.wire.frames import Frame, Kind

__all__: list[str] = []

SIZES = [1 << exponent for exponent in range(10, 22)]
NEVER = 1 << 62


def main() -> None:
    quick = _options().quick
    transport = open_transport(Config())
    n, rounds = (10, 15) if quick else (10, 50)
    now = codec.OOB_MIN_BYTES
    ways: Ways = {"in band": lambda size: NEVER, "out of band": lambda size: size}
    times = _compare(transport, ways, _set_oob, _array_there_and_back, n, rounds)
    _set_oob(now)
    _print(transport, f"an array, there and back, us (OOB_MIN_BYTES is {now})", ways, times)
    now = frames.INLINE_BODY_MAX_BYTES
    ways = {"in the control message": lambda size: NEVER, "on its own": lambda size: size - 1}
    times = _compare(transport, ways, _set_inline, _body_there_and_back, n, rounds)
    _set_inline(now)
    _print(transport, f"a pickle, there and back, us (INLINE_BODY_MAX_BYTES is {now})", ways, times)
    if transport.rank == 0:
        _print_packing()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    return parser.parse_args()


def _set_oob(limit: int) -> None:
    codec.OOB_MIN_BYTES = limit


def _set_inline(limit: int) -> None:
    frames.INLINE_BODY_MAX_BYTES = limit


Ways = Mapping[str, Callable[[int], int]]  # name, and the limit that makes arrays or pickles of a size go this way
Exchange = Callable[[MpiTransport, int, int], float]


def _compare(
    transport: MpiTransport,
    ways: Ways,
    set_limit: Callable[[int], None],
    exchange: Exchange,
    n: int,
    rounds: int,
) -> dict[int, list[float]]:
    """Return, by size, the best seconds of each way; all ways in each round, on both ranks in step."""
    found: dict[int, list[float]] = {}
    for size in SIZES:
        samples: list[list[float]] = [[] for _ in ways]
        for _ in range(rounds):
            for limit, times in zip(ways.values(), samples, strict=True):
                set_limit(limit(size))
                exchange(transport, size, 2)
                times.append(exchange(transport, size, n))
        found[size] = [min(times) for times in samples]
    return found


def _array_there_and_back(transport: MpiTransport, size: int, n: int) -> float:
    array = np.ones(size // 8)
    return _there_and_back(transport, lambda: _packed(array), lambda frame: codec.unpack(frame.body, frame.buffers), n)


def _packed(obj: Any) -> Frame:
    packed = codec.pack(obj)
    return Frame(Kind.MESSAGE, 0, 0, 0, packed.body, packed.buffers)


def _body_there_and_back(transport: MpiTransport, size: int, n: int) -> float:
    body = bytes(size)
    return _there_and_back(transport, lambda: Frame(Kind.MESSAGE, body=body), lambda frame: len(frame.body), n)


def _there_and_back(
    transport: MpiTransport, make: Callable[[], Frame], read: Callable[[Frame], object], n: int
) -> float:
    start = perf_counter()
    for _ in range(n):
        if transport.rank == 0:
            send(transport, make())
            read(receive(transport))
        else:
            read(receive(transport))
            send(transport, make())
    return (perf_counter() - start) / n


def _print(transport: MpiTransport, title: str, ways: Ways, times: Mapping[int, Sequence[float]]) -> None:
    if transport.rank != 0:
        return
    first, second = ways
    print(f"\n{title}\n{'bytes':>10} {first:>24} {second:>24} {'second / first':>16}")
    for size, (a, b) in times.items():
        print(f"{size:>10} {a * 1e6:>24.1f} {b * 1e6:>24.1f} {b / a:>16.2f}")


def _print_packing() -> None:
    print(f"\npacking bytes, us\n{'bytes':>10} {'pickle alone':>24} {'pack':>24}")
    for size in SIZES:
        alone, pack = _best_time(lambda obj: pickle.dumps(obj, 5), bytes(size)), _best_time(codec.pack, bytes(size))
        print(f"{size:>10} {alone * 1e6:>24.1f} {pack * 1e6:>24.1f}")


def _best_time(fn: Callable[[object], object], obj: object) -> float:
    times = []
    for _ in range(50):
        start = perf_counter()
        fn(obj)
        times.append(perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    sys.exit(on_two_ranks(__file__, main))
