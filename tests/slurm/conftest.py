"""A Slurm cluster for the tests of this folder."""

from __future__ import annotations

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
