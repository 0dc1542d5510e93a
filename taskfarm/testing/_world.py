"""A virtual clock, a network that keeps the order of each sender, and workers that fail as planned.

Rank 0 is the real `Crew` over the real `Controller`, the workers are real `Worker` objects; every frame between them is
encoded and decoded. A worker runs what it gets at once, but by its own clock, which may be ahead of the network's: what
it sends leaves when its clock says so, and not at all if it has died by then.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from taskfarm.config import Config
from taskfarm.errors import ProtocolError
from taskfarm.runtime.endpoint import Surroundings
from taskfarm.runtime.executor.batches import encode_times
from taskfarm.runtime.executor.losses import LostItem, pack_loss
from taskfarm.runtime.executor.results import ReplyOption
from taskfarm.runtime.options import LossCause
from taskfarm.runtime.registry import Registry
from taskfarm.runtime.worker import Worker
from taskfarm.testing._check import SimulationFailed
from taskfarm.testing._plan import Plan
from taskfarm.testing._tasks import STAGE
from taskfarm.transport.base import Direct, Incoming, LandingMemory, PeerFailed
from taskfarm.transport.local import LocalHub
from taskfarm.wire.frames import Buffer, Frame, Kind, encode, parse_head

__all__ = ["Network", "RankZero", "SimulatedWorker", "surroundings"]

_Message = tuple[bytes, list[bytes]]


def surroundings() -> Surroundings:
    """Return what an endpoint needs of a rank that has nothing else."""
    return Surroundings.without_calls(Registry(), Config())


def _to_bytes(frame: Frame) -> _Message:
    control, bulk = encode(frame)
    return bytes(control), [bytes(buffer) for buffer in bulk]


def _from_bytes(message: _Message) -> Frame:
    """Return the frame of a message; `ProtocolError` if it is torn."""
    control, bulk = message
    head = parse_head(control)
    if tuple(map(len, bulk)) != head.bulk_sizes:
        raise ProtocolError("a message without its end")
    buffers: list[Buffer] = [memoryview(bytearray(buffer)) for buffer in bulk]
    return head.complete(buffers) if buffers else head.frame


class Network:
    """What happens when.

    Attributes
    ----------
    now : float
        Virtual seconds.
    """

    def __init__(self, draw: random.Random, latency_s: float) -> None:
        self.now = 0.0
        self._draw = draw
        self._latency_s = latency_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._n_events = 0
        self._last_arrival: dict[tuple[int, int], float] = {}

    def time(self) -> float:
        """Return the virtual time."""
        return self.now

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Have `action` done at `when`, or now if that has passed."""
        self._n_events += 1
        heapq.heappush(self._events, (max(when, self.now), self._n_events, action))

    def carry(self, source: int, dest: int, sent: float, arrive: Callable[[], None]) -> None:
        """Have a message arrive some time after it was sent, behind what the same sender has sent before."""
        when = max(sent, self.now) + self._draw.expovariate(1.0) * self._latency_s
        when = self._last_arrival[source, dest] = max(when, self._last_arrival.get((source, dest), 0.0))
        self.at(when, arrive)

    def step(self) -> bool:
        """Let the next event happen; False if there is none."""
        if not self._events:
            return False
        self.now, _, action = heapq.heappop(self._events)
        action()
        return True

    def run_until(self, when: float) -> None:
        """Let all happen that happens until `when`."""
        while self._events and self._events[0][0] <= when:
            self.step()
        self.now = max(self.now, when)


class _Side:
    """What both sides of the network have in common: the parts of a transport that have nothing to do here."""

    interrupted = False
    n_unsent = 0
    parent: object = "a communicator"  # from which teams could be made: tasks may ask for several workers

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.direct: Direct = _HUB.direct

    def send(self, dest: int, frame: Frame, *, borrowed: bool = False) -> None:
        """Send `frame`."""
        self.send_to((dest,), frame)

    def send_to(self, dests: Sequence[int], frame: Frame, *, borrowed: bool = False) -> None:
        """Send `frame` to several ranks."""
        message = _to_bytes(frame)
        for dest in dests:
            self._post(dest, message)

    def send_or_copy(self, dest: int, frame: Frame) -> None:
        """Send a copy, as always here."""
        self.send_to((dest,), frame)

    def _post(self, dest: int, message: _Message) -> None:
        raise NotImplementedError

    def receive_nowait(self) -> Incoming | None:
        """Return nothing."""
        return None

    def receive(self, deadline: float) -> Incoming | None:
        """Return nothing."""
        return None

    def complete_sends(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Return True at once: a send copies."""
        return True

    def lose(self, rank: int, how: str) -> None:
        """Do nothing."""

    def begin_doze(self) -> bool:
        """Never sleep: the clock is virtual."""
        return False

    def doze(self, timeout_s: float, others: Sequence[int] = ()) -> None:
        """Do nothing."""

    def use_memory(self, memory: LandingMemory) -> None:
        """Do nothing: buffers stay where they are."""

    def end_doze(self) -> None:
        """Do nothing."""

    def wake(self) -> None:
        """Do nothing."""

    def close(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Agree at once."""
        return True


_HUB = LocalHub(1).transports()[0]


class SimulatedWorker(_Side):
    """A worker, its clock, its transport, and its fate.

    Attributes
    ----------
    has_died : bool
        Whether it died in the middle of something, as its clock goes.
    """

    def __init__(self, rank: int, plan: Plan, network: Network, zero: RankZero, draw: random.Random) -> None:
        super().__init__(rank, plan.n_workers + 1)
        self._plan = plan
        self._network = network
        self._zero = zero
        self._draw = draw
        self._time = 0.0
        self._dies_at = draw.uniform(0.0, plan.horizon_s) if draw.random() < plan.p_death else float("inf")
        self._stalls_at = draw.uniform(0.0, plan.horizon_s) if draw.random() < plan.p_stall else float("inf")
        self._stall_s = draw.uniform(0.0, 3.0) * plan.heartbeat_s
        self.has_died = False
        if self._dies_at < float("inf"):
            self._announce(self._dies_at, "was killed by SIGKILL")
        if self._stalls_at < float("inf") and self._stall_s > plan.heartbeat_s:
            network.at(self._stalls_at + plan.heartbeat_s, partial(zero.announce, rank, "gave no sign of life"))
        self._at: tuple[int, int] | None = None  # the batch and the item in it that a task's process is at
        self._lost_at: tuple[int, int] | None = None  # those that it died at
        self._worker = Worker(self, surroundings(), clock=self.clock, progress=self if plan.is_isolated else None)
        self._worker.teams.new_team = lambda part: SilentTeam()  # type: ignore[assignment, return-value]

    def _announce(self, when: float, how: str) -> None:
        self._network.at(
            when + self._draw.random() * self._plan.latency_s, partial(self._zero.announce, self.rank, how)
        )

    def clock(self) -> float:
        """Return the worker's own time."""
        return self._time

    def begin(self, batch: int) -> None:
        """Note that a batch has begun, which runs in a process of its own."""
        self._at = (batch, -1)

    def mark(self, position: int, now: float) -> None:
        """Note that an item begins; its process may die of that."""
        if self._at is None or self._lost_at is not None:
            return
        self._at = None if position < 0 else (self._at[0], position)
        if self._at is not None and self._draw.random() < self._plan.p_child_death:
            self._lost_at = self._at

    def lose(self, rank: int, how: str) -> None:
        """Take in that another worker has died."""
        self._worker.handle(rank, Frame(Kind.LOST, rank, body=how.encode()))

    def spend(self, seconds: float) -> None:
        """Let time pass for the worker."""
        if self._lost_at is not None:
            return
        self._time += seconds
        if self._time >= self._stalls_at:
            self._stalls_at = float("inf")
            self._time += self._stall_s

    def die(self) -> None:
        """Die of a task, or lose its process."""
        if self._at is not None:
            self._lost_at = self._lost_at or self._at
        elif not self.has_died and self._time < self._dies_at:
            self._dies_at = self._time
            self._announce(self._time, "was killed by SIGSEGV")

    def arrive(self, message: _Message, source: int = 0) -> None:
        """React to a frame when its turn has come."""
        self._time = max(self._time, self._network.now)
        self.spend(0.0)
        if self._time >= self._dies_at:
            return
        token = STAGE.set(self)
        try:
            self._worker.handle(source, _from_bytes(message))
        finally:
            STAGE.reset(token)
        lost_at, self._lost_at, self._at = self._lost_at, None, None
        if lost_at is not None:
            self._report_lost_child(*lost_at)

    def _report_lost_child(self, batch: int, position: int) -> None:
        """Say what the rank of a task's process says when that has died: which item it was at, if that is known."""
        self._zero.n_children_lost += 1
        self._worker.batches._late = False  # the next process knows nothing of that
        known = self._draw.random() < 0.8
        loss = LostItem(position if known else None, LossCause.DEATH, "was killed by SIGSEGV")
        body = encode_times(0.0, 0.0) + pack_loss(loss)
        self.send(0, Frame(Kind.BATCH_DONE, batch, 0, ReplyOption.LOST, body))

    def _post(self, dest: int, message: _Message) -> None:
        if self._lost_at is not None:  # the reply of a process that has died
            return
        if dest:
            if self._time < self._dies_at:
                arrive = partial(self._zero.workers[dest - 1].arrive, message, self.rank)
                self._network.carry(self.rank, dest, self._time, arrive)
        elif self._time < self._dies_at:
            self._zero.expect(self.rank, self._time, message)
        elif not self.has_died:
            self.has_died = True
            if self._draw.random() < self._plan.p_torn:
                self._zero.expect(self.rank, self._dies_at, _torn(message, self._draw))


def _torn(message: _Message, draw: random.Random) -> _Message:
    control, bulk = message
    if bulk and draw.random() < 0.5:
        return control, bulk[:-1]
    return control[: draw.randrange(len(control))], bulk


class SilentGuard:
    """Looks after a communicator that nobody uses."""

    failed = ""
    on_receive: Callable[[], None]
    is_waited_for = False
    is_countable = True
    n_steps = n_unmatched = 0

    def check(self) -> None:
        """Raise if another rank of the task has failed."""
        if self.failed:
            raise PeerFailed(self.failed)

    def end(self) -> None:
        """Do nothing: nothing is left."""


class SilentTeam:
    """Stands for the communicator of a task's ranks, which here do not talk to each other."""

    def begin(self, look: Callable[[], None]) -> tuple[SilentGuard, None]:
        """Begin a task."""
        return SilentGuard(), None

    def free(self) -> None:
        """Do nothing."""

    def tidy(self, n_steps: int) -> None:
        """Do nothing."""

    def keep_for_ever(self) -> None:
        """Do nothing."""


class RankZero(_Side):
    """Rank 0's transport.

    Attributes
    ----------
    lost : dict of int to str
        Workers that were announced as lost, and how.
    n_dropped : int
        Torn messages that were dropped.
    n_children_lost : int
        Processes of tasks that have died, while their worker lives.
    """

    def __init__(self, plan: Plan, network: Network, draw: random.Random) -> None:
        super().__init__(0, plan.n_workers + 1)
        self._plan = plan
        self._network = network
        self._draw = draw
        self._arrived: deque[Incoming] = deque()
        self.on_look: Callable[[], None] = lambda: None
        self.lost: dict[int, str] = {}
        self.n_dropped = 0
        self.n_children_lost = 0
        self.workers = [
            SimulatedWorker(rank, plan, network, self, random.Random(draw.random()))
            for rank in range(1, plan.n_workers + 1)
        ]

    def _post(self, dest: int, message: _Message) -> None:
        if dest not in self.lost:
            self._network.carry(0, dest, self._network.now, partial(self.workers[dest - 1].arrive, message))

    def expect(self, source: int, sent: float, message: _Message) -> None:
        """Have a message of a worker arrive, perhaps twice."""
        n_times = 2 if self._draw.random() < self._plan.p_duplicate else 1
        for _ in range(n_times):
            self._network.carry(source, 0, sent, partial(self._arrive, source, message))

    def _arrive(self, source: int, message: _Message) -> None:
        try:
            self._arrived.append((source, _from_bytes(message)))
        except ProtocolError:
            self.n_dropped += 1

    def announce(self, rank: int, how: str) -> None:
        """Tell rank 0 that a worker is lost; what that has sent may still arrive."""
        if rank not in self.lost:
            self.lost[rank] = how
            self._arrived.append((rank, Frame(Kind.LOST, rank, body=how.encode())))

    def receive_nowait(self) -> Incoming | None:
        """Return the next frame that has arrived."""
        self.on_look()
        return self._arrived.popleft() if self._arrived else None

    def receive(self, deadline: float) -> Incoming | None:
        """Let time pass until a frame arrives."""
        self.on_look()
        while not self._arrived:
            if not self._network.step():
                raise SimulationFailed("no progress: the program waits, and nothing is under way")
        return self._arrived.popleft()
