"""Identifiers, abstract, and the messages that the virtual machine itself sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["HostID", "Msg", "MsgHostAdd", "MsgHostDelete", "MsgTaskExit", "MsgTaskResult", "TaskID", "abstract"]


def abstract(name: str) -> NotImplementedError:
    """Return the error of a method that only a concrete virtual machine has."""
    return NotImplementedError(f"{name} is abstract; use a concrete virtual machine, such as taskfarm.vm.MPI")


class HostID:
    """Identifier of a host; abstract."""

    __slots__ = ()

    @staticmethod
    def bad() -> HostID:
        """Return an identifier that names no host."""
        raise abstract("HostID.bad")

    def valid(self) -> bool:
        """Return True if this identifier names a host."""
        raise abstract("HostID.valid")


class TaskID:
    """Identifier of a task; abstract."""

    __slots__ = ()

    @staticmethod
    def bad() -> TaskID:
        """Return an identifier that names no task."""
        raise abstract("TaskID.bad")

    def valid(self) -> bool:
        """Return True if this identifier names a task."""
        raise abstract("TaskID.valid")


class Msg:
    """Base of the messages that the virtual machine itself sends; any other object can be a message too."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class MsgTaskExit(Msg):
    """A task has ended and its slot is free again; the last message of that task.

    Attributes
    ----------
    taskID : TaskID
        The task that ended.
    """

    taskID: TaskID


@dataclass(slots=True, eq=False)  # not frozen: one is made per task, and that would take three times as long
class MsgTaskResult(Msg):
    """What a task returned, or how it failed.

    Attributes
    ----------
    success : bool
        True if the task's function returned.
    returnValue : object
        What it returned; None if it failed or the value was not asked for.
    exception : BaseException or None
        What a failed task raised, where that could travel.
    traceback : str or None
        The traceback of a failed task, formatted where it ran.
    """

    success: bool
    returnValue: Any
    exception: BaseException | None = None
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class MsgHostAdd(Msg):
    """Hosts have joined the virtual machine.

    Attributes
    ----------
    hostIDs : sequence of HostID
        The hosts that joined.
    """

    hostIDs: Sequence[HostID]


@dataclass(frozen=True, slots=True)
class MsgHostDelete(Msg):
    """A host has left the virtual machine.

    Attributes
    ----------
    hostID : HostID
        The host that left.
    """

    hostID: HostID
