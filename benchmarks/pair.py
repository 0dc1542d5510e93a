"""Two ranks that talk through transports of their own, without a session: for the scripts that look below the faces."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

from taskfarm.config import Config
from taskfarm.runtime.launching.surroundings import expected_world_size, usable_cores
from taskfarm.transport.mpi import MpiTransport
from taskfarm.transport.world import Opening, start_world
from taskfarm.wire.frames import Frame

__all__ = ["on_two_ranks", "open_transport", "receive", "send"]

OPEN_S = 60.0
RECEIVE_S = 60.0


def on_two_ranks(path: str, main: Callable[[], None]) -> int:
    """Run `main` if this process is one of two ranks, else start the script `path` on two; return the exit status."""
    if expected_world_size(os.environ) is None:
        return subprocess.call([sys.executable, "-m", "taskfarm", "run", "-n", "2", path, *sys.argv[1:]])
    world = start_world()
    if world.size != 2:
        raise SystemExit(f"{path} runs on 2 ranks, not {world.size}")
    main()
    return 0


def open_transport(config: Config) -> MpiTransport:
    """Open a transport between the ranks; collective."""
    opening = Opening(config)
    if not opening.wait(time.monotonic() + OPEN_S):
        raise TimeoutError(f"rank {opening.missing()} did not come")
    opened = opening.complete(usable_cores(), True)
    if opened.watch_listener is not None:
        opened.watch_listener.close()
    return opened.transport


def send(transport: MpiTransport, frame: Frame) -> None:
    """Send a frame to the other rank, whole."""
    transport.send(1 - transport.rank, frame)
    if not transport.complete_sends(time.monotonic() + RECEIVE_S, _unexpected):
        raise TimeoutError("the frame was not taken")


def receive(transport: MpiTransport) -> Frame:
    """Wait for the other rank's next frame."""
    item = transport.receive(time.monotonic() + RECEIVE_S)
    if item is None:
        raise TimeoutError("no frame came")
    return item[1]


def _unexpected(source: int, frame: Frame) -> None:
    raise RuntimeError(f"a {frame.kind.name} frame came from rank {source} out of turn")
