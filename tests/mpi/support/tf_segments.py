"""What a job has in shared memory, written down for the test that looks whether it was removed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from taskfarm.runtime.session import current


def note_segments() -> None:
    """Write the names of the job's segments that exist as files into ``$TF_LOG_DIR/segments``; on rank 0."""
    names: set[str] = set()
    for peer in current().peers:
        names |= set(re.findall(r"/dev/shm/(\S+)$", Path(f"/proc/{peer.pid}/maps").read_text(), re.MULTILINE))
    Path(os.environ["TF_LOG_DIR"], "segments").write_text("\n".join(sorted(names)) + "\n")
