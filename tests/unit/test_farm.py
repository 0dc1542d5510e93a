"""Slots and tasks of the farm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from taskfarm.errors import InternalError, ProtocolError, UsageError
from taskfarm.scheduling.farm import Assignment, Farm, SlotState

NewFarm = Callable[[Mapping[int, str]], Farm]
HOSTS = {1: "a", 2: "a", 3: "b", 4: "b", 5: "c"}


@pytest.fixture
def new_farm() -> Iterator[NewFarm]:
    """Makes farms, whose invariants are checked after the test."""
    farms: list[Farm] = []

    def make(hosts: Mapping[int, str]) -> Farm:
        farms.append(Farm(hosts))
        return farms[-1]

    yield make
    for farm in farms:
        farm.check_invariants()


@pytest.fixture
def farm(new_farm: NewFarm) -> Farm:
    """A farm of five workers on three hosts."""
    return new_farm(HOSTS)


def state_of(farm: Farm) -> Any:
    """Everything that the farm knows, to see that nothing changed."""
    return copy.deepcopy(vars(farm))


def pairs(assigned: list[Assignment]) -> list[tuple[int, int]]:
    return [(slot.rank, slot.number) for slot in assigned]


def test_a_new_farm_is_free(farm: Farm) -> None:
    """At first every worker's slot is free, and so is every host; rank 0 has none."""
    assert farm.free == {1, 2, 3, 4, 5}
    assert farm.free_hosts == {"a", "b", "c"}
    assert farm.slots() == dict.fromkeys(range(1, 6), SlotState.FREE)
    assert (farm.busy(), farm.running(), farm.n_running) == ({}, [], 0)


def test_lowest_ranks_first_with_numbers_from_1(farm: Farm) -> None:
    """Slots are taken from the lowest rank on; task numbers are counted from 1."""
    assert pairs(farm.assign(2)) == [(1, 1), (2, 2)]
    assert pairs(farm.assign(1)) == [(3, 3)]
    assert farm.free == {4, 5}
    assert farm.busy() == {1: 1, 2: 2, 3: 3}


@pytest.mark.parametrize(
    ("count", "hosts", "ranks"),
    [
        (None, None, [1, 2, 3, 4, 5]),
        (3, None, [1, 2, 3]),
        (99, None, [1, 2, 3, 4, 5]),
        (0, None, []),
        (-1, None, []),
        (None, ["b"], [3, 4]),
        (1, ["b"], [3]),
        (99, ["c", "a"], [1, 2, 5]),
        (None, ["b", "b"], [3, 4]),
        (0, ["a"], []),
        (-3, ["a"], []),
        (None, [], []),
    ],
)
def test_count_and_hosts(farm: Farm, count: int | None, hosts: list[str] | None, ranks: list[int]) -> None:
    """None fills all free slots, 0 and less give none, more than there are give what there is; hosts restrict."""
    assert [slot.rank for slot in farm.assign(count, hosts)] == ranks
    assert farm.free == set(HOSTS) - set(ranks)


def test_nothing_free_gives_nothing(farm: Farm) -> None:
    """Without free slots the list is empty, and no number is used up."""
    farm.assign()
    assert farm.assign() == farm.assign(1, ["a"]) == []
    farm.on_ended(1, 1)
    farm.on_handed_out(1)
    assert pairs(farm.assign()) == [(1, 6)]


def test_an_unknown_host_is_named(farm: Farm) -> None:
    """A host without slots is refused by name, together with the known ones, and nothing is taken."""
    before = state_of(farm)
    with pytest.raises(UsageError, match="unknown host 'x', 'z'; the hosts are: a, b, c"):
        farm.assign(1, ["a", "z", "x"])
    with pytest.raises(UsageError, match="unknown host"):
        farm.check_hosts(["nowhere"])
    assert state_of(farm) == before
    farm.check_hosts([])
    farm.check_hosts(HOSTS.values())


def test_a_slot_is_free_when_the_exit_is_handed_out(farm: Farm) -> None:
    """The worker's report does not free the slot; handing out the exit does."""
    farm.assign(1)
    farm.on_ended(1, 1)
    assert farm.free == {2, 3, 4, 5}
    assert farm.busy() == {1: 1}
    assert (farm.n_running, farm.running(), farm.is_running(1, 1)) == (0, [], False)
    farm.on_handed_out(1)
    assert farm.free == {1, 2, 3, 4, 5}
    assert farm.busy() == {}


def test_free_sets_are_live(farm: Farm) -> None:
    """The sets that were handed out once follow every change."""
    free, hosts, on_c = farm.free, farm.free_hosts, farm.free_on("c")
    farm.assign(None, ["c"])
    assert (free, hosts, on_c) == ({1, 2, 3, 4}, {"a", "b"}, set())
    farm.on_ended(1, 5)
    farm.on_handed_out(1)
    assert (free, hosts, on_c) == ({1, 2, 3, 4, 5}, {"a", "b", "c"}, {5})
    assert farm.free is free
    assert farm.free_hosts is hosts
    assert farm.free_on("c") is on_c


def test_queries_about_running_tasks(farm: Farm) -> None:
    """A task runs on its own rank only, until its end is reported."""
    farm.assign(2)
    assert farm.n_running == 2
    assert pairs(farm.running()) == [(1, 1), (2, 2)]
    assert farm.is_running(1, 1)
    assert not farm.is_running(1, 2)
    assert not farm.is_running(3, 3)


def test_numbers_are_never_used_again(farm: Farm) -> None:
    """Every task has a number of its own, also on a slot that was used before."""
    seen = []
    for _ in range(4):
        assigned = farm.assign()
        seen += [slot.number for slot in assigned]
        for slot in reversed(assigned):
            farm.on_ended(slot.number, slot.rank)
            farm.on_handed_out(slot.number)
    assert seen == list(range(1, 21))


def test_ranks_stay_in_order_whatever_was_used_before(farm: Farm) -> None:
    """Taking slots by host in between does not disturb the order of the others."""
    for slot in farm.assign(None, ["a", "c"]):
        farm.on_ended(slot.number, slot.rank)
        farm.on_handed_out(slot.number)
    farm.assign(None, ["a"])
    assert [slot.rank for slot in farm.assign(2)] == [3, 4]
    farm.on_ended(4, 1)
    farm.on_handed_out(4)
    assert [slot.rank for slot in farm.assign()] == [1, 5]


# What does not fit


def test_ends_that_do_not_fit_change_nothing(farm: Farm) -> None:
    """The end of a task that is not there, elsewhere, or reported before raises; nothing changes."""
    farm.assign(2)
    farm.on_ended(2, 2)
    before = state_of(farm)
    for number, rank in [(3, 3), (1, 2), (1, 99), (0, 0), (-1, 1)]:
        with pytest.raises(ProtocolError, match=f"{rank}:{number}, which is not there"):
            farm.on_ended(number, rank)
    with pytest.raises(ProtocolError, match="task 2:2 is FINISHED, which does not allow ENDED"):
        farm.on_ended(2, 2)
    assert state_of(farm) == before


def test_hand_outs_that_do_not_fit_change_nothing(farm: Farm) -> None:
    """The exit of a running, an exited or an unknown task cannot be handed out."""
    farm.assign(2)
    farm.on_ended(2, 2)
    farm.on_handed_out(2)
    before = state_of(farm)
    with pytest.raises(ProtocolError, match="task 1:1 is RUNNING, which does not allow HANDED_OUT"):
        farm.on_handed_out(1)
    for number in (2, 3, 0):
        with pytest.raises(ProtocolError, match=f"task number {number} was handed out, which is not there"):
            farm.on_handed_out(number)
    assert state_of(farm) == before


# Losses


def test_a_lost_idle_worker_has_no_slot_any_more(farm: Farm) -> None:
    """Nothing is ever assigned to a lost worker; its host goes from the free ones if it was the last there."""
    assert farm.on_worker_lost(5) == []
    assert farm.free == {1, 2, 3, 4}
    assert farm.free_hosts == {"a", "b"}
    assert farm.slots()[5] is SlotState.LOST
    assert farm.assign(None, ["c"]) == []
    assert [slot.rank for slot in farm.assign()] == [1, 2, 3, 4]


def test_a_lost_busy_workers_task_ends(farm: Farm) -> None:
    """The task of a lost worker is finished, its exit is handed out once, and the slot does not come back."""
    farm.assign(2)
    assert farm.on_worker_lost(1) == [Assignment(1, 1)]
    assert pairs(farm.running()) == [(2, 2)]
    assert farm.busy() == {2: 2}
    before = state_of(farm)
    with pytest.raises(ProtocolError):
        farm.on_ended(1, 1)  # a report that was under way when the worker was given up
    assert state_of(farm) == before
    farm.on_handed_out(1)
    assert 1 not in farm.free
    with pytest.raises(ProtocolError):
        farm.on_handed_out(1)


def test_a_worker_lost_after_its_report(farm: Farm) -> None:
    """A task whose end was reported before the loss ended as it said; only the slot is lost."""
    farm.assign(1)
    farm.on_ended(1, 1)
    assert farm.on_worker_lost(1) == []
    farm.on_handed_out(1)
    assert farm.slots()[1] is SlotState.LOST
    assert farm.n_running == 0


def test_a_second_report_of_a_loss_changes_nothing(farm: Farm) -> None:
    """A loss may be noticed twice; an unknown rank cannot be lost."""
    farm.assign(1)
    farm.on_worker_lost(1)
    before = state_of(farm)
    assert farm.on_worker_lost(1) == []
    for rank in (0, 6):
        with pytest.raises(ProtocolError, match=f"rank {rank} was reported lost"):
            farm.on_worker_lost(rank)
    assert state_of(farm) == before


def test_a_farm_without_workers(new_farm: NewFarm) -> None:
    """One process alone has no worker slot: spawning gives an empty list."""
    farm = new_farm({})
    assert farm.assign() == farm.assign(3) == farm.assign(3, []) == []
    with pytest.raises(UsageError, match="the hosts are: none"):
        farm.assign(1, ["a"])


def test_a_host_without_worker_slots() -> None:
    """The spawner's own host is known although it has no slot: nothing is assigned there, and nothing is free."""
    farm = Farm(HOSTS, ["s", "a"])
    assert farm.assign(None, ["s"]) == []
    assert farm.free_on("s") == set()
    assert farm.free_hosts == {"a", "b", "c"}
    assert [slot.rank for slot in farm.assign(None, ["s", "a"])] == [1, 2]
    farm.check_hosts(["s", "a", "b", "c"])
    farm.check_invariants()


def test_hosts_are_the_farms_own(new_farm: NewFarm) -> None:
    """Changing the mapping that was given changes nothing."""
    hosts = dict(HOSTS)
    farm = new_farm(hosts)
    hosts.clear()
    assert [slot.rank for slot in farm.assign()] == [1, 2, 3, 4, 5]


def test_broken_invariants_are_seen() -> None:
    """`check_invariants` names what does not fit together."""
    farm = Farm(HOSTS)
    farm.free.discard(1)
    with pytest.raises(InternalError, match="free set"):
        farm.check_invariants()
    farm = Farm(HOSTS)
    farm.assign(1)
    farm._ranks.clear()
    with pytest.raises(InternalError, match="one task per busy slot"):
        farm.check_invariants()
