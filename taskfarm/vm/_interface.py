"""What a concrete virtual machine has to supply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from taskfarm.vm._messages import HostID, TaskID, abstract

__all__ = ["Interface"]


class Interface:
    """The communicating half of a virtual machine; abstract."""

    @staticmethod
    def slots() -> int:
        """Return the number of slots, the spawner's own included."""
        raise abstract("VirtualMachine.slots")

    @staticmethod
    def freeSlots() -> int:
        """Return the number of slots that `spawnFunction` can still fill."""
        raise abstract("VirtualMachine.freeSlots")

    @staticmethod
    def hosts() -> Sequence[HostID]:
        """Return the hosts of the virtual machine."""
        raise abstract("VirtualMachine.hosts")

    @staticmethod
    def hostID(taskID: Any = None) -> HostID:
        """Return the host that a task runs on, by default the calling one."""
        raise abstract("VirtualMachine.hostID")

    @staticmethod
    def taskID() -> TaskID:
        """Return the identifier of the calling task."""
        raise abstract("VirtualMachine.taskID")

    @staticmethod
    def parentTaskID() -> TaskID:
        """Return the identifier of the task that spawned the calling one."""
        raise abstract("VirtualMachine.parentTaskID")

    @staticmethod
    def formatSpawnerConfig() -> str:
        """Return hosts and slots as text."""
        raise abstract("VirtualMachine.formatSpawnerConfig")

    def spawnFunction(
        self,
        function: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
        count: int | None = None,
        targetList: Iterable[HostID] | None = None,
        sendBack: Any = True,
    ) -> Sequence[TaskID]:
        """Start `function` in up to `count` free slots and return the tasks."""
        raise abstract("VirtualMachine.spawnFunction")

    @staticmethod
    def checkForIncoming(fromDestination: Any = None) -> bool:
        """Return True if a message waits to be received."""
        raise abstract("VirtualMachine.checkForIncoming")

    @staticmethod
    def receiveMessage(timeout: float = -1.0, fromDestination: Any = None) -> tuple[Any, ...] | None:
        """Return (sender, message), or ``()`` if none came within `timeout` seconds; negative waits for ever."""
        raise abstract("VirtualMachine.receiveMessage")

    @staticmethod
    def sendMessage(destination: Any, message: Any) -> bool:
        """Send `message` to a task and return True if that was possible."""
        raise abstract("VirtualMachine.sendMessage")

    @staticmethod
    def finalize() -> None:
        """End the virtual machine."""
        raise abstract("VirtualMachine.finalize")

    def clearLocalStorage(self, timeout: float = -1.0) -> Any:
        """Remove what tasks have left in local storage, on every host."""
        raise abstract("VirtualMachine.clearLocalStorage")

    @staticmethod
    def spawnerBarrier(timeout: float = -1.0) -> None:
        """Part spawner and workers: only the spawner returns."""
        raise abstract("VirtualMachine.spawnerBarrier")

    @staticmethod
    def setWorkerDebug(level: int) -> None:
        """Set how much workers tell."""
        raise abstract("VirtualMachine.setWorkerDebug")
