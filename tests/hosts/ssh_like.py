"""Play ssh for a launcher: ``ssh_like.py [option]... HOST COMMAND...``, on the hosts of `hosts.py`.

As with ssh, this process stays where it was started, what the command prints comes through it, variables of the caller
do not reach the command, and when the cable of the host is pulled, nothing comes any more, and it waits for ever.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

WITH_VALUE = ("-o", "-l", "-p", "-i", "-F")
LOOK_S = 0.1
KEPT = ("PATH", "HOME", "USER", "SHELL", "TERM", "LANG", "TASKFARM_TEST_HOSTS", "TASKFARM_TEST_JOB")


def main() -> int:
    """Run the command; return its status."""
    words = sys.argv[1:]
    while words[0].startswith("-"):
        del words[: 2 if words[0] in WITH_VALUE else 1]
    host, *command = words
    folder = Path(os.environ["TASKFARM_TEST_HOSTS"])
    host = host.rpartition("@")[2]
    pulled = folder / f"{host}.pulled"
    first = (folder / f"{host}.pid").read_text().split()[1]
    enter = ["nsenter", "-t", first, "-n", "-u", "-m", "-i", f"--wd={Path.cwd()}", "--"]
    process = subprocess.Popen(
        [*enter, "/bin/sh", "-c", " ".join(command)],
        env={name: value for name, value in os.environ.items() if name in KEPT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    assert process.stdout is not None
    assert process.stderr is not None
    ways = {process.stdout.fileno(): 1, process.stderr.fileno(): 2}
    while ways:
        readable, _, _ = select.select(list(ways), [], [], LOOK_S)
        if pulled.exists():
            select.select([], [], [])
        for source in readable:
            data = os.read(source, 65536)
            if data:
                os.write(ways[source], data)
            else:
                del ways[source]
    status = process.wait()
    if pulled.exists():
        select.select([], [], [])
    return status if status >= 0 else 255


if __name__ == "__main__":
    sys.exit(main())
