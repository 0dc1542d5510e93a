"""Controller and workers in one process: arrays from the memory of one task into that of another."""

from __future__ import annotations

import logging
import math
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from runtime_support import LIMIT_S, GuardedTransport, LocalFarm, here, local_farm, wait_at_gate, where

from taskfarm.config import Config
from taskfarm.errors import UsageError
from taskfarm.runtime.endpoint import Endpoint, Surroundings
from taskfarm.runtime.registry import Registry
from taskfarm.scheduling.quiescence import Wait
from taskfarm.transport.local import LocalHub
from taskfarm.transport.memory import memory_of
from taskfarm.wire.frames import Frame, Kind


def send_array(rank: int, number: int, array: Any, timeout_s: float = math.inf) -> bool:
    """Send an array on behalf of the task that runs on this rank."""
    memory = memory_of(array, "array", writable=False)
    return bool(here().endpoint.arrays.send(rank, number, memory, time.monotonic() + timeout_s))


def receive_array(out: Any, rank: int | None = None, number: int | None = None, timeout_s: float = math.inf) -> Any:
    """Receive an array on behalf of the task that runs on this rank; return (rank, number) of the sender."""
    memory = memory_of(out, "out", writable=True)
    offer = here().endpoint.arrays.receive(memory, rank, number, time.monotonic() + timeout_s)
    return None if offer is None else (offer.rank, offer.number)


# Tasks


def echo(n: int) -> int:
    memory = np.zeros((30, 400), order="F")
    for _ in range(n):
        receive_array(memory, 0)
        memory *= 2
        assert send_array(0, 0, memory)
    return n


def test_there_and_back(farm: LocalFarm) -> None:
    """Arrays go into the receiver's own memory and back into ours; whose they are is told."""
    ((rank, number),) = farm.spawn(echo, 3)
    sent, back = np.ones((30, 400), order="F"), np.zeros((30, 400), order="F")
    for value in (1.0, 2.0, 3.0):
        sent[:] = value
        assert send_array(rank, number, sent)
        assert receive_array(back) == (rank, number)
        assert (back == 2 * value).all()
    assert farm.collect(1)[0][2] == ("result", 3)


def pass_on(following: tuple[int, int]) -> bool:
    memory = np.zeros(5)
    receive_array(memory)
    return send_array(*following, memory + 1)


def test_a_ring_of_tasks(farm: LocalFarm) -> None:
    """Every task sends to the next one, which may not have started yet."""
    tasks = [(1, 1), (2, 2), (3, 3)]
    for index, task in enumerate(tasks):
        assert farm.spawn(pass_on, [*tasks[1:], (0, 0)][index]) == [task]
    assert send_array(1, 1, np.zeros(5))
    memory = np.zeros(5)
    assert receive_array(memory, 3, 3) == (3, 3)
    assert memory.tolist() == [3.0] * 5
    assert [m for *_, m in farm.collect(3) if m != ("exit",)] == [("result", True)] * 3


def misfit() -> str:
    try:
        receive_array(np.zeros(3))
    except UsageError as exc:
        return str(exc)
    return ""


def test_memory_that_does_not_fit(farm: LocalFarm) -> None:
    """Both sides raise, each naming what the other one has; nothing is left over."""
    ((rank, number),) = farm.spawn(misfit)
    with pytest.raises(UsageError, match=r"array has shape \(4,\).*task 1:1 receives into memory of shape \(3,\)"):
        send_array(rank, number, np.zeros(4))
    assert "task 0:0 sends an array with shape (4,), dtype <f8, order C, but out has shape (3,)" in str(farm.collect(1))


def test_a_task_that_ends_releases_its_senders(farm: LocalFarm, gate: threading.Event) -> None:
    """Whoever offers an array to a task that ends, or has ended, is told."""
    ((rank, number),) = farm.spawn(wait_at_gate)
    threading.Timer(0.02, gate.set).start()
    assert not send_array(rank, number, np.zeros(4))
    farm.collect(1)
    assert not send_array(rank, number, np.zeros(4))


def test_a_skipped_task_releases_its_senders(farm: LocalFarm) -> None:
    """An offer to a number that another rank's task has got is answered when the next task starts here."""
    ((rank, number),) = farm.spawn(lambda: send_array(2, 2, np.zeros(3)))
    assert (rank, number) == (1, 1)
    farm.spawn(where, hosts=["odd"])  # number 2, on rank 3
    assert farm.spawn(where, hosts=["even"]) == [(2, 3)]
    messages = farm.collect(3)
    assert (1, 1, ("result", False)) in messages


def test_the_controller_does_not_wait_for_nobody(farm: LocalFarm, gate: threading.Event) -> None:
    """When the task that could send has ended, or no task runs, the spawner's wait ends."""
    assert receive_array(np.zeros(3)) is None
    ((rank, number),) = farm.spawn(wait_at_gate)
    farm.spawn(wait_at_gate)
    assert receive_array(np.zeros(3), 3) is None
    assert receive_array(np.zeros(3), rank, number + 1) is None
    threading.Timer(0.02, gate.set).start()
    assert receive_array(np.zeros(3), rank, number) is None
    assert receive_array(np.zeros(3)) is None
    farm.collect(2)


def test_time_limits(farm: LocalFarm, gate: threading.Event) -> None:
    """Both sides give up in time and leave nothing behind: what was withdrawn is not received later."""
    ((rank, number),) = farm.spawn(lambda: (wait_at_gate(), receive_array(np.zeros(3), timeout_s=0.0)))
    assert not send_array(rank, number, np.ones(3), timeout_s=0.01)
    assert receive_array(np.zeros(3), timeout_s=0.01) is None
    gate.set()
    assert farm.collect(1)[0][2] == ("result", (1, None))


@pytest.mark.parametrize("wait", [lambda: send_array(0, 0, np.ones(3)), lambda: receive_array(np.ones(3))])
def test_a_call_that_would_wait_for_ever_is_an_error(farm: LocalFarm, wait: Callable[[], Any]) -> None:
    """Tasks that wait for the other half of a transfer count as those that wait for a message."""
    farm.spawn(wait)
    with pytest.raises(UsageError, match="task 1:1 wait in receiveMessage .*or in sendArray or receiveArray"):
        farm.call(where)


@pytest.mark.parametrize(
    "wait",
    [
        lambda: send_array(0, 0, np.ones(3)),
        lambda: receive_array(np.ones(3)),
        lambda: send_array(0, 0, np.ones(3), LIMIT_S),
        lambda: receive_array(np.ones(3), timeout_s=LIMIT_S),
    ],
)
def test_the_end_cuts_off_who_waits(wait: Callable[[], Any]) -> None:
    """At the end of the session tasks that wait are ended, and their exits arrive."""
    with local_farm(3) as farm:
        farm.spawn(wait, count=2)
    ends = [farm.next_message(0.0) for _ in range(4)]
    assert [end[2][0] for end in ends if end is not None] == ["failed", "exit"] * 2
    assert all(end[2][1].type_name == "CutOff" for end in ends[::2] if end is not None)


# One side, and a partner that does what it is told


class Partner:
    """Rank 1, frame by frame."""

    def __init__(self) -> None:
        hub = LocalHub(2)
        self.transport = GuardedTransport(hub, 1)
        self.endpoint = Endpoint(
            GuardedTransport(hub, 0),
            Surroundings("host", Registry(), Config(), lambda: None, lambda: 0, lambda: lambda call, text: None),
            0,
        )
        self.hub = hub

    def put(self, step: int, ticket: int, description: bytes = b"shape (3,), dtype <f8, order C", to: int = 0) -> None:
        """Offer (step 1) or withdraw (step 2)."""
        self.transport.send(0, Frame(Kind.ARRAY, 7, to, step, struct.pack("<q", ticket) + description))

    def next_answer(self) -> tuple[int, int]:
        """Wait for (ticket, verdict)."""
        found: list[bytes] = []

        def look() -> bool:
            answer = self.transport.direct.next_answer(0)
            found.extend([answer] if answer is not None else [])
            return bool(found)

        assert self.transport.direct.wait_until(look, time.monotonic() + LIMIT_S, lambda source, frame: None)
        ticket, verdict = struct.unpack_from("<qB", found[0])
        return ticket, verdict

    def answer(self, ticket: int, verdict: int) -> None:
        self.transport.direct.answer(0, struct.pack("<qB", ticket, verdict))

    def balance(self) -> tuple[int, int]:
        """Return the numbers that the search for stuck tasks uses."""
        status = self.endpoint.status()
        return status.n_sent, status.n_received


CLAIMED, REFUSED, GONE = 1, 2, 3


def play(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


@pytest.fixture
def partner() -> Partner:
    return Partner()


def receive_here(partner: Partner, memory: Any, timeout_s: float = LIMIT_S, rank: int | None = None) -> Any:
    out = memory_of(memory, "out", writable=True)
    return partner.endpoint.arrays.receive(out, rank, None, time.monotonic() + timeout_s)


def send_here(partner: Partner, timeout_s: float) -> bool:
    array = memory_of(np.ones(3), "array", writable=False)
    return partner.endpoint.arrays.send(1, 7, array, time.monotonic() + timeout_s)


@pytest.mark.parametrize("rank", [None, 1])
def test_a_withdrawal_that_crosses_the_claim_counts(partner: Partner, rank: int | None) -> None:
    """The receiver gives up a claim that came too late, and takes the next offer into the same memory."""
    answers = []

    def act() -> None:
        for ticket in (1, 2):
            partner.put(1, ticket)
            answers.append(partner.next_answer())
            partner.put(2, ticket)
        partner.put(1, 3)
        answers.append(partner.next_answer())
        partner.transport.direct.send(0, np.full(3, 3.0))

    thread = play(act)
    memory = np.zeros(3)
    offer = receive_here(partner, memory, rank=rank)
    thread.join(LIMIT_S)
    assert offer is not None
    assert (offer.ticket, memory.tolist()) == (3, [3.0] * 3)
    assert answers == [(1, CLAIMED), (2, CLAIMED), (3, CLAIMED)]
    assert partner.balance() == (3, 5)


def test_an_offer_withdrawn_in_time_is_not_claimed(partner: Partner) -> None:
    """An offer that is withdrawn before anybody receives is as if it had never been."""
    partner.put(1, 1)
    partner.put(2, 1)
    partner.endpoint.serve_nowait()
    assert receive_here(partner, np.zeros(3), 0.01) is None
    assert partner.transport.direct.next_answer(0) is None


def test_late_answers_are_dropped(partner: Partner) -> None:
    """The answer to a withdrawn offer is not taken for one to the next; it still counts as received."""
    assert not send_here(partner, 0.0)
    assert not send_here(partner, 0.0)
    steps = [partner.transport.receive(0.0) for _ in range(4)]
    assert [item[1].option for item in steps if item is not None] == [1, 2, 1, 2]
    partner.answer(1, CLAIMED)
    assert partner.balance() == (4, 1)
    partner.answer(2, REFUSED)
    partner.answer(3, CLAIMED)
    assert send_here(partner, LIMIT_S)
    memory = np.zeros(3)
    assert partner.transport.direct.receive(0, memory).is_done()
    assert memory.tolist() == [1.0] * 3
    assert partner.balance() == (5, 3)
    assert partner.endpoint.status().waits is Wait.NOT


def test_gone(partner: Partner) -> None:
    """The answer that the task has ended makes the sender give up; offers to tasks that are not there get it."""
    partner.answer(1, GONE)
    assert not send_here(partner, LIMIT_S)
    partner.put(1, 5, to=99)
    partner.endpoint.serve_nowait()
    assert partner.next_answer() == (5, GONE)


def test_a_time_limit_bounds_the_whole_wait(partner: Partner) -> None:
    """Offers that come and go do not prolong the wait beyond its limit."""
    over = threading.Event()

    def act() -> None:
        ticket = 0
        while not over.is_set():
            ticket += 1
            partner.put(1, ticket)
            partner.put(2, ticket)
            time.sleep(1e-3)

    thread = play(act)
    started = time.monotonic()
    offer = receive_here(partner, np.zeros(3), 0.1)
    elapsed = time.monotonic() - started
    over.set()
    thread.join(LIMIT_S)
    assert offer is None
    assert elapsed < 5.0


@pytest.mark.parametrize(("option", "body"), [(1, b""), (1, bytes(7)), (0, bytes(8)), (3, bytes(8)), (255, bytes(99))])
def test_bad_frames_are_dropped(partner: Partner, option: int, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A frame that is neither an offer nor a withdrawal is logged and changes nothing."""
    partner.transport.send(0, Frame(Kind.ARRAY, 7, 0, option, body))
    with caplog.at_level(logging.ERROR):
        partner.endpoint.serve_nowait()
    assert "dropped a ARRAY frame" in caplog.text
    assert partner.balance() == (0, 0)


def test_an_interrupt_after_the_claim_waits_for_the_data(partner: Partner) -> None:
    """Who has told the sender to send takes the array in before an interrupt is raised, so nobody is left waiting."""
    partner.put(1, 1)

    def act() -> None:
        assert partner.next_answer() == (1, CLAIMED)
        time.sleep(0.02)
        partner.transport.direct.send(0, np.full(3, 8.0))

    thread = play(act)
    memory = np.zeros(3)
    handle = partner.endpoint.handle

    def handle_and_interrupt(source: int, frame: Frame) -> None:
        handle(source, frame)
        raise KeyboardInterrupt

    partner.endpoint.handle = handle_and_interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        receive_here(partner, memory)
    thread.join(LIMIT_S)
    assert memory.tolist() == [8.0] * 3


def test_an_interrupt_withdraws_the_offer(partner: Partner) -> None:
    """An interrupt in the wait is raised, and the offer does not stay behind."""
    partner.endpoint.transport.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        send_here(partner, 0.5)
    items = [partner.transport.receive(0.0) for _ in range(2)]
    assert [item[1].option for item in items if item is not None] == [1, 2]
    partner.endpoint.transport.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        receive_here(partner, np.zeros(3), 0.5)
    partner.put(1, 1)
    partner.endpoint.serve_nowait()
    assert partner.transport.direct.next_answer(0) is None
    assert partner.endpoint.status().waits is Wait.NOT
