"""Controller and workers in one process: failures in collective calls, and what they leave behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from runtime_support import LocalFarm, everywhere, fail_on, here, hold_rank, local_farm, logs, note

from taskfarm.config import Config, OnError
from taskfarm.errors import RemoteError
from taskfarm.runtime import caller


@pytest.fixture
def farm() -> Iterator[LocalFarm]:
    """A farm of four workers: rank 2 has a child of its own in the tree."""
    with local_farm(5) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty_logs() -> None:
    logs.clear()


def settle(farm: LocalFarm) -> None:
    """Wait until all failures so far are known on rank 0."""
    farm.controller.caller.settle(1e9)


def manage(name: str, fails: int | None = None) -> Any:
    if here().rank == fails:
        raise ValueError("before it was managed")
    return here().registry.manage((name, here().rank), owner=here().rank == 0)


def manage_then_fail(name: str, fails: int) -> Any:
    handle = manage(name)
    if here().rank == fails:
        raise ValueError("after it was managed")
    return handle


def objects(farm: LocalFarm) -> list[dict[int, Any]]:
    return [dict(state.registry.objects) for state in farm.states]


# Workers that fail


def test_deferred_failures_are_raised_at_the_next_entry(farm: LocalFarm) -> None:
    """Rank 0 returns at once; the next call raises the failures of all ranks, and did not happen itself."""
    assert farm.call(fail_on, {1, 3}) == "fine"
    settle(farm)
    with pytest.raises(RemoteError) as caught:
        farm.call(note, "did not happen")
    error = caught.value
    assert error.what == "call 1 (runtime_support.fail_on)"
    assert [(f.rank, f.host, f.type_name, f.message) for f in error.failures] == [
        (1, "odd", "ValueError", "bad on 1"),
        (3, "odd", "ValueError", "bad on 3"),
    ]
    assert isinstance(error.exception, ValueError)
    assert error.__cause__ is error.exception
    assert "fail_on" in error.remote_traceback
    assert farm.call(note, "happened", values=True) == [0, 1, 2, 3, 4]
    assert logs == everywhere(5, ["happened"])


def test_a_failure_consumes_no_id(farm: LocalFarm) -> None:
    """The call that raised a pending failure consumed no id, and no number."""
    farm.call(fail_on, {2})
    settle(farm)
    with pytest.raises(RemoteError):
        farm.call(manage, "a")
    handle = farm.call(manage, "b")
    assert int(handle) == 0
    assert farm.controller.caller.book.last == 2
    del handle


def test_failures_are_told_at_the_end_at_the_latest(farm: LocalFarm) -> None:
    """A failure that no later call could raise is still there when the session ends."""
    farm.call(fail_on, {4})
    settle(farm)
    error = farm.controller.caller.take_untold_failures()
    assert error is not None
    assert [failure.rank for failure in error.failures] == [4]
    assert farm.controller.caller.take_untold_failures() is None


def test_mode_wait_raises_in_the_call_itself() -> None:
    """In mode ``wait`` a call returns when all ranks are done, and raises there."""
    with local_farm(4, Config(on_error=OnError.WAIT)) as farm:
        with pytest.raises(RemoteError, match="failed on ranks 1, 2"):
            farm.call(fail_on, {1, 2})
        assert farm.call(note, "next") == 0
        assert logs == everywhere(4, ["next"])


def test_all_values_raise_in_the_call_itself(farm: LocalFarm) -> None:
    """Asking for everybody's value raises what failed, an unpicklable value included."""
    with pytest.raises(RemoteError, match="failed on rank 2"):
        farm.call(fail_on, {2}, values=True)
    with pytest.raises(RemoteError, match="failed on ranks 1, 2, 3, 4"):
        farm.call(threading.Lock, values=True)
    assert farm.call(note, 1, values=True) == [0, 1, 2, 3, 4]


class LoadsNowhere:
    """Pickles, but cannot be loaded."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


def note_argument(_argument: Any) -> None:
    note("called")


def test_a_value_that_does_not_load_names_its_rank(farm: LocalFarm) -> None:
    """A worker's value that rank 0 cannot load is an error that names the rank; the session goes on."""
    with pytest.raises(RemoteError, match="from rank 1") as caught:
        farm.call(LoadsNowhere, values=True)
    assert caught.value.rank == 1
    assert farm.call(note, 1, values=True) == [0, 1, 2, 3, 4]


def test_work_that_does_not_load_is_a_failure_of_its_rank(farm: LocalFarm) -> None:
    """An argument that cannot be loaded on the workers is reported like a failing function."""
    with pytest.raises(RemoteError, match="failed on ranks 1, 2, 3, 4"):
        farm.call(note_argument, LoadsNowhere(), values=True)
    assert logs == {0: ["called"]}


def test_mode_print_tells_nobody_but_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """In mode ``print`` the worker prints its traceback and rank 0 goes on."""
    with local_farm(3, Config(on_error=OnError.PRINT)) as farm:
        farm.call(fail_on, {2})
        assert farm.call(note, 1, values=True) == [0, 1, 2]
    text = capfd.readouterr().err
    assert "Exception on rank 2:" in text
    assert "ValueError: bad on 2" in text


# Rank 0 fails


class OwnError(Exception):
    """What callers steer by."""


def test_an_exception_of_rank_0_passes_through(farm: LocalFarm) -> None:
    """Rank 0's exception is not wrapped; the workers' failures of that call are its notes, and never raised later."""

    def fail() -> None:
        if here().rank == 0:
            raise OwnError("mine")
        fail_on({1, 2, 3, 4}, "theirs")

    with pytest.raises(OwnError, match="mine") as caught:
        farm.call(fail)
    notes = caught.value.__notes__
    assert len(notes) == 4
    for rank, text in enumerate(notes, start=1):
        assert text.startswith(f"[in the same collective call] rank {rank} (host")
        assert f"ValueError: theirs on {rank}" in text
    farm.call(note, "next", values=True)
    assert logs == everywhere(5, ["next"])
    assert farm.controller.caller.take_untold_failures() is None


def test_rank_0_does_not_wait_long_for_notes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gate: threading.Event
) -> None:
    """A rank that stays inside the call delays rank 0's exception only so long, and is named."""
    monkeypatch.setattr(caller, "NOTES_PATIENCE_S", 0.02)

    def fail() -> None:
        if here().rank == 0:
            raise OwnError
        hold_rank(1)

    with local_farm(3) as farm:
        with pytest.raises(OwnError):
            farm.call(fail)
        gate.set()
    assert any("rank 1 is still inside call 1" in message for message in caplog.messages)
    assert not any("rank 2" in message for message in caplog.messages)


def end_on_0(kind: type[BaseException]) -> None:
    if here().rank == 0:
        raise kind(3)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_ends_of_the_program_pass_at_once(farm: LocalFarm, gate: threading.Event, kind: type[BaseException]) -> None:
    """`SystemExit` and an interrupt on rank 0 wait for nobody."""
    farm.call(hold_rank, 1)
    with pytest.raises(kind):
        farm.call(end_on_0, kind)
    assert not gate.is_set()
    gate.set()


# What failures leave behind


def test_failures_are_told_to_the_watch_channel(farm: LocalFarm) -> None:
    """Every failure in a call, on any rank, is reported beside MPI, with rank and place."""
    farm.call(fail_on, {3})
    settle(farm)
    farm.controller.caller.take_untold_failures()
    with pytest.raises(ValueError, match="bad on 0"):
        farm.call(fail_on, {0, 1})
    told = {state.rank: state.failures for state in farm.states}
    assert {rank: [call for call, _ in entries] for rank, entries in told.items()} == {
        0: [2],
        1: [2],
        2: [],
        3: [1],
        4: [],
    }
    assert "rank 3 (host odd): ValueError: bad on 3 at " in told[3][0][1]
    assert "rank 0 (host even): ValueError: bad on 0 at " in told[0][0][1]


@pytest.mark.parametrize(
    ("failing", "uses_comm", "renewed"),
    [({1}, True, 2), ({0}, True, 2), ({0, 1, 2, 3, 4}, True, 0), (set(), True, 0), ({1}, False, 0), ({0}, False, 0)],
)
def test_the_communicator_is_renewed_only_after_different_outcomes(
    farm: LocalFarm, failing: set[int], uses_comm: bool, renewed: int
) -> None:
    """When some ranks raised and others did not, all replace the communicator before the next call, if it was used."""
    for _ in range(2):
        with pytest.raises(ValueError, match="bad on 0") if 0 in failing else nullcontext():
            farm.call(fail_on, failing, "bad", uses_comm)
        settle(farm)
        farm.controller.caller.take_untold_failures()
    farm.call(note, 1, values=True)
    farm.call(note, 2, values=True)
    assert [state.n_renewed for state in farm.states] == [renewed] * 5


# Managed objects


def test_a_dead_handle_removes_its_object_everywhere(farm: LocalFarm) -> None:
    """When the owning handle dies the object goes on all ranks, at the next entry into the library."""
    first, second = farm.call(manage, "a"), farm.call(manage, "b")
    farm.call(note, 0, values=True)
    assert objects(farm) == [{0: ("a", rank), 1: ("b", rank)} for rank in range(5)]
    del first
    assert 0 in farm.states[0].registry.objects
    farm.call(note, 1, values=True)
    assert objects(farm) == [{1: ("b", rank)} for rank in range(5)]
    assert farm.controller.leftover_objects() == [1]
    del second
    assert farm.controller.leftover_objects() == []


@pytest.mark.parametrize("fails", [1, 2, 3, 4])
@pytest.mark.parametrize("fn", [manage, manage_then_fail])
def test_ids_stay_aligned_when_a_worker_fails(farm: LocalFarm, gate: threading.Event, fn: Any, fails: int) -> None:
    """After a failure on one rank, before or after it made its object, the next objects have one id everywhere."""
    kept = farm.call(manage, "kept")
    farm.call(hold_rank, fails)  # so that rank 0 is ahead of the failure
    broken = farm.call(fn, "broken", fails)
    ahead = farm.call(manage, "ahead")
    gate.set()
    settle(farm)
    assert farm.controller.caller.take_untold_failures() is not None
    after = farm.call(manage, "after")
    farm.call(note, 0, values=True)
    found = objects(farm)
    for handle, name in [(kept, "kept"), (ahead, "ahead"), (after, "after")]:
        assert [part[handle] for part in found] == [(name, rank) for rank in range(5)]
    present = [part[broken] for part in found if broken in part]
    assert present == ([("broken", rank) for rank in range(5)] if fn is manage_then_fail else [])


def test_ids_stay_aligned_when_rank_0_fails(farm: LocalFarm) -> None:
    """What the workers made in a call that rank 0 failed is forgotten when the next call comes."""
    with pytest.raises(ValueError, match="before"):
        farm.call(manage, "broken", 0)
    handle = farm.call(manage, "after")
    farm.call(note, 0, values=True)
    assert int(handle) == 0
    assert objects(farm) == [{0: ("after", rank)} for rank in range(5)]
