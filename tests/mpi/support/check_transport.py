"""What every transport promises, as checks that all ranks run together, each with its own transport.

The same checks run on `taskfarm.transport.local.LocalTransport`, with a thread per rank, and on
`taskfarm.transport.mpi.MpiTransport` under a launcher. A check gets a `Party`; it fails by raising. Every check opens
new transports and closes them, so that each also proves that nothing was left under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tf_checks import equal, holds, raises

from taskfarm.errors import UsageError
from taskfarm.transport.base import Transport
from taskfarm.wire.codec import OOB_MIN_BYTES, pack, unpack
from taskfarm.wire.frames import INLINE_BODY_MAX_BYTES, Frame, Kind

LIMIT_S = 20.0
LARGE_BYTES = 8_000_003  # far above every eager limit, and a multiple of nothing
Item = tuple[int, Frame]


@dataclass
class Party:
    """One rank's part in a check: its transport, and a barrier that moves nothing."""

    transport: Transport
    barrier: Callable[[], None]

    @property
    def rank(self) -> int:
        return self.transport.rank

    @property
    def others(self) -> list[int]:
        return [rank for rank in range(self.transport.size) if rank != self.transport.rank]

    def send_all(self, frame: Frame, *, borrowed: bool = False) -> None:
        """Send `frame` to every other rank."""
        for dest in self.others:
            self.transport.send(dest, frame, borrowed=borrowed)

    def receive(self) -> Item:
        """Return the next frame; a hang fails."""
        item = self.transport.receive(time.monotonic() + LIMIT_S)
        if item is None:
            raise AssertionError(f"rank {self.rank}: no frame within {LIMIT_S} s")
        return item

    def receive_until(self, n_frames: int, arrived: list[Item] | None = None) -> list[Item]:
        """Return `n_frames` frames, those that have arrived before included."""
        found = list(arrived or ())
        while len(found) < n_frames:
            found.append(self.receive())
        return found

    def flush(self) -> list[Item]:
        """Move until nothing is unsent; return what arrived meanwhile."""
        arrived: list[Item] = []
        deadline = time.monotonic() + LIMIT_S
        while self.transport.n_unsent:
            holds(time.monotonic() < deadline, f"rank {self.rank}: sends are not complete after {LIMIT_S} s")
            item = self.transport.receive_nowait()
            if item is not None:
                arrived.append(item)
        return arrived


def checks() -> dict[str, Callable[[Party], None]]:
    """Return the checks by name, in the order of the source text; those of `check_direct` too."""
    import check_direct

    return {name: fn for name, fn in globals().items() if name.startswith("check_")} | check_direct.checks()


def run_check(name: str, transport: Transport, barrier: Callable[[], None]) -> None:
    """Run one check on one rank, and close its transport: nothing may be left of it."""
    party = Party(transport, barrier)
    checks()[name](party)
    if name != "check_closing_drains":
        equal([(source, frame.kind, frame.a) for source, frame in close(party)], [])


def close(party: Party) -> list[Item]:
    """Close the transport; return what it handed over."""
    left: list[Item] = []
    holds(party.transport.close(time.monotonic() + LIMIT_S, lambda *item: left.append(item)), "close was too slow")
    return left


def pattern(seed: int, size: int) -> np.ndarray[Any, Any]:
    """Return `size` bytes that differ with the seed: (size,) uint8."""
    return np.resize(np.roll(np.arange(251, dtype=np.uint8), -seed), size)


def view(array: np.ndarray[Any, Any]) -> memoryview:
    return memoryview(array).cast("B")


def same(seen: Any, expected: np.ndarray[Any, Any], what: str) -> None:
    holds(len(seen) == len(expected), f"{what}: {len(seen)} bytes instead of {len(expected)}")
    holds(np.array_equal(np.frombuffer(seen, np.uint8), expected), f"{what}: other bytes than were sent")


def numbered(rank: int, number: int) -> Frame:
    """Return frame `number` of `rank`: every third with a large body, every fourth with buffers, others small."""
    body = bytes([number % 256]) * (INLINE_BODY_MAX_BYTES + number if number % 3 == 1 else number)
    buffers = [view(pattern(number, size)) for size in (1, 0, 70_000)] if number % 4 == 2 else []
    return Frame(Kind.MESSAGE, number, rank, number % 256, body, buffers)


def equal_frames(seen: Frame, expected: Frame) -> None:
    equal(seen[:4], expected[:4])
    holds(bytes(seen.body) == bytes(expected.body), f"body of {seen[:3]}")
    equal(len(seen.buffers), len(expected.buffers))
    for index, (buffer, other) in enumerate(zip(seen.buffers, expected.buffers, strict=True)):
        holds(bytes(buffer) == bytes(other), f"buffer {index} of {seen[:3]}")


def exchange(party: Party, frames: Sequence[Frame]) -> Iterator[Item]:
    """Send `frames` to every other rank, then yield what arrives from all of them."""
    for frame in frames:
        party.send_all(frame)
    for _ in range(len(frames) * len(party.others)):
        yield party.receive()
    yield from party.flush()


# Frames of all forms


def check_small_frames_arrive_as_they_were_sent(party: Party) -> None:
    """Kind, numbers, option and body arrive, from the rank that sent them, for every kind."""
    frames = [Frame(kind, 2**63 - 1, -(2**63), 255, f"{kind.name} of {party.rank}".encode()) for kind in Kind]
    seen: dict[int, list[Frame]] = {}
    for source, frame in exchange(party, frames):
        seen.setdefault(source, []).append(frame)
    for rank in party.others:
        expected = [frame._replace(body=f"{frame.kind.name} of {rank}".encode()) for frame in frames]
        equal([frame._replace(body=bytes(frame.body)) for frame in seen[rank]], expected)


def check_order_per_sender(party: Party) -> None:
    """Frames of one sender arrive in the order in which they were sent, small ones behind large ones."""
    frames = [numbered(party.rank, number) for number in range(120)]
    expected = dict.fromkeys(party.others, 0)
    for source, frame in exchange(party, frames):
        equal(frame.b, source)
        equal_frames(frame, numbered(source, expected[source]))
        expected[source] += 1
    equal(expected, dict.fromkeys(party.others, len(frames)))


def check_bodies_of_all_sizes(party: Party) -> None:
    """Bodies below, at and above the limit of what travels with the head arrive whole."""
    sizes = [0, 1, INLINE_BODY_MAX_BYTES - 1, INLINE_BODY_MAX_BYTES, INLINE_BODY_MAX_BYTES + 1, 1_000_001]
    frames = [Frame(Kind.DONE, index, body=pattern(index, size).tobytes()) for index, size in enumerate(sizes)]
    for _, frame in exchange(party, frames):
        same(frame.body, pattern(frame.a, sizes[frame.a]), f"body of {sizes[frame.a]} bytes")


def check_zero_size_buffers(party: Party) -> None:
    """Buffers without a byte arrive in their places, alone, among others and beside a large body."""
    empty = view(np.empty(0, np.uint8))
    some = view(pattern(3, 100))
    lists: list[list[memoryview]] = [[empty], [empty] * 5, [empty, some, empty], [some, empty, some]]
    bodies = [b"", b"x", bytes(INLINE_BODY_MAX_BYTES + 1)]
    frames = [Frame(Kind.CALL, i, j, 0, bodies[j], lists[i]) for j in range(len(bodies)) for i in range(len(lists))]
    for _, frame in exchange(party, frames):
        equal([len(buffer) for buffer in frame.buffers], [len(buffer) for buffer in lists[frame.a]])
        equal(len(frame.body), len(bodies[frame.b]))


def check_many_buffers(party: Party) -> None:
    """A frame with many buffers of many sizes arrives with all of them, in order."""
    sizes = [(index * 7919) % 5000 for index in range(600)]
    buffers = [view(pattern(index, size)) for index, size in enumerate(sizes)]
    for _, frame in exchange(party, [Frame(Kind.SPAWN, body=b"many", buffers=buffers)]):
        equal([len(buffer) for buffer in frame.buffers], sizes)
        for index, buffer in enumerate(frame.buffers):
            same(buffer, pattern(index, sizes[index]), f"buffer {index}")


def check_large_buffers(party: Party) -> None:
    """Large buffers arrive whole, several in one frame too."""
    arrays = [pattern(party.rank + index, LARGE_BYTES // (index + 1)) for index in range(3)]
    frame = Frame(Kind.DONE, party.rank, body=b"large", buffers=[view(array) for array in arrays])
    for source, received in exchange(party, [frame]):
        for index, buffer in enumerate(received.buffers):
            same(buffer, pattern(source + index, LARGE_BYTES // (index + 1)), f"buffer {index}")


def check_packed_objects(party: Party) -> None:
    """Objects with arrays travel through codec and transport; arrays arrive writable, in the memory they landed in."""
    objects = {"rank": party.rank, "a": np.arange(float(OOB_MIN_BYTES)), "f": np.ones((200, 300), order="F")[::2]}
    packed = pack(objects)
    for source, frame in exchange(party, [Frame(Kind.CALL_VALUE, body=packed.body, buffers=packed.buffers)]):
        landed = unpack(frame.body, frame.buffers)
        equal(landed["rank"], source)
        np.testing.assert_array_equal(landed["a"], objects["a"], strict=True)
        np.testing.assert_array_equal(landed["f"], objects["f"], strict=True)
        holds(landed["a"].flags.writeable and landed["f"].flags.writeable, "arrays are read-only")
        holds(np.shares_memory(landed["a"], np.frombuffer(frame.buffers[0])), "the array was copied on arrival")


# Memory


def check_landed_memory_is_the_receivers_own(party: Party) -> None:
    """What arrived may be written to: neither the sender's memory nor another frame's changes."""
    array = pattern(1, 100_000)
    frame = Frame(Kind.MESSAGE, body=b"b" * 100, buffers=[view(array), view(array)])
    arrived = list(exchange(party, [frame, frame]))
    for _, received in arrived:
        for buffer in received.buffers:
            holds(not memoryview(buffer).readonly, f"{buffer!r} is not writable memory")
    for _, received in arrived:
        first, second = (memoryview(buffer) for buffer in received.buffers)
        same(first, array, "first buffer")
        same(second, array, "second buffer")
        equal(bytes(received.body), b"b" * 100)
        first[:] = bytes(len(array))
        same(second, array, "second buffer, after a change of the first")
    party.barrier()
    same(view(array), pattern(1, 100_000), "the sender's array")


def check_memory_is_borrowed_until_it_is_sent(party: Party) -> None:
    """When `complete_sends` returns, the sender may change arrays that were borrowed, whatever the receivers do."""
    arrays = [pattern(party.rank + number, LARGE_BYTES // 4) for number in range(3)]
    for number, array in enumerate(arrays):
        party.send_all(Frame(Kind.MESSAGE, number, buffers=[view(array)]), borrowed=True)
    arrived: list[Item] = []
    done = party.transport.complete_sends(time.monotonic() + LIMIT_S, lambda *item: arrived.append(item))
    holds(done, "sends are not complete")
    for array in arrays:
        array[:] = 255
    for source, frame in party.receive_until(3 * len(party.others), arrived):
        same(frame.buffers[0], pattern(source + frame.a, LARGE_BYTES // 4), f"frame {frame.a} of rank {source}")
    equal(party.flush(), [])


def check_memory_is_free_when_nothing_is_unsent(party: Party) -> None:
    """When `n_unsent` is 0 any array that was sent may be changed."""
    array = pattern(party.rank, LARGE_BYTES // 2)
    party.send_all(Frame(Kind.MESSAGE, buffers=[view(array)]))
    arrived = party.flush()
    array[:] = 255
    for source, frame in party.receive_until(len(party.others), arrived):
        same(frame.buffers[0], pattern(source, LARGE_BYTES // 2), f"array of rank {source}")


def check_the_frame_may_be_forgotten(party: Party) -> None:
    """The transport keeps alive what it sends: the sender may drop every reference at once."""
    for number in range(20):
        party.send_all(Frame(Kind.MESSAGE, number, body=bytes(100_000), buffers=[view(pattern(number, 300_000))]))
        _ = pattern(number + 7, 300_000)  # would take the place of freed memory
    for _, frame in party.receive_until(20 * len(party.others)):
        same(frame.buffers[0], pattern(frame.a, 300_000), f"frame {frame.a}")
    equal(party.flush(), [])


def check_completing_sends_hands_over_what_arrives(party: Party) -> None:
    """Frames that arrive while sends are completed are handed over, in order, and not kept back or lost."""
    for number in range(30):
        party.send_all(numbered(party.rank, number), borrowed=True)
    arrived: list[Item] = []
    done = party.transport.complete_sends(time.monotonic() + LIMIT_S, lambda *item: arrived.append(item))
    holds(done, "sends are not complete")
    arrived = party.receive_until(30 * len(party.others), arrived)
    for rank in party.others:
        equal([frame.a for source, frame in arrived if source == rank], list(range(30)))
    equal(party.flush(), [])


# Busy and idle ranks


def check_two_way_large_frames(party: Party) -> None:
    """All ranks send large frames to all others at once: nobody blocks anybody."""
    array = pattern(party.rank, LARGE_BYTES)
    for source, frame in exchange(party, [Frame(Kind.MESSAGE, buffers=[view(array)])] * 2):
        same(frame.buffers[0], pattern(source, LARGE_BYTES), f"array of rank {source}")


def check_sending_to_busy_ranks_does_not_block(party: Party) -> None:
    """Rank 0 sends much to ranks that receive only after it has sent everything; all arrives, in order."""
    n_small, n_large = 2000, 10
    party.barrier()
    if party.rank == 0:
        large = [view(pattern(0, 1_000_000))]
        for number in range(n_small + n_large):
            party.send_all(Frame(Kind.MESSAGE, number, body=b"x" * 1000, buffers=large if number >= n_small else ()))
        party.barrier()
        equal(party.flush(), [])
    else:
        time.sleep(0.3)  # for a while, this rank does not even look at MPI
        party.barrier()
        for number in range(n_small + n_large):
            source, frame = party.receive()
            equal((source, frame.a, len(frame.body), len(frame.buffers)), (0, number, 1000, int(number >= n_small)))


def check_memory_is_free_after_send_or_copy(party: Party) -> None:
    """Whether the receiver waits, is busy or sends, too: the sender may change its memory, and the data are the old."""
    sizes = [70_000, LARGE_BYTES, 1]
    for round_ in range(4):
        mine = [pattern(party.rank + index, size) for index, size in enumerate(sizes)]
        # rank 0 sends while the others wait; all send at once; rank 0 sends to ranks that are busy; one by one
        if round_ == 0 or round_ == 2:
            senders = [0]
            if round_ == 2:
                busy_while_rank_0_sends(party, mine)
            elif party.rank == 0:
                send_or_copy_all(party, mine)
        else:
            senders = list(range(party.transport.size))
            send_or_copy_all(party, mine)
        others = [rank for rank in senders if rank != party.rank]
        seen: dict[int, Frame] = {}
        for source, frame in party.receive_until(len(others)):
            seen[source] = frame
        equal(sorted(seen), others)
        for source, frame in seen.items():
            for index, size in enumerate(sizes):
                same(frame.buffers[index], pattern(source + index, size), f"round {round_}, buffer {index}")
        equal(party.flush(), [])
        party.barrier()


def send_or_copy_all(party: Party, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
    """Send `arrays` to every other rank, and overwrite each as soon as that is allowed."""
    for dest in party.others:
        copies = [array.copy() for array in arrays]
        party.transport.send_or_copy(dest, Frame(Kind.MESSAGE, 1, buffers=[view(copy) for copy in copies]))
        for copy in copies:
            copy[:] = 99


def busy_while_rank_0_sends(party: Party, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
    """Let rank 0 send while the others do not look; it must not wait for them."""
    party.barrier()
    if party.rank == 0:
        started = time.monotonic()
        send_or_copy_all(party, arrays)
        holds(time.monotonic() - started < LIMIT_S / 2, "send_or_copy waited for a busy receiver")
    party.barrier()


def check_send_or_copy_keeps_the_order(party: Party) -> None:
    """Frames sent before, after and while large ones are asked about arrive in the order in which they were sent."""
    n_frames = 30
    sent = [numbered(party.rank, number) for number in range(n_frames)]

    def send_some(start: int) -> None:
        for frame in sent[start : start + 10]:
            for dest in party.others:
                if frame.a % 2:
                    party.transport.send_or_copy(dest, frame)
                else:
                    party.transport.send(dest, frame)

    arrived: list[Item] = []
    for start in range(0, n_frames, 10):
        send_some(start)
        arrived += party.receive_until(min(len(party.others), 1))
    arrived = party.receive_until(n_frames * len(party.others), arrived)
    for source in party.others:
        frames = [frame for other, frame in arrived if other == source]
        equal([frame.a for frame in frames], list(range(n_frames)))
        for frame in frames:
            equal_frames(frame, numbered(source, frame.a))
    party.flush()


def check_completing_sends_keeps_its_deadline(party: Party) -> None:
    """Towards a busy rank `complete_sends` gives up at its deadline, and says whether memory is still borrowed."""
    array = pattern(0, LARGE_BYTES)
    party.barrier()
    if party.rank == 0:
        party.send_all(Frame(Kind.MESSAGE, buffers=[view(array)]), borrowed=True)
        started = time.monotonic()
        done = party.transport.complete_sends(started + 0.05, lambda source, frame: None)
        elapsed = time.monotonic() - started
        equal(done, party.transport.n_unsent == 0)
        holds(done or 0.05 <= elapsed < 1.0, f"gave up after {elapsed:.2f} s")
        party.flush()
    else:
        time.sleep(0.3)
        same(party.receive()[1].buffers[0], array, "array")


def check_waiting_keeps_its_deadline(party: Party) -> None:
    """Without a frame, `receive` returns None at its deadline, at once if that has passed; `receive_nowait` at once."""
    for wait_s in (-1.0, 0.0, 0.03, 0.2):
        started = time.monotonic()
        equal(party.transport.receive(started + wait_s), None)
        elapsed = time.monotonic() - started
        holds(max(wait_s, 0.0) <= elapsed < max(wait_s, 0.0) + 1.0, f"waited {elapsed:.3f} s for {wait_s} s")
    equal(party.transport.receive_nowait(), None)
    party.barrier()


def check_idle_ranks_wake_for_a_frame(party: Party) -> None:
    """A frame to a rank that has been idle for a while is received soon, also by one that sleeps deeply."""
    if party.rank == 0:
        for pause_s in (0.02, 0.1, 0.8):
            time.sleep(pause_s)
            party.send_all(Frame(Kind.MESSAGE, body=np.float64(time.time()).tobytes()))
            party.flush()
        return
    for _ in range(3):
        _, frame = party.receive()
        latency_s = time.time() - float(np.frombuffer(frame.body)[0])
        holds(latency_s < 1.0, f"received {latency_s:.3f} s after it was sent")


def check_ping_pong(party: Party) -> None:
    """Many round trips, as fast as they go, with frames of changing form."""
    if party.rank > 1 or party.transport.size == 1:
        return
    for number in range(150):
        if party.rank == 0:
            party.transport.send(1, numbered(0, number))
            equal_frames(party.receive()[1], numbered(1, number))
        else:
            equal_frames(party.receive()[1], numbered(0, number))
            party.transport.send(0, numbered(1, number))
    equal(party.flush(), [])


# What does not fit, and the end


def check_destinations(party: Party) -> None:
    """A frame to itself or to a rank that is not there is refused; nothing is sent."""
    for dest in (party.rank, -1, party.transport.size, 10**6):
        with raises(UsageError, match=f"dest={dest}"):
            party.transport.send(dest, Frame(Kind.MESSAGE))
    equal(party.transport.n_unsent, 0)
    party.barrier()
    equal(party.transport.receive_nowait(), None)


def check_an_interrupt_is_raised_by_a_wait(party: Party) -> None:
    """An interrupt that a signal handler noted is raised by the next wait, once, and no frame is lost by it."""
    party.transport.interrupted = True
    with raises(KeyboardInterrupt):
        party.transport.receive(time.monotonic() + 0.05)
    holds(not party.transport.interrupted, "the interrupt is still noted")
    party.barrier()
    for source, frame in exchange(party, [Frame(Kind.MESSAGE, party.rank)]):
        equal(frame.a, source)


def check_closing_drains(party: Party) -> None:
    """What nobody received before `close` is handed over by it: every frame of every rank, large ones too."""
    for number in range(40):
        party.send_all(numbered(party.rank, number))
    party.send_all(Frame(Kind.MESSAGE, 40, buffers=[view(pattern(party.rank, LARGE_BYTES // 4))]))
    time.sleep(0.02 * party.rank)
    arrived = close(party)
    for rank in party.others:
        frames = [frame for source, frame in arrived if source == rank]
        equal([frame.a for frame in frames], list(range(41)))
        same(frames[-1].buffers[0], pattern(rank, LARGE_BYTES // 4), "the last array")
