"""The ranks of a task meet before they make their communicator, which MPI does not let a rank leave if another is gone.

Each of them tells the first one that it is there (READY); when all are, that tells them to go on (GO). While a rank
waits it takes in frames, so it hears of a death, and leaves. A rank that has said that it is there must not die any
more until the communicator is made, which takes some 50 us; if it does, nobody can know whether the others wait for it
inside MPI, so its supervisor tells the hub to end the job (`Mark.MEETING`), as after a death inside a collective call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from taskfarm.errors import ProtocolError
from taskfarm.runtime.options import Meet
from taskfarm.runtime.survival.vitals import Mark
from taskfarm.transport.base import Transport
from taskfarm.wire.frames import Frame, Kind

__all__ = ["GROUP", "Meetings"]

GROUP = 1 << 48  # runs above are groups of tasks that a spawner has started


class Meetings:
    """Where this rank meets others.

    Parameters
    ----------
    transport : Transport
        Moves the frames.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._said: dict[int, set[tuple[int, int]]] = {}  # by run: who has said what

    def on_frame(self, source: int, frame: Frame) -> None:
        """Note what another rank of a task has said; it may be faster than the task itself."""
        if frame.b not in (Meet.READY, Meet.GO):
            raise ProtocolError(f"rank {source} says {frame.b} before run {frame.a}")
        self._said.setdefault(frame.a, set()).add((source, frame.b))

    @contextmanager
    def of(self, run: int, ranks: Sequence[int], marks: memoryview, serve_once: Callable[[], None]) -> Iterator[None]:
        """Meet the other `ranks` of a run; inside, all of them are there.

        Parameters
        ----------
        marks : memoryview
            What the supervisor is to know.
        serve_once : callable
            Waits for a frame and takes it in; raises if the others will not come.
        """
        first, others = ranks[0], ranks[1:]
        awaited = {(rank, Meet.READY) for rank in others}
        try:
            if self._transport.rank != first:
                awaited = {(first, Meet.GO)}
                marks[Mark.MEETING] = 1
                self._transport.send(first, Frame(Kind.TEAM_MEET, run, Meet.READY))
            while not awaited <= self._said.get(run, set()):
                serve_once()
            if self._transport.rank == first:
                marks[Mark.MEETING] = 1
                self._transport.send_to(others, Frame(Kind.TEAM_MEET, run, Meet.GO))
            yield
        finally:
            marks[Mark.MEETING] = 0
            for old in [number for number in self._said if number <= run and number & GROUP == run & GROUP]:
                del self._said[old]
