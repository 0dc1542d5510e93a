"""Rank 0 sends a frame of more than 2 GiB to rank 1: an array out of band, or a pickled body, as the argument says."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from typing import Any

import numpy as np

from taskfarm.config import Config
from taskfarm.runtime.launching.surroundings import usable_cores
from taskfarm.transport.world import Opening, start_world
from taskfarm.wire.codec import pack, unpack
from taskfarm.wire.frames import Frame, Kind

SIZE = 2**31 + 1
STEP = (1 << 20) + 7  # distance of the bytes that are set: one in every megabyte
LIMIT_S = 240.0


def marks() -> np.ndarray[Any, Any]:
    """Positions of the bytes that are not 0, those around the edges of pieces included."""
    around = [edge + offset for edge in (1 << 30, 1 << 31) for offset in (-1, 0, 1) if edge + offset < SIZE]
    return np.unique([*range(0, SIZE, STEP), *around, SIZE - 1])


def expected() -> np.ndarray[Any, Any]:
    return (np.arange(len(marks())) % 250 + 1).astype(np.uint8)


def send(transport: Any, form: str) -> None:
    array = np.zeros(SIZE, np.uint8)
    array[marks()] = expected()
    obj = array if form == "array" else array.tobytes()
    del array
    packed = pack(obj)
    del obj
    assert (len(packed.body) > SIZE) is (form == "bytes"), len(packed.body)
    transport.send(1, Frame(Kind.DONE, 1, 2, 3, packed.body, packed.buffers), borrowed=True)
    del packed
    assert transport.complete_sends(time.monotonic() + LIMIT_S, print), "not sent in time"


def receive(transport: Any, form: str) -> None:
    item = transport.receive(time.monotonic() + LIMIT_S)
    assert item is not None, "not received in time"
    body, buffers = item[1].body, item[1].buffers
    del item
    obj = unpack(body, buffers)
    del body, buffers
    assert type(obj) is (np.ndarray if form == "array" else bytes)
    landed = np.frombuffer(obj, np.uint8)
    assert landed.shape == (SIZE,), landed.shape
    assert np.array_equal(landed[marks()], expected())
    n_set = sum(int(np.count_nonzero(landed[start : start + (1 << 28)])) for start in range(0, SIZE, 1 << 28))
    assert n_set == len(marks()), n_set


def main() -> None:
    world = start_world()
    opening = Opening(Config.from_environment(os.environ))
    opening.wait(math.inf)
    transport = opening.complete(usable_cores(), True).transport
    (send if world.rank == 0 else receive)(transport, sys.argv[1])
    assert transport.close(time.monotonic() + LIMIT_S, print)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"rank {world.rank}: {sys.argv[1]} of {SIZE} bytes, peak {peak_gib:.1f} GiB")


if __name__ == "__main__":
    main()
