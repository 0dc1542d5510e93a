"""``mpiexec -n N python -m taskfarm.objects [script.py args...]``: rank 0 runs the script, the others the loop.

Without a script, rank 0 starts an IPython kernel to connect to, where ipykernel is installed, or else the plain
interactive interpreter. ``--kernel FILE`` says where the kernel writes how it is reached.
"""

from __future__ import annotations

import code
import importlib.util
import os
import sys
from collections.abc import Sequence

from taskfarm.errors import UsageError
from taskfarm.objects import _calls
from taskfarm.runtime import ending
from taskfarm.runtime.launching import boot
from taskfarm.runtime.session import current

__all__: list[str] = []


def main(words: Sequence[str]) -> int:
    """Run the command line on this rank; return its exit status."""
    connection_file = words[1] if words[:1] == ["--kernel"] and len(words) == 2 else None
    if connection_file is not None:
        words = []
    if words and not os.path.exists(words[0]):
        return _no_script(words[0])
    # The script's folder is where its modules are: on every rank, or functions from them could not be unpickled.
    folder = os.path.dirname(os.path.realpath(words[0])) if words else ""
    if current().rank != 0:
        sys.path.insert(0, folder)
        _calls.event_loop()
        ending.leave_if_threads_stay(current())
        return 0
    _calls.launch_event_loop()
    if words:
        return boot.run_script(words[0], list(words[1:]), {"filename": words[0]}, keep_path=True)
    return _interact(connection_file)


def _no_script(path: str) -> int:
    """Say, once for all ranks, that there is no such script; the other ranks wait until it is said."""
    world = current().world
    if world is None or world.rank == 0:
        print(f"python -m taskfarm.objects: there is no script {path!r}", file=sys.stderr, flush=True)
    if world is not None:
        world.finalize()
    return 2


def _interact(connection_file: str | None) -> int:
    if importlib.util.find_spec("ipykernel") is not None:
        from taskfarm.objects import _kernel

        _kernel.start(connection_file)
        return 0
    sys.path.insert(0, "")
    code.interact(local={"__name__": "__main__", "__doc__": None})
    return 0


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except UsageError as exc:
        print(f"python -m taskfarm.objects: {exc}", file=sys.stderr)
        status = 1
    ending.leave(status)
