"""A Slurm cluster for the tests of this folder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing

N_NODES = 3  # jobs take two; the third one takes the place of a host that is lost


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Start a cluster once, and end it with everything on it."""
    lacking = missing()
    if lacking:
        pytest.skip(f"no Slurm to test with: {', '.join(lacking)} missing (see `make test-slurm`)")
    # munge wants a folder that nobody else may write to, nor those above it.
    one = Cluster(Path(tempfile.mkdtemp(prefix="taskfarm-slurm-", dir="/run")), N_NODES)
    try:
        one.up()
        yield one
    finally:
        one.down()
    assert not one.folder.exists()
    left = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if _belongs(path.parent, one.folder)]
    assert not left, f"processes that outlived the cluster: {left}"


def _belongs(process: Path, folder: Path) -> bool:
    """Tell whether a process knows of the cluster: by its command line, or by the place of its configuration."""
    with contextlib.suppress(OSError):  # gone meanwhile
        return any(str(folder).encode() in (process / name).read_bytes() for name in ("cmdline", "environ"))
    return False
