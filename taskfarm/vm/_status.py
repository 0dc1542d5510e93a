"""What the spawner shows of hosts and slots."""

from __future__ import annotations

import os
from typing import Any

from taskfarm.errors import InternalError
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.launching.start import cores_by_host
from taskfarm.runtime.session import Session
from taskfarm.scheduling.farm import SlotState
from taskfarm.vm._ids import MPIHostID
from taskfarm.vm.base import getNumberOfCores

__all__ = ["SpawnerView", "spawner_view", "view_in_use"]


class _ByName(dict[str, Any]):
    """A dictionary by host name that also takes the `MPIHostID`."""

    def __missing__(self, key: object) -> Any:
        if isinstance(key, MPIHostID) and key.name is not None and key.name in self:
            return self[key.name]
        raise KeyError(key)


class SpawnerView:
    """Hosts and slots as callers of the spawner know them.

    Attributes
    ----------
    free_hosts : set of MPIHostID
        Live: the hosts with a free worker slot.
    """

    def __init__(self, session: Session) -> None:
        if session.controller is None:
            raise InternalError("only the spawner has a view of the slots")
        self._session = session
        self._controller: Controller = session.controller
        peers = session.peers
        self._host_of = {peer.rank: peer.host for peer in peers} or {0: session.host}
        self._cores = cores_by_host(session.peers) if session.peers else {session.host: getNumberOfCores()}
        self._pids = {peer.rank: peer.pid for peer in peers} or {0: os.getpid()}
        self.host_ids = {name: MPIHostID(name) for name in dict.fromkeys(self._host_of.values())}
        self.free_hosts = {self.host_ids[name] for name in self._controller.farm.free_hosts}
        for rank in self._controller.lost:
            self._lose(rank, "")
        self._controller.loss_listeners.append(self._lose)

    def _lose(self, rank: int, how: str) -> None:
        """Forget the slot of a rank that died, and its host if that was the last one there."""
        name = self._host_of.pop(rank)
        if name not in self._host_of.values():
            self.free_hosts.discard(self.host_ids.pop(name))
        elif name not in self._controller.farm.free_hosts:
            self.free_hosts.discard(self.host_ids[name])

    def update(self, rank: int) -> None:
        """Note that the slot of `rank` was taken or freed, or that the task of a lost one has been handed out."""
        name = self._host_of.get(rank)
        if name is None:
            return
        if name in self._controller.farm.free_hosts:
            self.free_hosts.add(self.host_ids[name])
        else:
            self.free_hosts.discard(self.host_ids[name])

    def n_slots(self) -> int:
        """Return the number of slots, rank 0's included and lost ones not."""
        return 1 + sum(state is not SlotState.LOST for state in self._controller.farm.slots().values())

    def status(self) -> dict[str, Any]:
        """Return the status dictionary; the sets in it are live, the rest is of this moment."""
        farm = self._controller.farm
        busy = {0: 0, **farm.busy()}
        slots = {
            rank: {"host": name, "taskNumber": busy.get(rank, -1), "pid": self._pids.get(rank)}
            for rank, name in self._alive().items()
        }
        hosts = _ByName()
        for name in self.host_ids:
            ranks = [rank for rank, slot in slots.items() if slot["host"] == name]
            hosts[name] = {
                "slots": set(ranks),
                "freeSlots": farm.free_on(name),
                "ncpu": self._cores[name],
            }
        return {
            "hosts": hosts,
            "slots": slots,
            "usedSlots": set(busy),
            "freeSlots": farm.free,
            "freeHosts": self.free_hosts,
            "slot2host": {rank: self.host_ids[name] for rank, name in self._alive().items()},
        }

    def text(self) -> str:
        """Return hosts and busy slots as text."""
        farm = self._controller.farm
        busy = {0: 0, **farm.busy()}
        lines = []
        for name in self.host_ids:
            free = sorted(farm.free_on(name))
            lines.append(f"{name} ncpu={self._cores[name]} free slots: {free}")
            lines += [
                f"\tslot={rank:4d} task={number:4d}" for rank, number in busy.items() if self._host_of[rank] == name
            ]
        return "\n".join(lines) + "\n"

    def _alive(self) -> dict[int, str]:
        states = self._controller.farm.slots()
        return {rank: name for rank, name in self._host_of.items() if states.get(rank) is not SlotState.LOST}


def view_in_use(session: Session) -> SpawnerView | None:
    """Return the view if somebody has asked for it: it must be told of every slot that is taken or freed."""
    return session.face_state.get("vm")


def spawner_view(session: Session) -> SpawnerView:
    """Return the view of an open session on the spawner; the first call makes it."""
    view = session.face_state.get("vm")
    if not isinstance(view, SpawnerView):
        view = session.face_state["vm"] = SpawnerView(session)
    return view
