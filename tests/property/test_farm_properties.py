"""The farm as a state machine: no slot is lost or doubled, every task ends exactly once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskfarm.errors import ProtocolError, UsageError
from taskfarm.scheduling.farm import Farm, SlotState

HOST_NAMES = ["a", "b", "c"]


class FarmMachine(RuleBasedStateMachine):
    """Drives a farm with anything that may happen, and some of what may not; keeps simple books of its own."""

    @initialize(names=st.lists(st.sampled_from(HOST_NAMES), max_size=7))
    def start(self, names: list[str]) -> None:
        self.hosts = dict(enumerate(names, start=1))
        self.farm = Farm(self.hosts)
        self.last_number = 0
        self.running: dict[int, int] = {}  # number: rank
        self.finished: dict[int, int] = {}
        self.exited: dict[int, int] = {}
        self.lost: set[int] = set()
        self.n_ends: dict[int, int] = {}
        self.live_sets = (self.farm.free, self.farm.free_hosts)

    @property
    def holders(self) -> dict[int, int]:
        """Tasks that hold a slot that is there: rank to number."""
        tasks = [*self.running.items(), *self.finished.items()]
        return {rank: number for number, rank in tasks if rank not in self.lost}

    @property
    def free(self) -> set[int]:
        return set(self.hosts) - self.lost - set(self.holders)

    def refused(self, event: Callable[[], Any]) -> None:
        """Do what does not fit: it raises and changes nothing."""
        before = copy.deepcopy(vars(self.farm))
        with pytest.raises(ProtocolError):
            event()
        assert vars(self.farm) == before

    @rule(count=st.none() | st.integers(-2, 9), hosts=st.none() | st.lists(st.sampled_from(HOST_NAMES), max_size=3))
    def assign(self, count: int | None, hosts: list[str] | None) -> None:
        unknown = set(hosts or ()) - set(self.hosts.values())
        if unknown:
            with pytest.raises(UsageError):
                self.farm.assign(count, hosts)
            return
        candidates = sorted(rank for rank in self.free if hosts is None or self.hosts[rank] in hosts)
        expected = candidates if count is None else candidates[: max(count, 0)]
        assigned = self.farm.assign(count, hosts)
        assert [slot.rank for slot in assigned] == expected
        for slot in assigned:
            self.last_number += 1
            assert slot.number == self.last_number
            self.running[slot.number] = slot.rank

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.running)))
        rank = self.running[number]
        self.refused(lambda: self.farm.on_ended(number, rank + 1))
        self.refused(lambda: self.farm.on_handed_out(number))
        self.farm.on_ended(number, rank)
        self.finished[number] = self.running.pop(number)
        self.n_ends[number] = self.n_ends.get(number, 0) + 1

    @precondition(lambda self: self.finished)
    @rule(data=st.data())
    def hand_out(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.finished)))
        self.refused(lambda: self.farm.on_ended(number, self.finished[number]))
        self.farm.on_handed_out(number)
        self.exited[number] = self.finished.pop(number)

    @precondition(lambda self: self.hosts)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from(sorted(self.hosts)))
        ended = [] if rank in self.lost else [(r, n) for n, r in self.running.items() if r == rank]
        assert [(slot.rank, slot.number) for slot in self.farm.on_worker_lost(rank)] == ended
        self.lost.add(rank)
        for _, number in ended:
            self.finished[number] = self.running.pop(number)
            self.n_ends[number] = self.n_ends.get(number, 0) + 1

    @rule(data=st.data())
    def what_does_not_fit(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([*self.exited, 0, -1, self.last_number + 1]))
        self.refused(lambda: self.farm.on_handed_out(number))
        self.refused(lambda: self.farm.on_ended(number, self.exited.get(number, 1)))
        self.refused(lambda: self.farm.on_worker_lost(len(self.hosts) + 1))

    @invariant()
    def no_slot_is_lost_or_doubled(self) -> None:
        farm = self.farm
        farm.check_invariants()
        assert farm.free == self.free
        assert farm.busy() == self.holders
        assert farm.free_hosts == {self.hosts[rank] for rank in self.free}
        for name in set(self.hosts.values()):
            assert farm.free_on(name) == {rank for rank in self.free if self.hosts[rank] == name}
        states = dict.fromkeys(self.free, SlotState.FREE)
        states |= dict.fromkeys(self.holders, SlotState.BUSY) | dict.fromkeys(self.lost, SlotState.LOST)
        assert farm.slots() == states
        assert (farm.free, farm.free_hosts) == self.live_sets
        assert farm.free is self.live_sets[0]

    @invariant()
    def running_tasks_are_known(self) -> None:
        assert {slot.number: slot.rank for slot in self.farm.running()} == self.running
        assert self.farm.n_running == len(self.running)
        assert all(self.farm.is_running(number, rank) for number, rank in self.running.items())
        assert not any(self.farm.is_running(number, rank) for number, rank in self.finished.items())

    def teardown(self) -> None:
        """In the end every task has ended and exited exactly once, and every slot that is not lost is free."""
        if not hasattr(self, "farm"):
            return
        for number, rank in self.running.items():
            self.farm.on_ended(number, rank)
            self.n_ends[number] = self.n_ends.get(number, 0) + 1
        for number in (*self.running, *self.finished):
            self.farm.on_handed_out(number)
        assert self.n_ends == dict.fromkeys(range(1, self.last_number + 1), 1)
        assert self.farm.free == set(self.hosts) - self.lost
        assert (self.farm.busy(), self.farm.running(), self.farm.n_running) == ({}, [], 0)
        self.farm.check_invariants()


TestFarm = FarmMachine.TestCase
