"""Controller and workers in one process: collective calls and their order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from runtime_support import LocalFarm, everywhere, here, hold_rank, local_farm, logs, note

from taskfarm.config import OnError
from taskfarm.errors import UsageError
from taskfarm.runtime import worker
from taskfarm.runtime.options import CallOption
from taskfarm.runtime.work import pack_work
from taskfarm.scheduling import calls
from taskfarm.wire.frames import Frame, Kind


@pytest.fixture
def farm() -> Iterator[LocalFarm]:
    """A farm of four workers: rank 2 has a child of its own in the tree."""
    with local_farm(5) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty_logs() -> None:
    logs.clear()


def test_every_rank_runs_the_function(farm: LocalFarm) -> None:
    """Every rank runs every call once, in order; the value is rank 0's."""
    for number in range(200):
        assert farm.call(note, number) == 0
    assert farm.call(lambda: here().rank, values=True) == [0, 1, 2, 3, 4]
    assert logs == everywhere(5, list(range(200)))


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_few_ranks(n_ranks: int) -> None:
    """Calls work with one worker and with none."""
    with local_farm(n_ranks) as farm:
        for number in range(40):
            farm.call(note, number)
        assert farm.call(note, "end", values=True) == list(range(n_ranks))
    assert logs == everywhere(n_ranks, [*range(40), "end"])


def test_rank_0_works_on_its_own_objects(farm: LocalFarm) -> None:
    """Rank 0 gets the very objects of the caller, the others copies."""
    argument = [1, 2]

    def same(obj: Any) -> bool:
        obj.append(here().rank)
        return obj is argument

    assert farm.call(same, argument) is True
    farm.call(note, None, values=True)
    assert argument == [1, 2, 0]


def test_arrays_may_be_changed_by_rank_0(farm: LocalFarm) -> None:
    """What rank 0's own part does to its arrays is not seen elsewhere."""
    array = np.ones(100_000)

    def change(a: Any) -> float:
        total = float(a.sum())
        a[:] = -1.0
        return total

    assert farm.call(change, array, values=True) == [100_000.0] * 5
    assert array[0] == -1.0


def test_what_does_not_pickle_is_an_error_before_anything_is_sent(farm: LocalFarm) -> None:
    """An unpicklable argument or function is a clear error; the call did not happen anywhere."""
    with pytest.raises(UsageError, match=r"call: positional argument 0, a lock, cannot be pickled .*nothing was sent"):
        farm.call(note, threading.Lock())
    lock = threading.Lock()
    with pytest.raises(UsageError, match="call: the function, .*cannot be pickled"):
        farm.call(lambda: lock)
    farm.call(note, "after", values=True)
    assert logs == everywhere(5, ["after"])
    assert farm.controller.caller.book.last == 1


def test_rank_0_runs_ahead_only_so_far(monkeypatch: pytest.MonkeyPatch, gate: threading.Event) -> None:
    """The number of calls that rank 0 may be ahead of the slowest worker is bounded."""
    monkeypatch.setattr(calls, "MAX_AHEAD", 6)
    monkeypatch.setattr(worker, "REPORT_EVERY", 2)
    with local_farm(4) as farm:
        farm.call(hold_rank, 1)
        for number in range(5):
            farm.call(note, number)
        assert not gate.is_set()
        threading.Timer(0.02, gate.set).start()
        farm.call(note, "the seventh")
        assert gate.is_set()


def test_calls_within_a_call_run_on_all_ranks(farm: LocalFarm) -> None:
    """A function of the program on rank 0 may make calls while it runs inside one."""

    def outer() -> Any:
        if here().rank == 0:
            return here().endpoint.caller.call(note, ("inner",), {}, OnError.DEFERRED)
        return None

    assert farm.call(outer) == 0
    farm.call(note, "after", values=True)
    assert logs == everywhere(5, ["inner", "after"])


def test_calls_within_a_call_are_not_left_before_it(farm: LocalFarm) -> None:
    """Rank 0 counts as inside the outermost call, for those who watch, until that one ends."""
    seen: list[tuple[int, int]] = []

    def look() -> None:
        if here().rank == 0:
            seen.append((here().endpoint.current_call, here().endpoint.done_call))

    def outer() -> None:
        look()
        if here().rank == 0:
            here().endpoint.caller.call(look, (), {}, OnError.DEFERRED)
        look()

    farm.call(note, 0)
    farm.call(outer)
    look()
    assert seen == [(2, 1), (3, 1), (2, 1), (0, 3)]


@pytest.mark.parametrize("what", ["spawn", "receive"])
def test_no_tasks_inside_a_call(farm: LocalFarm, what: str) -> None:
    """Spawning and receiving inside a call is refused, on workers too; the call itself is not disturbed."""

    def misuse() -> None:
        endpoint = here().endpoint
        if here().rank:
            endpoint.take_letter(0.0, None)
        elif what == "spawn":
            endpoint.spawn(pack_work("x", note, (1,), {}), None, None, 0)
        else:
            endpoint.take_letter(0.0)

    with pytest.raises(UsageError, match=f"{what}.* inside call 1") as caught:
        farm.call(misuse)
    notes = "".join(caught.value.__notes__)
    assert all(f"rank {rank} (host" in notes for rank in (1, 2, 3, 4))
    assert farm.controller.farm.free == {1, 2, 3, 4}


# Order, when inner ranks of the tree are busy


def test_a_busy_inner_rank_keeps_the_order() -> None:
    """Calls with large arrays reach every rank in order, although an inner rank relays one while the next arrives."""
    with local_farm(8, slow_sends=True) as farm:
        for number in range(50):
            farm.call(lambda n, a: note((n, a[0])), number, np.full(20_000, float(number)))
        farm.call(note, "end", values=True)
    expected = [(number, float(number)) for number in range(50)]
    assert logs == everywhere(8, [*expected, "end"])


def test_work_waits_while_a_relay_is_under_way() -> None:
    """While a worker passes arrays on, new work waits its turn, and is then passed on like any other."""
    farm = LocalFarm(4, slow_sends=True)
    inner = farm.new_worker(2)
    rank_0 = farm.transports[0]
    packed = pack_work("x", np.size, (np.zeros(20_000),), {})
    rank_0.send(2, Frame(Kind.CALL, 1, 0, CallOption.REPORT, packed.body, packed.buffers))
    small = pack_work("x", len, ((),), {})
    rank_0.send(2, Frame(Kind.CALL, 2, 0, CallOption.REPORT, small.body))
    rank_0.send(2, Frame(Kind.SYNC))
    rank_0.send(2, Frame(Kind.QUIT))
    inner.run()
    assert heard(farm, 3) == [(Kind.CALL, 1), (Kind.CALL, 2), (Kind.SYNC, 0)]
    assert heard(farm, 0) == [(Kind.CALLS_DONE, 1), (Kind.CALLS_DONE, 2), (Kind.CALLS_DONE, 2), (Kind.BYE, 0)]


def heard(farm: LocalFarm, rank: int) -> list[tuple[Kind, int]]:
    """Return kind and number of every frame that has arrived at a rank."""
    found = []
    while (item := farm.transports[rank].receive_nowait()) is not None:
        found.append((item[1].kind, item[1].a))
    return found
