"""Runs the checks of ``check_transport`` on MPI; writes how each ended on each rank, and prints nothing.

Arguments: the size of a piece of bulk in bytes (0: as it is), and the names of the checks.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import sys
import traceback

from check_transport import run_check
from mpi4py import MPI

from taskfarm.config import Config
from taskfarm.runtime.launching.surroundings import usable_cores
from taskfarm.transport import direct, mpi
from taskfarm.transport.mpi import MpiTransport
from taskfarm.transport.world import Opening, start_world

CHECK_LIMIT_S = 40.0


def new_transport() -> MpiTransport:
    """Open a transport as a session does."""
    opening = Opening(Config.from_environment(os.environ))
    opening.wait(math.inf)
    opened = opening.complete(usable_cores(), True)
    if opened.watch_listener is not None:
        opened.watch_listener.close()
    return opened.transport


def main() -> None:
    chunk_bytes, names = int(sys.argv[1]), sys.argv[2:]
    if chunk_bytes:
        mpi.BULK_CHUNK_BYTES = direct.PIECE_BYTES = chunk_bytes
    world = start_world()
    with open(os.path.join(os.environ["TF_LOG_DIR"], f"checks-{world.rank}.jsonl"), "w") as log:
        for name in names:
            faulthandler.dump_traceback_later(CHECK_LIMIT_S, exit=True)
            text = ""
            try:
                run_check(name, new_transport(), MPI.COMM_WORLD.Barrier)
            except BaseException:  # noqa: BLE001 - whatever ends a check is what the test wants to see
                text = traceback.format_exc()
            log.write(json.dumps({"name": name, "text": text}) + "\n")
            log.flush()
            if text:  # the other ranks may wait for this one
                sys.stderr.write(f"rank {world.rank}: {text}")
                sys.stderr.flush()
                MPI.COMM_WORLD.Abort(1)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
