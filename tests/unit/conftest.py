"""Fixtures of several files."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from runtime_support import LocalFarm, local_farm, new_gate


@pytest.fixture
def farm() -> Iterator[LocalFarm]:
    """A farm of three workers."""
    with local_farm(4) as running:
        yield running


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What `hold_rank` and `wait_at_gate` wait for."""
    with new_gate() as closed:
        yield closed
