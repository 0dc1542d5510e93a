"""The virtual machine on MPI: one spawner on rank 0, one worker with one slot on every other rank."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from typing import Any

from taskfarm.config import OnError
from taskfarm.errors import UsageError
from taskfarm.runtime.isolation.asking import isolate as isolate_tasks
from taskfarm.runtime.runner import flush_output
from taskfarm.runtime.session import Phase, current, enter
from taskfarm.vm import base
from taskfarm.vm._arrays import Arrays
from taskfarm.vm._ids import MPIHostID, MPITaskID
from taskfarm.vm._letters import open_letter
from taskfarm.vm._sides import endpoint_of, part_ranks, rank_of, spawner
from taskfarm.vm._spawning import Spawning
from taskfarm.vm._status import SpawnerView, spawner_view

__all__ = ["MPI"]

_INF = math.inf


class _StatusOfClass(type):
    """Gives the class `MPI` its live attribute ``vmStatus``."""

    @property
    def vmStatus(cls) -> dict[str, Any] | None:
        """Hosts and slots on the spawner; None on workers, and while there is no open session."""
        session = current()
        if session.controller is None or session.phase is not Phase.OPEN:
            return None
        return spawner_view(session).status()


class MPI(Spawning, Arrays, base.VirtualMachine, metaclass=_StatusOfClass):
    """The MPI virtual machine.

    The first object that is made parts the ranks (see `spawnerBarrier`): the program goes on at rank 0 only.

    Parameters
    ----------
    debug : int
        Above 0, workers send text about their tasks, which rank 0 prints while it receives messages.
    startupDir, translateStartupDir, mirrorMap, persistentStorage
        See `taskfarm.vm.base.VirtualMachine`.
    isolate : bool
        Run tasks in a process of their own per worker, without MPI: if it dies, the task has failed, and the worker
        lives on. To be asked for with the first object, before MPI starts.

    Raises
    ------
    ImportError
        If mpi4py or an MPI library is missing; the message has the command that installs them.
    """

    def __init__(
        self,
        debug: int = 0,
        startupDir: str | None = None,
        translateStartupDir: bool = True,
        mirrorMap: Mapping[str, str] | None = None,
        persistentStorage: bool = False,
        isolate: bool = False,
    ) -> None:
        if isolate and current().worker is None:
            isolate_tasks(current())
        MPI.spawnerBarrier()
        super().__init__(debug, startupDir, translateStartupDir, mirrorMap, persistentStorage)
        if debug and current().rank == 0:
            MPI.setWorkerDebug(debug)

    @property
    def vmStatus(self) -> dict[str, Any] | None:
        """The same as the attribute of the class."""
        return _StatusOfClass.vmStatus.fget(type(self))  # type: ignore[attr-defined,no-any-return]

    # Parting and the end

    @staticmethod
    def spawnerBarrier(timeout: float = -1.0) -> None:
        """Part spawner and workers: rank 0 returns, every other rank serves until it is told to exit.

        Harmless when repeated on rank 0, and inside a task. With one process it returns.

        Parameters
        ----------
        timeout : float
            How many seconds rank 0 waits for all workers; negative waits for ever.

        Raises
        ------
        WorkerLostError
            If workers are missing after `timeout`; it names them.
        SystemExit
            On workers, with status 0, when they are told to exit.
        """
        part_ranks(timeout)

    @staticmethod
    def finalize() -> None:
        """End the virtual machine, and MPI; only on the spawner. Repeating it is harmless.

        Running tasks may end; those that wait in `receiveMessage` for what nobody will send are cut off. Messages that
        were not received are dropped.
        """
        session = current()
        if session.phase is Phase.CLOSED and session.rank == 0:
            session.finalize_mpi()
            return
        spawner("finalize")
        session.close()
        flush_output()
        session.finalize_mpi()

    # Hosts, slots, tasks

    @staticmethod
    def slots() -> int:
        """Return the number of slots, the spawner's own included; only on the spawner."""
        return _view("slots").n_slots()

    @staticmethod
    def freeSlots() -> int:
        """Return the number of slots that `spawnFunction` can fill; only on the spawner."""
        controller = enter("freeSlots").open_controller or spawner("freeSlots")
        return len(controller.farm.free)

    @staticmethod
    def freeSlotsSet() -> set[int]:
        """Return the live set of ranks with a free slot; only on the spawner. Do not change it."""
        return spawner("freeSlotsSet").farm.free

    @staticmethod
    def hosts() -> list[MPIHostID]:
        """Return the hosts in the order of their lowest rank; only on the spawner."""
        return list(_view("hosts").host_ids.values())

    @staticmethod
    def hostsWithFreeSlots() -> set[MPIHostID]:
        """Return the live set of hosts with a free slot; only on the spawner. Do not change it."""
        return _view("hostsWithFreeSlots").free_hosts

    @staticmethod
    def formatSpawnerConfig() -> str:
        """Return a line per host, and under it a line per busy slot; only on the spawner."""
        return _view("formatSpawnerConfig").text()

    @staticmethod
    def hostID(taskID: MPITaskID | None = None) -> MPIHostID:
        """Return the host that a task runs on, by default the calling one; `MPIHostID.bad()` if there is none."""
        session = current()
        if taskID is None or taskID.rank == session.rank:
            return MPIHostID(session.host)
        if 0 <= taskID.rank < len(session.peers):
            return MPIHostID(session.peers[taskID.rank].host)
        return MPIHostID.bad()

    @staticmethod
    def taskID() -> MPITaskID:
        """Return the identifier of the calling task: ``0:0`` on the spawner."""
        session = current()
        if session.rank == 0:
            return MPITaskID(0, 0)
        number = session.worker.mailbox.number if session.worker is not None else None
        return MPITaskID.bad() if number is None else MPITaskID(session.rank, number)

    @staticmethod
    def parentTaskID() -> MPITaskID:
        """Return the task that spawned the calling one: ``0:0`` on workers, `MPITaskID.bad()` on the spawner."""
        return MPITaskID.bad() if current().rank == 0 else MPITaskID(0, 0)

    # Messages

    @staticmethod
    def checkForIncoming(fromDestination: Any = None) -> bool:
        """Tell whether ``receiveMessage(0)`` would return a message, from the given rank or task's rank if any."""
        endpoint = endpoint_of("checkForIncoming")
        return endpoint.check_letter(rank_of(fromDestination, endpoint.transport.size))

    @staticmethod
    def receiveMessage(timeout: float = -1.0, fromDestination: Any = None) -> tuple[Any, ...] | None:
        """Receive the next message for the calling task.

        Parameters
        ----------
        timeout : float
            How many seconds to wait; negative waits for ever, 0 does not wait.
        fromDestination : int or MPITaskID, optional
            Only messages from this rank.

        Returns
        -------
        tuple or None
            (MPITaskID of the sender, message); ``()`` if none came in time; None if one came that cannot be loaded.
        """
        session = enter("receiveMessage")
        endpoint = session.open_endpoint or endpoint_of("receiveMessage")
        rank = None if fromDestination is None else rank_of(fromDestination, endpoint.transport.size)
        deadline = _INF if timeout < 0 else time.monotonic() + timeout
        letter = endpoint.take_letter(deadline, rank)
        return () if letter is None else open_letter(session, letter)

    @staticmethod
    def sendMessage(destination: MPITaskID, message: Any) -> bool:
        """Send `message` to a task; never waits for the receiver, and the message may be changed afterwards.

        Returns
        -------
        bool
            False if `destination` is no task of this machine, or is known to have ended.

        Raises
        ------
        UsageError
            If `destination` is not an `MPITaskID`, or inside a collective call.
        Exception
            What pickling raises; nothing was sent then.
        """
        endpoint = enter("sendMessage").open_endpoint or endpoint_of("sendMessage")
        if not isinstance(destination, MPITaskID):
            raise UsageError(f"sendMessage: destination={destination!r} is not an MPITaskID")
        if endpoint.current_call:
            raise UsageError("sendMessage inside a collective call: messages go between tasks")
        return endpoint.send_message(destination.rank, destination.number, message)

    # Housekeeping

    @staticmethod
    def setWorkerDebug(level: int) -> None:
        """Set how much workers tell of their tasks: nothing at 0; only on the spawner."""
        spawner("setWorkerDebug").set_worker_debug(level)

    def clearLocalStorage(self, timeout: float = -1.0) -> bool:
        """Remove what tasks of this user have left in local storage, on every host; only on the spawner.

        Waits for running tasks, since their folders go too.

        Parameters
        ----------
        timeout : float
            How many seconds to wait for them; negative waits for ever.

        Returns
        -------
        bool
            False if tasks were still running then, and nothing was removed.
        """
        controller = spawner("clearLocalStorage")
        deadline = math.inf if timeout < 0 else time.monotonic() + timeout
        if controller.drain_tasks(deadline, "clearLocalStorage"):
            return False
        session = current()
        if session.size == 1:
            base.localStorageCleaner()
            return True
        lowest = {peer.host: peer.rank for peer in reversed(session.peers)}
        controller.caller.call(_clean_if_among, (sorted(lowest.values()),), {}, OnError.WAIT, values=True)
        return True


def _clean_if_among(ranks: Collection[int]) -> None:
    """Clean local storage if this rank is the one of its host that does."""
    if current().rank in ranks:
        base.localStorageCleaner()


def _view(what: str) -> SpawnerView:
    spawner(what)
    return spawner_view(current())
