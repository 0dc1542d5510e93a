"""Managed objects of one rank, and the handles that own them."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest

import taskfarm
from taskfarm.errors import UsageError
from taskfarm.ids import ObjectId
from taskfarm.runtime.registry import Rank0ObjectId, Registry


@pytest.fixture
def registry() -> Registry:
    """An empty registry."""
    return Registry()


def test_ids_are_counted_from_0(registry: Registry) -> None:
    """Each object gets the next number, on every rank alike, whoever owns it."""
    handles = [registry.manage(name, owner=owner) for name, owner in [("a", True), ("b", False), ("c", True)]]
    assert [int(handle) for handle in handles] == [0, 1, 2]
    assert [type(handle) for handle in handles] == [Rank0ObjectId, ObjectId, Rank0ObjectId]
    assert [registry.get(handle) for handle in handles] == ["a", "b", "c"]
    assert registry.counter == 3


def test_handles_are_integers(registry: Registry) -> None:
    """A handle is an `int` of its id: equal, hashable, an index, and shows what it is."""
    handle = registry.manage("a", owner=True)
    assert isinstance(handle, int)
    assert isinstance(handle, taskfarm.ObjectId)
    assert handle == 0
    assert {handle: "x"}[0] == "x"  # type: ignore[index]
    assert repr(handle) == "Rank0ObjectId(0)"
    assert repr(ObjectId(7)) == "ObjectId(7)"
    assert ["first"][handle] == "first"


def test_a_dying_owner_queues_its_object(registry: Registry) -> None:
    """The death of an owning handle removes nothing by itself: the id is queued, and told once."""
    handle = registry.manage("a", owner=True)
    other = registry.manage("b", owner=True)
    del handle
    gc.collect()
    assert registry.objects == {0: "a", 1: "b"}
    assert registry.take_dead() == [0]
    assert registry.take_dead() == []
    assert int(other) == 1


def test_a_plain_handle_owns_nothing(registry: Registry) -> None:
    """Handles of workers may die."""
    registry.manage("a", owner=False)
    gc.collect()
    assert registry.take_dead() == []


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "in a list": lambda handle: copy.deepcopy([handle])[0],
    **{f"pickle {p}": lambda handle, p=p: pickle.loads(pickle.dumps(handle, p)) for p in range(6)},
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES.keys())
def test_copies_do_not_own(registry: Registry, duplicate: Any) -> None:
    """A copy or pickle of an owning handle is a plain `ObjectId` of the same value; its death does nothing."""
    handle = registry.manage("a", owner=True)
    double = duplicate(handle)
    assert type(double) is ObjectId
    assert double == handle
    del double
    gc.collect()
    assert registry.take_dead() == []
    assert registry.get(handle) == "a"


def test_a_handle_that_is_not_of_a_registry_dies_quietly() -> None:
    """`Rank0ObjectId(n)` made by hand, and arithmetic with handles, own nothing."""
    handle = Rank0ObjectId(5)
    assert type(handle + 1) is int
    del handle
    gc.collect()


def test_after_an_explicit_removal_a_dying_handle_does_nothing(registry: Registry) -> None:
    """A removed object is not removed again."""
    handle = registry.manage("a", owner=True)
    registry.remove(handle)
    del handle
    gc.collect()
    assert registry.take_dead() == []


@pytest.mark.parametrize("operation", ["get", "remove"])
def test_an_unknown_id_is_a_clear_error(registry: Registry, operation: str) -> None:
    """The error names the id; it is a `UsageError`, and a `KeyError` for callers of the original; nothing changes."""
    kept = registry.manage("a", owner=False)
    with pytest.raises(UsageError, match="no managed object with id 9 on this rank") as caught:
        getattr(registry, operation)(ObjectId(9))
    assert isinstance(caught.value, KeyError)
    assert registry.objects == {kept: "a"}


def test_discard_takes_what_is_there(registry: Registry) -> None:
    """Automatic removal is silent about ids that are not here."""
    for name in "abc":
        registry.manage(name, owner=False)
    registry.discard([0, 7, 2, 2])
    assert registry.objects == {1: "b"}


def test_a_call_brings_the_counter_back_in_step(registry: Registry) -> None:
    """Rank 0's counter rules: objects that a failed call made here and not there are forgotten; ids can be skipped."""
    for name in "abc":
        registry.manage(name, owner=False)
    registry.start_call(1)
    assert registry.objects == {0: "a"}
    assert registry.manage("d", owner=False) == 1
    registry.start_call(5)
    assert registry.objects == {0: "a", 1: "d"}
    assert registry.manage("e", owner=False) == 5
    registry.start_call(6)
    assert registry.objects == {0: "a", 1: "d", 5: "e"}


def test_an_object_may_be_anything(registry: Registry) -> None:
    """None and unhashable things can be managed; two objects that are equal stay two."""
    handles = [registry.manage(obj, owner=True) for obj in (None, [1], [1])]
    assert registry.get(handles[0]) is None
    assert registry.get(handles[1]) is not registry.get(handles[2])
