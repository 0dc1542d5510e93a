"""Identifiers, messages and the inert half of the virtual machine."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import pickle
from typing import Any

import pytest

from taskfarm.errors import UsageError
from taskfarm.vm import base
from taskfarm.vm._ids import MPIHostID, MPITaskID
from taskfarm.vm.base import (
    HostID,
    Msg,
    MsgHostAdd,
    MsgHostDelete,
    MsgTaskExit,
    MsgTaskResult,
    TaskID,
    VirtualMachine,
    getNumberOfCores,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
IDENTIFIERS = [MPIHostID("node1"), MPIHostID.bad(), MPITaskID(3, 17), MPITaskID.bad()]


class Hostile:
    """Cannot be compared: what some callers' classes do with a stranger."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise AttributeError("no attribute 'name'")


class Thing:
    """An importable class with one callable of each kind."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def method(self, x: int) -> int:
        return self.value + x

    @classmethod
    def make(cls, value: int) -> Thing:
        return cls(value)

    @staticmethod
    def double(x: int) -> int:
        return 2 * x

    def __private(self) -> int:
        return self.value

    def privateMethod(self) -> Any:
        return self.__private

    def __call__(self, x: int) -> int:
        return self.value * x


def add(x: int, y: int = 1) -> int:
    return x + y


# Identifiers


def test_host_id_shows_its_name() -> None:
    """A host identifier gives its name, is valid and true, and has a useful repr."""
    host = MPIHostID("node1")
    assert (host.name, str(host), repr(host)) == ("node1", "node1", "MPIHostID('node1')")
    assert host.valid() and bool(host)
    assert isinstance(host, HostID)


def test_bad_host_id() -> None:
    """The bad host has no name, is not valid, is false and says so."""
    bad = MPIHostID.bad()
    assert bad.name is None
    assert (str(bad), repr(bad)) == ("MPI_NOHOST", "MPIHostID(None)")
    assert not bad.valid() and not bad
    assert bad == MPIHostID(None)


def test_task_id_shows_rank_and_number() -> None:
    """A task identifier gives rank and number, is valid from rank 0 on, and has a useful repr."""
    task = MPITaskID(3, 17)
    assert (task.rank, task.number, str(task), repr(task)) == (3, 17, "3:17", "MPITaskID(3, 17)")
    assert task.valid() and bool(task)
    assert MPITaskID(0, 0).valid() and bool(MPITaskID(0, 0))
    assert isinstance(task, TaskID)


def test_bad_task_id() -> None:
    """The bad task has rank -1, is not valid, is false, says so, and equals what the spawner has as a parent."""
    bad = MPITaskID.bad()
    assert bad.rank == -1
    assert (str(bad), repr(bad)) == ("MPI_NOTASK", "MPITaskID(-1, -1)")
    assert not bad.valid() and not bad
    assert bad == MPITaskID(-1, -1)


@pytest.mark.parametrize("identifier", IDENTIFIERS, ids=repr)
def test_ids_are_values(identifier: Any) -> None:
    """Equal identifiers are one key of a dict and one member of a set, bad ones too."""
    twin = copy.deepcopy(identifier)
    assert (twin == identifier, twin != identifier, hash(twin)) == (True, False, hash(identifier))
    assert {identifier: 1}[twin] == 1
    assert len({identifier, twin}) == 1


@pytest.mark.parametrize("identifier", IDENTIFIERS, ids=repr)
@pytest.mark.parametrize(
    "other",
    [None, 0, 3, "node1", "3:17", (3, 17), ["node1"], float("nan"), object(), MPITaskID, Hostile()],
    ids=lambda other: type(other).__name__,
)
def test_ids_compare_with_anything(identifier: Any, other: object) -> None:
    """An identifier is unequal to whatever is no identifier, and comparing never raises."""
    assert (identifier == other) is False
    assert (identifier != other) is True


def test_ids_differ_by_value_and_kind() -> None:
    """Rank, number, name and kind all count."""
    assert len({*IDENTIFIERS, MPITaskID(3, 18), MPITaskID(4, 17), MPIHostID("node2"), MPIHostID("")}) == 8
    assert MPITaskID(-1, 5) != MPITaskID.bad()
    assert MPIHostID("")  # a name, if an odd one


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("identifier", IDENTIFIERS, ids=repr)
def test_ids_travel(identifier: Any, protocol: int) -> None:
    """An identifier is the same after pickling, also inside a set and as a key."""
    back = pickle.loads(pickle.dumps({identifier: {identifier}}, protocol))
    assert back == {identifier: {identifier}}
    assert type(next(iter(back))) is type(identifier)


@pytest.mark.parametrize(("identifier", "name"), [(MPIHostID("a"), "name"), (MPITaskID(1, 2), "rank")])
def test_ids_do_not_change(identifier: Any, name: str) -> None:
    """An identifier that is a key somewhere cannot be changed, nor given attributes."""
    before = repr(identifier)
    for attribute in (name, "other"):
        with pytest.raises(AttributeError, match="cannot be changed"):
            setattr(identifier, attribute, 5)
    with pytest.raises(AttributeError, match="cannot be changed"):
        delattr(identifier, name)
    assert repr(identifier) == before
    assert not hasattr(identifier, "__dict__")


@pytest.mark.parametrize("kind", [HostID, TaskID])
def test_abstract_ids_say_what_to_use(kind: Any) -> None:
    """The abstract identifiers point to a concrete virtual machine."""
    with pytest.raises(NotImplementedError, match=r"taskfarm\.vm\.MPI"):
        kind.bad()
    with pytest.raises(NotImplementedError, match=kind.__name__):
        kind().valid()


# Messages


def test_messages_carry_their_values() -> None:
    """Each message has the attributes of the contract, positional and by keyword."""
    task, host = MPITaskID(1, 2), MPIHostID("a")
    assert MsgTaskExit(task).taskID == task
    assert MsgHostAdd(hostIDs=[host]).hostIDs == [host]
    assert MsgHostDelete(host).hostID == host
    result = MsgTaskResult(True, 5)
    assert (result.success, result.returnValue, result.exception, result.traceback) == (True, 5, None, None)
    error = ValueError("x")
    failed = MsgTaskResult(False, None, exception=error, traceback="Traceback ...")
    assert (failed.success, failed.returnValue, failed.exception) == (False, None, error)
    assert failed.traceback == "Traceback ..."


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "message",
    [
        MsgTaskExit(MPITaskID(1, 2)),
        MsgTaskResult(False, None, ValueError("x"), "text"),
        MsgHostAdd([MPIHostID("a")]),
        MsgHostDelete(MPIHostID("a")),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_travel_as_exact_classes(message: Msg, protocol: int) -> None:
    """Callers test ``type(msg) is ...``: a message that was pickled is of that very class, with its values."""
    back = pickle.loads(pickle.dumps(message, protocol))
    assert type(back) is type(message)
    assert isinstance(back, Msg)
    assert repr(back) == repr(message)


def test_results_with_odd_values_can_be_compared() -> None:
    """A result is compared by identity: its value may have no truth value of equality."""
    odd = Hostile()
    result = MsgTaskResult(True, odd)
    assert result in [MsgTaskResult(True, odd), result]


# The virtual machine as an object


def test_vm_index_is_unique_also_over_subclasses() -> None:
    """No two virtual machines of a process have the same vmIndex, whatever class they are of."""

    class Other(VirtualMachine):
        pass

    indices = [kind().vmIndex for kind in (VirtualMachine, Other, VirtualMachine, Other)]
    assert len(set(indices)) == 4


class ConcreteVM(VirtualMachine):
    """A virtual machine with state of its own, which must not travel."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.connection = open(os.devnull)  # noqa: SIM115 - closed by the test


def test_vm_travels_with_its_settings_only() -> None:
    """A pickled virtual machine carries the six settings and nothing else; its index is kept, not used up."""
    vm = ConcreteVM(debug=2, persistentStorage=True, mirrorMap={})
    vm.connection.close()
    back = pickle.loads(pickle.dumps(vm))
    assert type(back) is ConcreteVM
    expected = ["debug", "mirrorList", "persistentStorage", "startupDirIndex", "startupDirSuffix", "vmIndex"]
    assert sorted(vars(back)) == expected
    assert all(getattr(back, name) == getattr(vm, name) for name in expected)
    assert VirtualMachine().vmIndex == vm.vmIndex + 1
    again = pickle.loads(pickle.dumps(back))  # the way back to the spawner
    assert vars(again) == vars(back)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("slots", ()),
        ("freeSlots", ()),
        ("hosts", ()),
        ("hostID", ()),
        ("taskID", ()),
        ("parentTaskID", ()),
        ("formatSpawnerConfig", ()),
        ("checkForIncoming", ()),
        ("receiveMessage", (0,)),
        ("sendMessage", (None, "x")),
        ("finalize", ()),
        ("spawnerBarrier", ()),
        ("setWorkerDebug", (1,)),
    ],
)
def test_what_communicates_is_abstract_and_static(name: str, args: tuple[Any, ...]) -> None:
    """The base has every method of a virtual machine, callable on the class, and says which class to use."""
    for owner in (VirtualMachine, VirtualMachine()):
        with pytest.raises(NotImplementedError, match=rf"{name} is abstract.*taskfarm\.vm\.MPI"):
            getattr(owner, name)(*args)


def test_what_needs_an_object_is_abstract() -> None:
    """Spawning and cleaning belong to one virtual machine."""
    vm = VirtualMachine()
    with pytest.raises(NotImplementedError, match="spawnFunction"):
        vm.spawnFunction(add, args=[1])
    with pytest.raises(NotImplementedError, match="clearLocalStorage"):
        vm.clearLocalStorage()


def test_constructor_signature() -> None:
    """The parameters and defaults of the constructor are those that callers rely on."""
    parameters = inspect.signature(VirtualMachine).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ("debug", 0),
        ("startupDir", None),
        ("translateStartupDir", True),
        ("mirrorMap", None),
        ("persistentStorage", False),
    ]


def test_public_names() -> None:
    """``__all__`` is sorted and every name in it is there."""
    assert base.__all__ == sorted(base.__all__)
    assert all(hasattr(base, name) for name in base.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        base.nothing  # noqa: B018


def test_number_of_cores() -> None:
    """A host has at least one core."""
    assert getNumberOfCores() >= 1


# Functions as plain data


@pytest.mark.parametrize(
    ("function", "args", "result"),
    [
        (add, (1,), 2),
        (len, ([1, 2],), 2),
        (Thing.double, (4,), 8),
        (Thing(5).method, (1,), 6),
        ([3, 1, 2].index, (1,), 1),
        (functools.partial(add, y=10), (1,), 11),
        (functools.partial(functools.partial(Thing(2).method), 1), (), 3),
        (Thing(3), (2,), 6),
        (Thing(3).privateMethod(), (), 3),
        (os.path.basename, ("a/b",), "b"),
    ],
)
def test_callables_are_rebuilt_from_their_description(function: Any, args: tuple[Any, ...], result: Any) -> None:
    """A callable can be described, sent, rebuilt and called."""
    sent = pickle.dumps(VirtualMachine.func2desc(function)) if "__private" not in repr(function) else None
    description = pickle.loads(sent) if sent else VirtualMachine.func2desc(function)
    assert VirtualMachine.desc2func(description)(*args) == result


def test_importable_callables_are_described_by_name() -> None:
    """What can be imported is plain text in its description; classes and class methods too."""
    assert VirtualMachine.func2desc(add) == ("import", __name__, "add")
    assert VirtualMachine.func2desc(Thing) == ("import", __name__, "Thing")
    assert VirtualMachine.func2desc(Thing.make) == ("method", ("import", __name__, "Thing"), "make")
    made = VirtualMachine.desc2func(VirtualMachine.func2desc(Thing.make))(7)
    assert type(made) is Thing and made.value == 7
    assert VirtualMachine.desc2func(VirtualMachine.func2desc(add)) is add


def test_other_callables_describe_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lambdas, closures, functions of ``__main__`` and names that mean something else travel as they are."""

    def closure() -> None:
        pass

    def impostor() -> None:
        pass

    impostor.__qualname__ = "add"
    for function in (closure, lambda: None, impostor):
        assert VirtualMachine.func2desc(function) == ("object", function)
        assert VirtualMachine.desc2func(("object", function)) is function
    monkeypatch.setattr(add, "__module__", "__main__")
    assert VirtualMachine.func2desc(add) == ("object", add)


@pytest.mark.parametrize("description", [None, (), "add", ("import", "os"), ("method", "x", "y"), ("what", 1)])
def test_what_is_no_description_is_refused(description: Any) -> None:
    """A wrong argument is named, not called."""
    with pytest.raises(UsageError, match="does not describe a function"):
        VirtualMachine.desc2func(description)
