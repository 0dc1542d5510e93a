"""How far a session is, as a table."""

from __future__ import annotations

from enum import Enum

from taskfarm.scheduling.machine import Table

__all__ = ["PHASE_TABLE", "Phase", "PhaseEvent"]


class Phase(Enum):
    """Phases of a session."""

    IDLE = "idle"
    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


class PhaseEvent(Enum):
    """What happens to a session."""

    BEGAN = "began to open"
    ALL_HERE = "all ranks are here"
    ENDED = "ended"


PHASE_TABLE: Table[Phase, PhaseEvent] = {
    (Phase.IDLE, PhaseEvent.BEGAN): Phase.OPENING,
    (Phase.OPENING, PhaseEvent.ALL_HERE): Phase.OPEN,
    (Phase.OPEN, PhaseEvent.ENDED): Phase.CLOSED,
}
