"""How a rank waits: spin, yield, sleep; and the bell that ends the sleep."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from taskfarm.transport import waiting
from taskfarm.transport.doorbell import Doorbell, host_key
from taskfarm.transport.waiting import (
    CROWDED_YIELD_S,
    FIRST_POLL_SLEEP_S,
    LONG_POLL_SLEEP_S,
    LONG_SLEEP_S,
    LONG_WAIT_S,
    MAX_SLEEP_S,
    POLL_SLEEP_S,
    POLLS_BEFORE_SLEEP,
    SPIN_S,
    YIELD_S,
    Waiter,
)

FAR = 1e9


class FakeBell:
    """Writes down what is asked of it."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def publish(self, asleep: bool) -> None:
        self.log.append(("publish", asleep))

    def sleep(self, timeout_s: float) -> None:
        self.log.append(("bell", timeout_s))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that a waiter does; nothing really waits."""
    found: list[Any] = []
    monkeypatch.setattr(waiting, "time", SimpleNamespace(sleep=lambda seconds: found.append(("sleep", seconds))))
    monkeypatch.setattr(waiting, "os", SimpleNamespace(sched_yield=lambda: found.append("yield")))
    return found


def polls(waiter: Waiter, log: list[Any], times: list[float], deadline: float = FAR) -> list[list[Any]]:
    """Let `waiter` pause at each of `times`; return what it did each time."""
    done = []
    for now in times:
        log.clear()
        waiter.idle(now, deadline)
        done.append(list(log))
    return done


def test_spin_then_yield_then_sleep(log: list[Any]) -> None:
    """With a core of its own a rank first goes on at once, then yields, then sleeps."""
    waiter = Waiter(True, None, False)
    start = 100.0
    times = [start, start + SPIN_S * 0.9, start + SPIN_S * 1.1, start + (SPIN_S + YIELD_S) * 0.9, start + 1.0]
    spin, again, first_yield, second_yield, sleep = polls(waiter, log, times)
    assert spin == again == []
    assert first_yield == second_yield == ["yield"]
    assert [kind for kind, _ in sleep] == ["sleep"]


def test_no_spinning_where_cores_are_shared(log: list[Any]) -> None:
    """Where ranks share cores nobody takes another's: the first pause is a yield."""
    waiter = Waiter(False, None, False)
    assert polls(waiter, log, [5.0, 5.0 + YIELD_S / 2]) == [["yield"], ["yield"]]
    assert polls(waiter, log, [5.0 + YIELD_S * 1.1])[0][0][0] == "sleep"


def test_many_ranks_to_a_core_sleep_soon(log: list[Any]) -> None:
    """With a bell to wake it, a rank does not take turns with those that work for longer than a moment."""
    waiter = Waiter(False, FakeBell(log), True, ranks_per_core=4)  # type: ignore[arg-type]
    assert polls(waiter, log, [5.0, 5.0 + CROWDED_YIELD_S / 2]) == [["yield"], ["yield"]]
    assert polls(waiter, log, [5.0 + CROWDED_YIELD_S * 1.1])[0] == [("publish", True)]


def test_sleep_polling_grows_to_its_limit(log: list[Any]) -> None:
    """Without a bell, sleeps get longer step by step, to one limit and, after a long wait, to another."""
    waiter = Waiter(False, None, False)
    waiter.idle(0.0, FAR)
    early = [done[0][1] for done in polls(waiter, log, [0.01] * 40)]
    assert early[0] <= 2 * FIRST_POLL_SLEEP_S
    assert all(a < b or b == POLL_SLEEP_S for a, b in pairwise(early))
    assert early[-1] == POLL_SLEEP_S
    late = [done[0][1] for done in polls(waiter, log, [LONG_WAIT_S + 1.0] * 40)]
    assert late[-1] == LONG_POLL_SLEEP_S


def test_after_publishing_it_polls_again_before_it_sleeps(log: list[Any]) -> None:
    """A rank tells that it is asleep, polls again so that nothing on its way is missed, and only then sleeps."""
    waiter = Waiter(False, FakeBell(log), True)  # type: ignore[arg-type]
    waiter.idle(0.0, FAR)
    done = polls(waiter, log, [0.01] * (2 * POLLS_BEFORE_SLEEP + 4))
    one_sleep = [[]] * POLLS_BEFORE_SLEEP + [[("bell", MAX_SLEEP_S)]]
    assert done[0] == [("publish", True)]
    assert done[1:] == one_sleep + one_sleep + [[]]


def test_a_long_wait_sleeps_longer(log: list[Any]) -> None:
    """After a while, sleeps under the bell are longer: a wake-up costs CPU."""
    waiter = Waiter(False, FakeBell(log), True)  # type: ignore[arg-type]
    waiter.idle(0.0, FAR)
    done = polls(waiter, log, [LONG_WAIT_S + 0.1] * (POLLS_BEFORE_SLEEP + 2))
    assert done[-1] == [("bell", LONG_SLEEP_S)]


@pytest.mark.parametrize(("ranks_per_core", "seconds"), [(0.5, LONG_SLEEP_S), (8, 4 * LONG_SLEEP_S)])
def test_many_ranks_to_a_core_sleep_longer(log: list[Any], ranks_per_core: float, seconds: float) -> None:
    """The wake-ups of all idle ranks together stay few where many share a core."""
    waiter = Waiter(False, FakeBell(log), True, ranks_per_core)  # type: ignore[arg-type]
    waiter.idle(0.0, FAR)
    done = polls(waiter, log, [LONG_WAIT_S + 0.1] * (POLLS_BEFORE_SLEEP + 2))
    assert done[-1] == [("bell", seconds)]


@pytest.mark.parametrize(("ranks_per_core", "seconds"), [(32, LONG_POLL_SLEEP_S), (128, 4 * LONG_POLL_SLEEP_S)])
def test_very_many_ranks_to_a_core_look_less_often(log: list[Any], ranks_per_core: float, seconds: float) -> None:
    """Without a bell, what all ranks of a core spend on looking stays the same, however many they are."""
    waiter = Waiter(False, None, False, ranks_per_core)
    waiter.idle(0.0, FAR)
    done = polls(waiter, log, [LONG_WAIT_S + 1.0] * 60)
    assert done[-1][0][1] == pytest.approx(seconds)


def test_where_not_everybody_can_ring(log: list[Any]) -> None:
    """If some sender cannot ring, the sleep is as short as without a bell, and others can still ring."""
    waiter = Waiter(False, FakeBell(log), False)  # type: ignore[arg-type]
    waiter.idle(0.0, FAR)
    done = polls(waiter, log, [0.01] * (POLLS_BEFORE_SLEEP + 2))
    assert done[0] == [("publish", True)]
    kind, seconds = done[-1][0]
    assert kind == "bell"
    assert seconds <= POLL_SLEEP_S


@pytest.mark.parametrize("bell", [False, True])
def test_no_sleep_beyond_the_deadline(log: list[Any], bell: bool) -> None:
    """A wait with a deadline does not oversleep, and a deadline in the past sleeps not at all."""
    waiter = Waiter(False, FakeBell(log) if bell else None, True)  # type: ignore[arg-type]
    waiter.idle(0.0, FAR)
    done = polls(waiter, log, [1.0] * (POLLS_BEFORE_SLEEP + 2), deadline=1.0 + 1e-6)
    assert done[-1][0][1] == pytest.approx(1e-6, rel=1e-3)
    done = polls(waiter, log, [1.0] * (POLLS_BEFORE_SLEEP + 1), deadline=0.5)
    assert done[-1][0][1] == 0.0


def test_a_new_wait_begins_from_the_start(log: list[Any]) -> None:
    """`reset` takes the announcement back, once, and the next wait is quick again."""
    waiter = Waiter(True, FakeBell(log), True)  # type: ignore[arg-type]
    waiter.idle(0.0, FAR)
    polls(waiter, log, [1.0] * 3)
    log.clear()
    waiter.reset()
    waiter.reset()
    assert log == [("publish", False)]
    assert polls(waiter, log, [2.0, 2.0 + SPIN_S / 2, 3.0]) == [[], [], [("publish", True)]]


def test_a_short_wait_announces_nothing(log: list[Any]) -> None:
    """Who finds a message while spinning never touches the shared memory."""
    waiter = Waiter(True, FakeBell(log), True)  # type: ignore[arg-type]
    waiter.idle(0.0, FAR)
    waiter.reset()
    assert log == []


@pytest.mark.parametrize(("spin", "n_yields"), [(True, 100 // waiting.POLLS_PER_YIELD), (False, 100)])
def test_transfers_are_never_slept_over(log: list[Any], spin: bool, n_yields: int) -> None:
    """While a transfer is unfinished a rank at most yields: MPI moves it only when polled, for others."""
    waiter = Waiter(spin, FakeBell(log), True)  # type: ignore[arg-type]
    for _ in range(100):
        waiter.busy()
    assert n_yields > 0
    assert log == ["yield"] * n_yields


# The bell itself: Unix datagrams and shared memory within one process

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="abstract sockets exist on Linux only")


@pytest.fixture
def bells() -> Iterator[list[Doorbell]]:
    """Three ranks of one host that have found each other."""
    secret = os.urandom(16).hex()
    found = [Doorbell(secret, rank, 3) for rank in range(3)]
    path = found[0].create_memory()
    assert all(bell.join_memory(path, 0) for bell in found[1:])
    for bell in found:
        bell.unlink_memory()
        bell.connect(range(3))
        bell.sleep(0.0)  # the datagrams that proved reachability
    yield found
    for bell in found:
        bell.close()
    assert not os.path.exists(path)


def slept_s(bell: Doorbell, timeout_s: float = 0.02) -> float:
    start = time.perf_counter()
    bell.sleep(timeout_s)
    return time.perf_counter() - start


@linux_only
def test_a_ring_wakes_a_sleeper(bells: list[Doorbell]) -> None:
    """A published sleeper is woken; without a ring it sleeps its time."""
    bells[1].publish(True)
    bells[0].ring(1)
    assert slept_s(bells[1], 5.0) < 2.0
    assert slept_s(bells[1]) >= 0.015


@linux_only
def test_who_is_awake_is_not_rung(bells: list[Doorbell]) -> None:
    """Ringing a rank that is not published costs no datagram."""
    bells[0].ring(2)
    assert slept_s(bells[2], 0.005) >= 0.004
    bells[2].publish(True)
    bells[2].publish(False)
    bells[1].ring(2)
    assert slept_s(bells[2], 0.005) >= 0.004


@linux_only
def test_many_rings_wake_once(bells: list[Doorbell]) -> None:
    """Rings that came together are taken together, and a full queue stops no ringer."""
    bells[1].publish(True)
    for _ in range(2000):
        bells[0].ring(1)
    assert slept_s(bells[1], 5.0) < 2.0
    assert slept_s(bells[1], 0.005) >= 0.004


@linux_only
def test_only_proven_neighbours_are_rung(bells: list[Doorbell]) -> None:
    """A rank outside the proven group is neither rung nor counted as able to ring."""
    bells[0].connect([0, 1])
    bells[2].publish(True)
    bells[0].ring(2)
    assert slept_s(bells[2], 0.005) >= 0.004
    assert bells[0].reaches([0, 1])
    assert not bells[0].reaches([0, 1, 2])


@linux_only
def test_a_rank_that_has_left_is_rung_without_harm(bells: list[Doorbell]) -> None:
    """The socket of a dead rank is gone; ringing it does nothing."""
    bells[1].publish(True)
    bells[1].close()
    bells[0].ring(1)


@linux_only
def test_many_ranks_of_one_host_find_each_other() -> None:
    """More ranks than a socket's queue has room for prove that they share a host, all before its leader looks."""
    secret = os.urandom(16).hex()
    found = [Doorbell(secret, rank, 64) for rank in range(64)]
    path = found[0].create_memory()
    assert all(bell.join_memory(path, 0) for bell in found[1:])
    for bell in found:
        bell.close()


@linux_only
def test_another_jobs_memory_is_not_joined() -> None:
    """A file that does not hold the job's secret, or is not there, proves nothing."""
    stranger = Doorbell(os.urandom(16).hex(), 1, 3)
    other = Doorbell(os.urandom(16).hex(), 0, 3)
    try:
        assert not stranger.join_memory(other.create_memory(), 0)
        assert not stranger.join_memory("/nowhere/at/all", 0)
        stranger.connect([0])
        assert not stranger.reaches([0])
    finally:
        stranger.close()
        other.close()


@linux_only
def test_a_leader_that_cannot_be_reached_is_not_joined() -> None:
    """Seeing the file is not enough: the datagram has to reach the leader's socket."""
    secret = os.urandom(16).hex()
    leader, member = Doorbell(secret, 0, 2), Doorbell(secret, 1, 2)
    try:
        path = leader.create_memory()
        leader._socket.close()
        assert not member.join_memory(path, 0)
    finally:
        leader.close()
        member.close()


@linux_only
def test_a_stranger_can_only_ring() -> None:
    """Who finds the socket can end a sleep, whatever he sends; nothing of it is kept, and the next sleep is one."""
    bell = Doorbell("a" * 32, 0, 2)
    try:
        bell.create_memory()
        bell.publish(True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            for word in (b"", b"x" * 5000, bytes(32)):
                stranger.sendto(word, bell._address(0))
        before = bytes(bell.asleep)
        bell.sleep(10.0)
        assert bytes(bell.asleep) == before
        with pytest.raises(BlockingIOError):
            bell._socket.recv(1)
        assert not bell.reaches([1])
    finally:
        bell.close()


@linux_only
def test_the_sockets_name_does_not_tell_the_secret() -> None:
    """Every user of a host can list the names of abstract sockets: the secret is not among them."""
    secret = os.urandom(16).hex()
    bell = Doorbell(secret, 0, 1)
    try:
        with open("/proc/net/unix") as listing:
            text = listing.read()
    finally:
        bell.close()
    assert "taskfarm" in text
    assert secret not in text


@linux_only
def test_one_bell_per_rank_and_job() -> None:
    """Two jobs on one host do not disturb each other; a second bell of the same rank is an `OSError`."""
    first, second = Doorbell("a" * 32, 0, 1), Doorbell("b" * 32, 0, 1)
    try:
        with pytest.raises(OSError, match="in use"):
            Doorbell("a" * 32, 0, 1)
    finally:
        first.close()
        second.close()


def test_the_host_key_is_the_same_for_one_host() -> None:
    """Ranks of one host (and namespace) have equal keys."""
    assert host_key() == host_key() != ""
