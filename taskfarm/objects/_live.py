"""The module attributes that are read from the session whenever they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from taskfarm.runtime.session import Phase, current

__all__ = ["LIVE", "loop_runs"]


def loop_runs() -> bool:
    """Tell whether the loop of this session runs: launched on rank 0, entered elsewhere."""
    session = current()
    return session.loop_launched and session.phase is not Phase.CLOSED


LIVE: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        "comm": lambda: current().comm,
        "rank": lambda: current().rank,
        "size": lambda: current().size,
        "rank0": lambda: current().rank == 0,
        "parallel": lambda: current().size > 1,
        "finished": lambda: current().phase is Phase.CLOSED,
        "_managed_objects": lambda: current().registry.objects,
        "_object_counter": lambda: current().registry.counter,
        "_event_loop_running": loop_runs,
    }
)
