"""What every transport promises about arrays that go straight into the receiver's memory; see `check_transport`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from check_transport import LARGE_BYTES, LIMIT_S, Item, Party, exchange, numbered, pattern, same, view
from tf_checks import equal, holds, raises

from taskfarm.transport.base import ANSWER_MAX_BYTES
from taskfarm.wire.frames import Frame, Kind

OFFER = Kind.ARRAY


def checks() -> dict[str, Callable[[Party], None]]:
    """Return the checks by name."""
    return {name: fn for name, fn in globals().items() if name.startswith("check_")}


def fail_on_frame(source: int, frame: Frame) -> None:
    raise AssertionError(f"unexpected {frame.kind.name} of rank {source}")


def never() -> bool:
    return False


def offer(party: Party, dest: int, number: int = 0) -> None:
    party.transport.direct.expect_answer(dest)
    party.transport.send(dest, Frame(OFFER, number))


def wait_answer(party: Party, source: int, on_frame: Callable[[int, Frame], None] = fail_on_frame) -> bytes:
    """Return the next answer of `source`; a hang fails."""
    found: list[bytes] = []

    def look() -> bool:
        answer = party.transport.direct.next_answer(source)
        if answer is not None:
            found.append(answer)
        return bool(found)

    holds(party.transport.direct.wait_until(look, time.monotonic() + LIMIT_S, on_frame), f"no answer of rank {source}")
    return found[0]


def pass_round(party: Party, array: np.ndarray[Any, Any], memory: np.ndarray[Any, Any]) -> None:
    """Rank 0 offers and sends `array` to every other rank in turn, which receives it into `memory`."""
    direct = party.transport.direct
    if party.rank == 0:
        for dest in party.others:
            offer(party, dest)
            equal(wait_answer(party, dest), b"yes")
            holds(party.transport.direct.finish(direct.send(dest, array), fail_on_frame, never), "not sent")
    else:
        equal(party.receive()[1].kind, OFFER)
        transfer = direct.receive(0, memory)
        direct.answer(0, b"yes")
        holds(party.transport.direct.finish(transfer, fail_on_frame, never), "not received")
    party.barrier()


def check_direct_arrays_land_where_they_should(party: Party) -> None:
    """Arrays of every size and order arrive in the memory that is named, and nowhere else."""
    for size in (0, 1, 100, 65_521, LARGE_BYTES):
        around = np.full(size + 2, 77, np.uint8)
        pass_round(party, pattern(3, size), around[1:-1])
        if party.rank:
            same(view(around[1:-1]), pattern(3, size), f"{size} bytes")
        equal((int(around[0]), int(around[-1])), (77, 77))
    fortran = np.asfortranarray(np.arange(30_000.0).reshape(100, 300))
    memory = np.zeros_like(fortran)
    pass_round(party, fortran, memory)
    holds(party.rank == 0 or np.array_equal(memory, fortran), "an array in Fortran order")


def check_direct_arrays_of_all_ranks_at_once(party: Party) -> None:
    """All ranks send to all others at the same time; what one offers, another one has not to wait for."""
    direct = party.transport.direct
    array = pattern(party.rank, LARGE_BYTES // 2)
    memories = {source: np.zeros_like(array) for source in party.others}
    for dest in party.others:
        offer(party, dest)
    transfers = []
    for source, _ in party.receive_until(len(party.others)):
        transfers.append(direct.receive(source, memories[source]))
        direct.answer(source, b"yes")
    for dest in party.others:
        equal(wait_answer(party, dest), b"yes")
        transfers.append(direct.send(dest, array))
    for transfer in transfers:
        holds(party.transport.direct.finish(transfer, fail_on_frame, never), "not done")
    for source, memory in memories.items():
        same(view(memory), pattern(source, LARGE_BYTES // 2), f"array of rank {source}")


def check_direct_arrays_and_frames_pass_each_other(party: Party) -> None:
    """Frames with bulk go their way before, during and after a transfer that is not looked at."""
    direct = party.transport.direct
    array = pattern(party.rank, LARGE_BYTES // 4)
    memories = {source: np.zeros_like(array) for source in party.others}
    transfers = [direct.receive(source, memory) for source, memory in memories.items()]
    party.barrier()
    transfers += [direct.send(dest, array) for dest in party.others]
    for source, frame in exchange(party, [numbered(party.rank, number) for number in range(20)]):
        equal((frame.b, bytes(frame.body)), (source, bytes(numbered(source, frame.a).body)))
    arrived: list[Item] = []
    for transfer in transfers:
        holds(party.transport.direct.finish(transfer, lambda *item: arrived.append(item), never), "not done")
    equal(arrived, [])
    for source, memory in memories.items():
        same(view(memory), pattern(source, LARGE_BYTES // 4), f"array of rank {source}")


def check_direct_finish_hands_over_frames(party: Party) -> None:
    """Frames that arrive during a transfer are handed over, once each, and can end it."""
    if party.rank > 1 or party.transport.size == 1:
        return
    direct = party.transport.direct
    if party.rank == 0:
        for number in range(3):
            party.transport.send(1, Frame(Kind.MESSAGE, number))
        equal(party.receive()[1].kind, Kind.LOG)
        return
    memory = np.full(LARGE_BYTES, 5, np.uint8)
    arrived: list[int] = []
    transfer = direct.receive(0, memory)
    done = party.transport.direct.finish(transfer, lambda _, frame: arrived.append(frame.a), lambda: len(arrived) == 3)
    equal((done, arrived), (False, [0, 1, 2]))
    holds((memory == 5).all(), "memory of a transfer that was given up was written to")
    party.transport.send(0, Frame(Kind.LOG))


def check_direct_receives_may_be_given_up(party: Party) -> None:
    """A receive that is cancelled leaves its memory alone, and the next one gets what is sent then."""
    given_up = np.full(LARGE_BYTES, 9, np.uint8)
    for source in party.others:
        direct = party.transport.direct
        direct.receive(source, given_up).cancel()
    party.barrier()
    memory = np.zeros(LARGE_BYTES, np.uint8)
    pass_round(party, pattern(1, LARGE_BYTES), memory)
    holds((given_up == 9).all(), "memory of a cancelled receive was written to")
    holds(party.rank == 0 or np.array_equal(memory, pattern(1, LARGE_BYTES)), "other bytes")


def check_direct_answers_keep_their_order(party: Party) -> None:
    """Answers of all lengths come one by one, in the order in which they were given; an early look finds nothing."""
    texts = [bytes([number % 256]) * length for number, length in enumerate((0, 1, 100, ANSWER_MAX_BYTES, 7, 0, 500))]
    direct = party.transport.direct
    for dest in party.others:
        direct.expect_answer(dest)
        direct.expect_answer(dest)
        equal(direct.next_answer(dest), None)
    party.barrier()
    for dest in party.others:
        for text in texts:
            direct.answer(dest, text)
    for source in party.others:
        for text in texts:
            equal(wait_answer(party, source), text)


def check_direct_answers_that_nobody_waits_for(party: Party) -> None:
    """Answers that are never looked at, and expected ones that never come, do not disturb the end."""
    for dest in party.others:
        party.transport.direct.expect_answer(dest)
    party.barrier()
    for dest in party.others:
        for _ in range(1 + party.rank):
            party.transport.direct.answer(dest, b"late")
    if party.rank == 0 and party.others:
        equal(wait_answer(party, 1), b"late")


def check_waiting_for_a_condition(party: Party) -> None:
    """`wait_until` hands over every frame in order, ends with its condition or its deadline, and can be interrupted."""
    transport = party.transport
    started = time.monotonic()
    equal(transport.direct.wait_until(never, started + 0.05, fail_on_frame), False)
    holds(0.05 <= time.monotonic() - started < 1.0, "not in time")
    equal(transport.direct.wait_until(lambda: True, 0.0, fail_on_frame), True)
    transport.interrupted = True
    with raises(KeyboardInterrupt):
        transport.direct.wait_until(never, time.monotonic() + 0.05, fail_on_frame)
    holds(not transport.interrupted, "the interrupt is still noted")
    party.barrier()
    for number in range(5):
        party.send_all(numbered(party.rank, number))
    arrived: list[Item] = []
    holds(
        transport.direct.wait_until(
            lambda: len(arrived) == 5 * len(party.others),
            time.monotonic() + LIMIT_S,
            lambda *item: arrived.append(item),
        ),
        "frames are missing",
    )
    for rank in party.others:
        equal([frame.a for source, frame in arrived if source == rank], list(range(5)))
    equal(party.flush(), [])
