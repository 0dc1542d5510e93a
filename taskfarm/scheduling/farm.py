"""Slots and tasks of the farm: who is free, what runs where, and when a slot is given back.

Theory of operation. Every worker rank has one slot. Two machines are coupled one to one while a task lives:

* a *slot* is FREE, BUSY with one task, or LOST with its worker;
* a *task* is RUNNING from its assignment until its worker reports the end, FINISHED until that report is handed to
  the caller, and then EXITED. A slot becomes free on hand-out, not on arrival: callers count on it
  (``while vm.freeSlots() != initial: vm.receiveMessage()``).

Task numbers come from one counter, start at 1 and are never used again. What to update with this module: the
diagrams in docs/architecture.md (generated) and the tests that walk the tables.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from taskfarm.errors import InternalError, ProtocolError, UsageError
from taskfarm.fast import new_tuple
from taskfarm.scheduling.machine import Fact, Table, advance

__all__ = ["SLOT_TABLE", "TASK_TABLE", "Assignment", "Farm", "SlotEvent", "SlotState", "TaskEvent", "TaskState"]


class SlotState(Fact):
    """States of a worker's slot."""

    FREE = "free"
    BUSY = "busy"
    LOST = "lost"


class SlotEvent(Fact):
    """What happens to a slot."""

    ASSIGNED = "assigned"
    RELEASED = "released"
    WORKER_LOST = "worker lost"


class TaskState(Fact):
    """States of a task."""

    RUNNING = "running"
    FINISHED = "finished"
    EXITED = "exited"


class TaskEvent(Fact):
    """What happens to a task."""

    ENDED = "ended"
    WORKER_LOST = "worker lost"
    HANDED_OUT = "handed out"


SLOT_TABLE: Table[SlotState, SlotEvent] = {
    (SlotState.FREE, SlotEvent.ASSIGNED): SlotState.BUSY,
    (SlotState.BUSY, SlotEvent.RELEASED): SlotState.FREE,
    (SlotState.FREE, SlotEvent.WORKER_LOST): SlotState.LOST,
    (SlotState.BUSY, SlotEvent.WORKER_LOST): SlotState.LOST,
}

TASK_TABLE: Table[TaskState, TaskEvent] = {
    (TaskState.RUNNING, TaskEvent.ENDED): TaskState.FINISHED,
    (TaskState.RUNNING, TaskEvent.WORKER_LOST): TaskState.FINISHED,
    (TaskState.FINISHED, TaskEvent.HANDED_OUT): TaskState.EXITED,
}


# Hot path: see `taskfarm.fast`.
_FREE, _BUSY, _LOST = SlotState.FREE, SlotState.BUSY, SlotState.LOST
_RUNNING = TaskState.RUNNING
_ASSIGNED, _RELEASED = SlotEvent.ASSIGNED, SlotEvent.RELEASED
_ENDED, _HANDED_OUT = TaskEvent.ENDED, TaskEvent.HANDED_OUT


class Assignment(NamedTuple):
    """A task and the rank whose slot it got; a named tuple, since one is made per task."""

    rank: int
    number: int


class Farm:
    """Free-slot accounting of the spawner.

    Parameters
    ----------
    hosts : mapping of int to str
        The host of each worker rank that has a slot.
    other_hosts : collection of str
        Hosts that belong to the farm but may have no worker slot: the spawner's own.

    Attributes
    ----------
    free : set of int
        Ranks with a free slot; live, not to be changed by others.
    free_hosts : set of str
        Hosts with at least one free slot; live.
    """

    def __init__(self, hosts: Mapping[int, str], other_hosts: Collection[str] = ()) -> None:
        self._hosts = dict(hosts)
        self._slots = dict.fromkeys(self._hosts, _FREE)
        # By task number: those that hold a slot, and finished ones of lost workers. Two dictionaries are twice as fast
        # as one of objects.
        self._ranks: dict[int, int] = {}
        self._states: dict[int, TaskState] = {}
        self._running = 0
        self._next_number = 1
        self._heap = list(self._hosts)
        heapify(self._heap)  # ranks by number; holds every free rank once and perhaps some that are not free any more
        self._in_heap = set(self._hosts)
        self.free: set[int] = set(self._hosts)
        self._free_by_host: dict[str, set[int]] = {host: set() for host in other_hosts}
        for rank, host in self._hosts.items():
            self._free_by_host.setdefault(host, set()).add(rank)
        self.free_hosts: set[str] = set(self._hosts.values())

    # Queries

    @property
    def n_running(self) -> int:
        """Number of tasks whose end has not been reported."""
        return self._running

    @property
    def n_ended(self) -> int:
        """Number of tasks whose end has been reported."""
        return self._next_number - 1 - self._running

    def free_on(self, host: str) -> set[int]:
        """Return the live set of free ranks of `host`."""
        return self._free_by_host[host]

    def busy(self) -> dict[int, int]:
        """Return ``{rank: task number}`` of the busy slots, by rank."""
        found = {rank: number for number, rank in self._ranks.items() if self._slots[rank] is _BUSY}
        return dict(sorted(found.items()))

    def running(self) -> list[Assignment]:
        """Return the tasks whose end has not been reported, by number."""
        return [Assignment(rank, n) for n, rank in self._ranks.items() if self._states[n] is _RUNNING]

    def is_running(self, number: int, rank: int) -> bool:
        """Tell whether task `number` runs on `rank` and has not reported its end."""
        return self._states.get(number) is _RUNNING and self._ranks[number] == rank

    def host_of(self, rank: int) -> str:
        """Return the host of a worker, also of a lost one."""
        return self._hosts[rank]

    def slots(self) -> dict[int, SlotState]:
        """Return the state of each worker's slot, by rank."""
        return dict(sorted(self._slots.items()))

    def check_hosts(self, hosts: Collection[str]) -> None:
        """Raise `UsageError` if one of `hosts` does not belong to the farm."""
        unknown = sorted(set(hosts) - set(self._free_by_host))
        if unknown:
            known = ", ".join(sorted(self._free_by_host)) or "none"
            raise UsageError(f"unknown host {', '.join(map(repr, unknown))}; the hosts are: {known}")

    # Events

    def assign(self, count: int | None = None, hosts: Collection[str] | None = None) -> list[Assignment]:
        """Take up to `count` free slots, lowest rank first, each for a new task.

        Parameters
        ----------
        count : int, optional
            Wanted number of slots; all free ones by default. Fewer are taken if fewer are free; none if not positive.
        hosts : collection of str, optional
            Restrict to these hosts; by default every host qualifies.

        Returns
        -------
        list of Assignment
            In rank order; the tasks are RUNNING.

        Raises
        ------
        UsageError
            If a host is unknown.

        Notes
        -----
        O(count · log(slots)) without `hosts`, O(free slots of the hosts) with them.
        """
        if hosts is None:
            n_free = len(self.free)
            wanted = n_free if count is None or count > n_free else count
            return [self._take(self._pop_lowest()) for _ in range(wanted)]
        self.check_hosts(hosts)
        candidates = sorted(rank for host in set(hosts) for rank in self._free_by_host[host])
        return [self._take(rank) for rank in candidates[: len(candidates) if count is None else max(count, 0)]]

    def assign_group(self, count: int, hosts: Collection[str] | None = None) -> list[Assignment]:
        """Take exactly `count` free slots, of one host if any has so many, else of as few as can be.

        Returns
        -------
        list of Assignment
            In rank order; empty if fewer are free.

        Raises
        ------
        UsageError
            If a host is unknown.
        """
        if hosts is not None:
            self.check_hosts(hosts)
        free = [sorted(ranks) for host, ranks in self._free_by_host.items() if hosts is None or host in hosts]
        if count < 1 or sum(map(len, free)) < count:
            return []
        enough = [ranks for ranks in free if len(ranks) >= count]
        chosen = min(enough, key=len) if enough else [rank for ranks in sorted(free, key=len)[::-1] for rank in ranks]
        return [self._take(rank) for rank in sorted(chosen[:count])]

    def on_ended(self, number: int, rank: int) -> None:
        """Note that the worker on `rank` reported the end of task `number`."""
        if self._ranks.get(number) != rank:
            raise ProtocolError(f"rank {rank} reported the end of task {rank}:{number}, which is not there")
        self._states[number] = advance(TASK_TABLE, self._states[number], _ENDED, "task {}:{}", rank, number)
        self._running -= 1

    def on_handed_out(self, number: int) -> None:
        """Note that the caller was given the exit of task `number`: its slot is free again."""
        rank = self._ranks.get(number)
        if rank is None:
            raise ProtocolError(f"the exit of task number {number} was handed out, which is not there")
        advance(TASK_TABLE, self._states[number], _HANDED_OUT, "task {}:{}", rank, number)
        del self._ranks[number], self._states[number]
        if self._slots[rank] is _LOST:
            return
        self._slots[rank] = advance(SLOT_TABLE, self._slots[rank], _RELEASED, "the slot of rank {}", rank)
        host = self._hosts[rank]
        self.free.add(rank)
        self._free_by_host[host].add(rank)
        self.free_hosts.add(host)
        if rank not in self._in_heap:
            self._in_heap.add(rank)
            heappush(self._heap, rank)

    def on_worker_lost(self, rank: int) -> list[Assignment]:
        """Note that the worker on `rank` is gone; return its task, now FINISHED, whose exit is still to be handed out.

        A second report of the same loss changes nothing and returns an empty list.
        """
        if rank not in self._slots:
            raise ProtocolError(f"rank {rank} was reported lost, but it has no slot")
        if self._slots[rank] is _LOST:
            return []
        self._slots[rank] = advance(SLOT_TABLE, self._slots[rank], SlotEvent.WORKER_LOST, "the slot of rank {}", rank)
        self._forget_free(rank)
        ended = []
        for lost in [task for task in self.running() if task.rank == rank]:
            number = lost.number
            self._states[number] = advance(
                TASK_TABLE, self._states[number], TaskEvent.WORKER_LOST, "task {}:{}", rank, number
            )
            self._running -= 1
            ended.append(lost)
        return ended

    def check_invariants(self) -> None:
        """Raise `InternalError` if the machines disagree; for tests."""
        busy = {rank for rank, state in self._slots.items() if state is _BUSY}
        free = {rank for rank, state in self._slots.items() if state is _FREE}
        holders = [rank for rank in self._ranks.values() if self._slots[rank] is _BUSY]
        union = set().union(*self._free_by_host.values()) if self._free_by_host else set()
        facts = {
            "one task per busy slot": sorted(holders) == sorted(busy),
            "free set": self.free == free == union,
            "free hosts": self.free_hosts == {self._hosts[rank] for rank in free},
            "heap": free <= self._in_heap and sorted(self._in_heap) == sorted(self._heap),
            "running": self._running == len(self.running()),
            "tasks": self._ranks.keys() == self._states.keys(),
        }
        wrong = [name for name, fact in facts.items() if not fact]
        if wrong:
            raise InternalError(f"farm invariants violated: {', '.join(wrong)}")

    # Helpers

    def _pop_lowest(self) -> int:
        while True:
            rank = heappop(self._heap)
            self._in_heap.discard(rank)
            if rank in self.free:
                return rank

    def _take(self, rank: int) -> Assignment:
        self._slots[rank] = advance(SLOT_TABLE, self._slots[rank], _ASSIGNED, "the slot of rank {}", rank)
        self._forget_free(rank)
        number = self._next_number
        self._next_number = number + 1
        self._ranks[number] = rank
        self._states[number] = _RUNNING
        self._running += 1
        return new_tuple(Assignment, (rank, number))

    def _forget_free(self, rank: int) -> None:
        self.free.discard(rank)
        host = self._hosts[rank]
        on_host = self._free_by_host[host]
        on_host.discard(rank)
        if not on_host:
            self.free_hosts.discard(host)
