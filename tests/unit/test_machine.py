"""State machines as tables: what stands in a table happens, anything else raises and changes nothing."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from taskfarm.errors import ProtocolError
from taskfarm.runtime.session import PHASE_TABLE, Phase, PhaseEvent
from taskfarm.scheduling.calls import CALL_TABLE, CallEvent, CallState
from taskfarm.scheduling.farm import SLOT_TABLE, TASK_TABLE, SlotEvent, SlotState, TaskEvent, TaskState
from taskfarm.scheduling.machine import advance, to_mermaid

# The tables once more, by name: a change of a table has to be made twice, knowingly.
EXPECTED: dict[str, tuple[Any, type[Enum], type[Enum], dict[tuple[str, str], str]]] = {
    "slot": (
        SLOT_TABLE,
        SlotState,
        SlotEvent,
        {
            ("FREE", "ASSIGNED"): "BUSY",
            ("FREE", "WORKER_LOST"): "LOST",
            ("BUSY", "RELEASED"): "FREE",
            ("BUSY", "WORKER_LOST"): "LOST",
        },
    ),
    "task": (
        TASK_TABLE,
        TaskState,
        TaskEvent,
        {
            ("RUNNING", "ENDED"): "FINISHED",
            ("RUNNING", "WORKER_LOST"): "FINISHED",
            ("FINISHED", "HANDED_OUT"): "EXITED",
        },
    ),
    "call": (
        CALL_TABLE,
        CallState,
        CallEvent,
        {
            ("RUNNING", "LOCAL_RETURN"): "RETURNED",
            ("RUNNING", "LOCAL_RAISE"): "RAISED",
            ("RETURNED", "ALL_DONE"): "SETTLED",
            ("RAISED", "ALL_DONE"): "SETTLED",
        },
    ),
    "phase": (
        PHASE_TABLE,
        Phase,
        PhaseEvent,
        {
            ("IDLE", "BEGAN"): "OPENING",
            ("OPENING", "ALL_HERE"): "OPEN",
            ("OPEN", "ENDED"): "CLOSED",
        },
    ),
}
PAIRS = [
    pytest.param(table, state, event, expected.get((state.name, event.name)), id=f"{name}-{state.name}-{event.name}")
    for name, (table, states, events, expected) in EXPECTED.items()
    for state in states
    for event in events
]


@pytest.mark.parametrize(("table", "state", "event", "target"), PAIRS)
def test_every_pair_of_state_and_event(table: Any, state: Enum, event: Enum, target: str | None) -> None:
    """A pair of the table leads where it says; any other raises, naming thing, state and event."""
    before = dict(table)
    if target is not None:
        assert advance(table, state, event, "the thing").name == target
    else:
        with pytest.raises(ProtocolError, match=f"the thing is {state.name}, which does not allow {event.name}"):
            advance(table, state, event, "the thing")
    assert dict(table) == before


@pytest.mark.parametrize("name", EXPECTED)
def test_tables_use_all_states_and_events(name: str) -> None:
    """Every state can be reached from the first one, and every event happens somewhere."""
    table, states, events, _ = EXPECTED[name]
    reached = {next(iter(states))}
    for _ in states:
        reached |= {new for (old, _event), new in table.items() if old in reached}
    assert reached == set(states)
    assert {event for _, event in table} == set(events)


def test_members_are_distinct() -> None:
    """No two states or events of a machine are aliases of each other."""
    for _, states, events, _ in EXPECTED.values():
        assert len(states) == len(states.__members__)
        assert len(events) == len(events.__members__)


def test_the_diagram_is_made_from_the_table() -> None:
    """The documentation's diagram has a line per transition, the start, and an end per final state."""
    assert to_mermaid(TASK_TABLE, TaskState.RUNNING).splitlines() == [
        "stateDiagram-v2",
        "    [*] --> RUNNING",
        "    RUNNING --> FINISHED: ENDED",
        "    RUNNING --> FINISHED: WORKER_LOST",
        "    FINISHED --> EXITED: HANDED_OUT",
        "    EXITED --> [*]",
    ]
