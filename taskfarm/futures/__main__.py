"""``mpiexec -n N python -m taskfarm.futures (script.py | -m module) [args...]``: rank 0 runs it, the others work.

So the script itself runs once, as ``python -m mpi4py.futures`` runs it; under ``taskfarm run`` all ranks run it up to
its first executor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from taskfarm.errors import UsageError
from taskfarm.runtime import ending
from taskfarm.runtime.executor.crews import part_ranks
from taskfarm.runtime.launching import boot
from taskfarm.runtime.session import current

__all__: list[str] = []


def main(words: Sequence[str]) -> int:
    """Run the command line on this rank; return its exit status."""
    if not words or list(words) == ["-m"]:
        print("usage: python -m taskfarm.futures (script.py | -m module) [args ...]", file=sys.stderr)
        return 2
    # The script's folder is where its modules are: on every rank, or functions from them could not be unpickled.
    folder = os.getcwd() if words[0] == "-m" else os.path.dirname(os.path.realpath(words[0]))
    session = current()
    if session.rank != 0:
        sys.path.insert(0, folder)
        part_ranks()
    elif session.size > 1:
        session.open(session.config.open_s)
    if words[0] == "-m":
        return boot.run_module(words[1], list(words[2:]))
    return boot.run_script(words[0], list(words[1:]))


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except UsageError as exc:
        print(f"python -m taskfarm.futures: {exc}", file=sys.stderr)
        status = 1
    ending.leave(status)
