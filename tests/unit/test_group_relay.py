"""The controller of a group: what it passes on, in which order, and what it gives back."""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Sequence

import pytest

from taskfarm.errors import ProtocolError
from taskfarm.runtime.executor import relay as relay_module
from taskfarm.runtime.executor.jobs import Pieces
from taskfarm.runtime.executor.portions import BACK, Part, Singles, portion_frame, read_group, read_parts, read_portion
from taskfarm.runtime.executor.relay import Relay
from taskfarm.runtime.executor.results import ReplyOption
from taskfarm.runtime.options import BatchOption, FunctionOption
from taskfarm.transport.local import LocalHub
from taskfarm.wire.codec import unpack
from taskfarm.wire.frames import Frame, Kind

JOB = 5
INITIALIZER = 4
GARBAGE = b"\xff no pickle"


class Group:
    """A relay at rank 1 with the workers 2 and 3, which do what the test says."""

    def __init__(self, members: Sequence[int] = (2, 3)) -> None:
        self.transports = LocalHub(4).transports()
        self.forgotten: list[int] = []
        self.relay = Relay(self.transports[1], members, 2, lambda source, frame: self.forgotten.append(frame.a))
        for member in members:
            assert [frame.kind for frame in self.frames(member)] == [Kind.GROUP]
        self.relay.on_function(0, Frame(Kind.FUNCTION, INITIALIZER, 0, FunctionOption.INITIALIZER, b"initialize"))
        self.relay.on_function(0, Frame(Kind.FUNCTION, JOB, INITIALIZER, 0, b"function"))

    def portion(self, number: int, sizes: Sequence[int], option: int = BatchOption.NOTHING) -> None:
        """Send the relay a portion whose pieces have these sizes."""
        bodies = [b"%s %d.%d" % (GARBAGE, number, index) for index in range(len(sizes))]
        pieces = Pieces(sizes[0], sum(sizes), option, bodies)
        self.relay.on_portion(0, portion_frame(number, JOB, 2, pieces))

    def frames(self, rank: int) -> list[Frame]:
        """Return what a rank was sent."""
        return [frame for _, frame in iter(self.transports[rank].receive_nowait, None)]

    def batches(self, rank: int) -> list[Frame]:
        """Return the batches that a worker was sent."""
        return [frame for frame in self.frames(rank) if frame.kind is Kind.BATCH]

    def done(
        self,
        rank: int,
        batch: Frame,
        n: int,
        option: int = ReplyOption.RESULTS,
        seconds: float = 1.0,
        buffers: Sequence[bytes] = (b"array",),
    ) -> None:
        """Let a worker have run `n` items of a batch."""
        body = struct.pack("<dd", seconds, 0.0) + GARBAGE
        self.relay.on_batch_done(rank, Frame(Kind.BATCH_DONE, batch.a, n, option, body, buffers))

    def told(self) -> tuple[list[Part], list[Singles]]:
        """Return what rank 0 is told, whether it is time or not."""
        self.relay.due = 0.0
        self.relay.send_parts()
        frames = self.frames(0)
        assert all(frame.kind is Kind.PARTS for frame in frames)
        read = [read_parts(frame) for frame in frames]
        return [part for parts, _ in read for part in parts], [one for _, singles in read for one in singles]

    def parts(self) -> list[Part]:
        """Return what rank 0 is told of others than results of single items."""
        return self.told()[0]


def bodies_of(batch: Frame) -> list[bytes]:
    """Return the pieces in a batch."""
    if not batch.option & BatchOption.PIECES:
        return [bytes(batch.body)]
    return [bytes(body) for body, _, _ in unpack(batch.body)]


def test_what_passes_through_stays_as_it_is() -> None:
    """Items and results are no pickles here, and nobody minds: only workers and rank 0 read them."""
    group = Group()
    group.portion(1, [1, 1])
    first, second = group.frames(2), group.frames(3)
    assert [(frame.kind, frame.body) for frame in first[:2]] == [
        (Kind.FUNCTION, b"initialize"),
        (Kind.FUNCTION, b"function"),
    ]
    assert bodies_of(first[2]) == [GARBAGE + b" 1.0"]
    assert [frame.kind for frame in second] == [Kind.FUNCTION, Kind.FUNCTION, Kind.BATCH]
    group.done(2, first[-1], 1)
    group.done(3, second[-1], 1, ReplyOption.VALUE)
    assert [(part.portion, part.offset, part.n_done, part.n_back, part.option) for part in group.parts()] == [
        (1, 0, 1, 0, ReplyOption.RESULTS),
        (1, 1, 1, 0, ReplyOption.VALUE),
    ]
    group.portion(2, [1, 1])
    assert [frame.kind for frame in group.frames(2) + group.frames(3)] == [Kind.BATCH] * 2  # functions are known


def test_results_come_with_their_buffers() -> None:
    """Raw buffers are told apart by part."""
    group = Group()
    group.portion(1, [1, 1])
    for rank in (2, 3):
        group.done(rank, group.batches(rank)[0], 1)
    assert [[bytes(buffer) for buffer in part.buffers] for part in group.parts()] == [[b"array"], [b"array"]]


def test_results_of_single_items_are_gathered() -> None:
    """Those of a portion come in columns, in the order in which they ended; what has buffers comes as it is."""
    group = Group()
    group.portion(1, [1] * 3)
    (first,), (second,) = group.batches(2), group.batches(3)
    group.done(3, second, 1, ReplyOption.VALUE, seconds=0.5, buffers=())
    group.done(2, first, 1, ReplyOption.VALUE, seconds=0.25, buffers=())
    (last,) = group.batches(3)
    group.done(3, last, 1, ReplyOption.VALUE)
    parts, singles = group.told()
    assert [(part.offset, part.option) for part in parts] == [(2, ReplyOption.VALUE)]
    assert singles == [Singles(JOB, 0.75, [1, 1], [1, 0], [GARBAGE, GARBAGE])]


def test_short_pieces_travel_together() -> None:
    """Once tasks are known to be short, a worker gets several pieces of a portion at once, but never of two."""
    group = Group([2])
    group.portion(1, [1])
    group.done(2, group.batches(2)[0], 1, seconds=1e-5)
    group.portion(2, [3] * 40)
    group.portion(3, [3] * 40)
    seen: list[bytes] = []
    n_batches = 0
    while batches := group.batches(2):
        for batch in batches:
            n_batches += 1
            bodies = bodies_of(batch)
            assert len({body.split(b".")[0] for body in bodies}) == 1
            seen += bodies
            group.done(2, batch, 3 * len(bodies), seconds=1e-5)
    assert seen == [b"%s %d.%d" % (GARBAGE, number, index) for number in (2, 3) for index in range(40)]
    assert n_batches < 60
    assert sum(part.n_done for part in group.parts()) == 1 + 240


def test_what_a_worker_gives_back() -> None:
    """Pieces that were not begun are dealt again here; the rest of a piece that was goes back to rank 0."""
    group = Group([2])
    group.portion(1, [4])
    group.done(2, group.batches(2)[0], 4, seconds=4e-6)
    group.portion(2, [4, 4, 4, 4])
    batches = group.batches(2)
    group.done(2, batches[0], 1, seconds=3.0)
    told = [(part.portion, part.offset, part.n_done, part.n_back) for part in group.parts()]
    assert told == [(1, 0, 4, 0), (2, 0, 1, 3)]
    again = batches[1:] + group.batches(2)
    while again:
        group.done(2, again[0], 4)
        again = again[1:] + group.batches(2)
    assert sum(part.n_done for part in group.parts()) == 12


def test_unreadable_pieces() -> None:
    """A batch that a worker cannot read is dealt again piece by piece, and what cannot be read then is rank 0's."""
    group = Group([2])
    group.portion(1, [1])
    group.done(2, group.batches(2)[0], 1, seconds=1e-5)
    group.portion(2, [2] * 16)
    batches = group.batches(2)
    n_unreadable = 0
    while batches:
        several = len(bodies_of(batches[0])) > 1
        group.done(2, batches[0], 0, ReplyOption.UNREADABLE)
        n_unreadable += not several
        batches = batches[1:] + group.batches(2)
    parts = [part for part in group.parts() if part.option == ReplyOption.UNREADABLE]
    assert n_unreadable == len(parts) == 16
    assert sorted((part.offset, part.n_done, part.n_back) for part in parts) == [(2 * i, 0, 2) for i in range(16)]


def test_failed_initializer() -> None:
    """All items of the batch are told to be lost, whatever they are."""
    group = Group([2])
    group.portion(1, [3])
    group.done(2, group.batches(2)[0], 0, ReplyOption.BROKEN)
    (part,) = group.parts()
    assert part[:5] == (1, 0, 0, 3, ReplyOption.BROKEN) and part.body == GARBAGE


def test_recall() -> None:
    """The last ones of those that wait go back, at once, as many as are asked for; what remains is run here."""
    group = Group([2])
    group.portion(1, [2] * 5)
    (batch,) = group.batches(2)
    group.relay.on_recall(0, Frame(Kind.RECALL, JOB, 3))
    (frame,) = group.frames(0)
    assert frame.kind is Kind.PARTS and frame.option == 1
    assert [(part.offset, part.n_back, part.option) for part in read_parts(frame)[0]] == [(6, 2, BACK), (8, 2, BACK)]
    group.relay.on_recall(0, Frame(Kind.RECALL, 99, 3))
    assert [read_parts(frame) for frame in group.frames(0)] == [([], [])]
    seen = [bytes(batch.body)[-3:]]
    while True:
        group.done(2, batch, 2)
        if not (batches := group.batches(2)):
            break
        (batch,) = batches
        seen.append(bytes(batch.body)[-3:])
    assert seen == [b"1.0", b"1.1", b"1.2"]


def test_forget() -> None:
    """What waits of a job that has ended goes back, what runs is only counted, and workers are told what they know."""
    group = Group([2, 3])
    group.portion(1, [2])
    group.relay.on_portion(0, portion_frame(2, JOB, 1, Pieces(2, 4, 0, [b"", b""])))
    (batch,) = group.batches(2)
    (other,) = group.batches(3)
    group.relay.on_forget(0, Frame(Kind.FORGET, JOB))
    assert [frame.kind for frame in group.frames(2) + group.frames(3)] == [Kind.FORGET] * 2
    group.done(2, batch, 1)
    group.done(3, other, 0, ReplyOption.UNREADABLE)
    told = {(part.portion, part.offset): part.n_done + part.n_back for part in group.parts()}
    assert told == {(1, 0): 2, (2, 0): 2, (2, 2): 2}
    assert group.relay._jobs == {}
    with pytest.raises(ProtocolError, match="not known here"):
        group.portion(3, [1])
    group.relay.on_forget(0, Frame(Kind.FORGET, INITIALIZER))
    group.relay.on_forget(0, Frame(Kind.FORGET, 1 << 62))  # kept by tasks, unknown here
    assert [frame.a for frame in group.frames(2)] == [INITIALIZER, 1 << 62] and group.forgotten == [
        JOB,
        INITIALIZER,
        1 << 62,
    ]


def test_reports_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first result leaves at once, those of the next milliseconds together, and the last ones without waiting."""
    now = 100.0
    monkeypatch.setattr(relay_module.time, "monotonic", lambda: now)
    group = Group([2, 3])
    group.portion(1, [1] * 6)
    first, second = group.batches(2) + group.batches(3)
    group.done(2, first, 1)
    group.relay.send_parts()
    assert len(group.frames(0)) == 1
    now += 1e-4
    group.done(3, second, 1)
    group.done(2, *group.batches(2), 1)
    group.relay.send_parts()
    assert group.frames(0) == [] and now < group.relay.due < now + 0.1
    now = group.relay.due
    group.relay.send_parts()
    assert [len(read_parts(frame)[0]) for frame in group.frames(0)] == [2]
    while batches := [(rank, batch) for rank in (2, 3) for batch in group.batches(rank)]:
        for rank, batch in batches:
            group.done(rank, batch, 1)
    group.relay.send_parts()
    assert [len(read_parts(frame)[0]) for frame in group.frames(0)] == [3]


@pytest.mark.parametrize(
    "columns",
    [
        (1, 0.5, [1], [0], []),
        (1, 0.5, [1], [], [b""]),
        (1, 0.5, [], [], []),
        (1, 0.5, [1, 1], [0, -1], [b"", b""]),
        (1, math.inf, [1], [0], [b""]),
        (1, 0.5, [1], [0.0], [b""]),
        (1, 0.5, [1.0], [0], [b""]),
        (1, 0.5, [1], [0], [1]),
        (1.0, 0.5, [1], [0], [b""]),
        (1, 0.5, [1], [0]),
    ],
)
def test_columns_that_make_no_sense(columns: tuple[object, ...]) -> None:
    """They are refused with a word about it."""
    with pytest.raises(ProtocolError):
        read_parts(Frame(Kind.PARTS, body=pickle.dumps(([], [columns]))))


@pytest.mark.parametrize("body", [b"", b"garbage", b"\x80\x05N.", b"\x80\x05]."])
def test_portions_that_make_no_sense(body: bytes) -> None:
    """They are refused with a word about it."""
    with pytest.raises(ProtocolError):
        read_portion(Frame(Kind.PORTION, 1, JOB, body=body))


def test_members_that_make_no_sense() -> None:
    """A rank is not in its own group, nor is rank 0."""
    for members in ([1], [0], [2, 2], [9]):
        body = struct.pack(f"<{len(members)}q", *members)
        with pytest.raises(ProtocolError, match="for rank 1"):
            read_group(Frame(Kind.GROUP, 1, len(members), body=body), 1, 4)
